"""Who the child of a card is, drawn by the weights of the bank among what the rules allow."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from qiaoban.bank.catalogue import Name
from qiaoban.collect.card import Child
from qiaoban.collect.rules import GIVEN_NAME_FROM, Draft, allowed
from qiaoban.collect.world import World
from qiaoban.conversation import Lang

Item = TypeVar("Item")
PREFERRED = 10  # how much likelier a family is that a scene prefers
HABIT_SHARE = 0.6  # children who come at a thing sideways
KNOBS = (0.35, 0.45, 0.20)  # shares of mixed children with no knob, one and two
NICK_SHARE = ((9, 0.6), (GIVEN_NAME_FROM, 0.3))  # share of pet names below an age
VOICE_SHARE_YOUNG = 2  # how much likelier voice is for a child under nine


def dice(*parts: object) -> random.Random:
    """A generator that gives the same numbers for the same parts, on every machine."""
    return random.Random(number(*parts))  # noqa: S311 - variety, not secrecy


def number(*parts: object) -> int:
    """A number below 2**31 made of the parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) >> 1


def pick(rng: random.Random, weighted: Iterable[tuple[Item, float]]) -> Item:
    """One item by weight."""
    items, weights = zip(*weighted, strict=True)
    chosen: Item = rng.choices(items, weights)[0]
    return chosen


@dataclass
class Cradle:
    """Draws children one after another; it remembers names, so that each is used once before any comes back."""

    world: World
    used: Counter[tuple[Lang, str]] = field(default_factory=Counter)
    pools: dict[tuple[Lang, str, int], list[Name]] = field(default_factory=dict)
    last: str = ""

    def child(self, draft: Draft, rng: random.Random, *, gender: str = "") -> Child:
        """A child for `draft`, which is filled in. `gender` fixes it where the scene does not."""
        person, people = draft.person, self.world.bank.people
        prefer = draft.source.fit.prefer if draft.source else ()
        person.gender = gender or self._draw(draft, rng, "gender", [("girl", 1.0), ("boy", 1.0)])
        person.family = self._draw(
            draft, rng, "family", [(f.id, f.weight * (PREFERRED if f.id in prefer else 1)) for f in people.families]
        )
        person.region = self._draw(draft, rng, "region", [(r.id, r.weight) for r in people.regions])
        person.temperament = pick(rng, [(t.id, t.weight) for t in people.temperaments])
        young = VOICE_SHARE_YOUNG if draft.age < 9 else 1
        person.channel = self._draw(
            draft, rng, "channel", [(c.id, c.weight * (young if c.id == "voice" else 1)) for c in people.channels]
        )
        if rng.random() < HABIT_SHARE:
            person.habit = self._draw(draft, rng, "habit", [(h.id, h.weight) for h in people.talk_habits])
        if person.temperament == "mixed":
            self._turn_knobs(draft, rng)
        self._name(draft, rng)
        return Child.model_validate({**vars(person), "age": draft.age, "habit": person.habit or None})

    def _draw(self, draft: Draft, rng: random.Random, part: str, weighted: Sequence[tuple[str, float]]) -> str:
        return pick(rng, [(name, weight) for name, weight in weighted if self._fits(draft, part, name)])

    def _fits(self, draft: Draft, part: str, value: str | tuple[str, ...]) -> bool:
        before = vars(draft.person)[part]
        vars(draft.person)[part] = value
        fits = allowed(draft, self.world, part)
        vars(draft.person)[part] = before
        return fits

    def _turn_knobs(self, draft: Draft, rng: random.Random) -> None:
        for _ in range(pick(rng, list(enumerate(KNOBS)))):
            taken = draft.person.knobs
            left = [(knob.id, knob.weight) for knob in self.world.bank.people.knobs if knob.id not in taken]
            fitting = [(name, weight) for name, weight in left if self._fits(draft, "knobs", (*taken, name))]
            draft.person.knobs = (*taken, pick(rng, fitting))

    def _name(self, draft: Draft, rng: random.Random) -> None:
        """The least used name, if there is one of the kind that the age draws; never the last one again."""
        lang: Lang = "en" if draft.lang == "en" else "zh"
        names = [name for name in self._pool(draft, lang) if name.name != self.last]
        fewest = min(self.used[lang, name.name] for name in names)
        least = [name for name in names if self.used[lang, name.name] == fewest]
        share = next((share for age, share in NICK_SHARE if draft.age < age), 0.0)
        kind = "nick" if rng.random() < share else "given"
        draft.person.name = self.last = rng.choice([name for name in least if name.kind == kind] or least).name
        self.used[lang, draft.person.name] += 1

    def _pool(self, draft: Draft, lang: Lang) -> list[Name]:
        key = (lang, draft.person.gender, draft.age)
        if key not in self.pools:
            self.pools[key] = [name for name in self.world.names[lang].values() if self._fits(draft, "name", name.name)]
        return self.pools[key]
