"""What a teacher reads: the texts of `bank/collect/`, filled with the facts of a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from random import Random
from string import Template
from typing import Any

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Catalogue, Domain, Family, Region, Scenario, Scene, Temperament, load_catalogue
from qiaoban.bank.general import load_tasks
from qiaoban.collect.card import Card
from qiaoban.conversation import AgeBand, Lang, Turn
from qiaoban.errors import DataError

_DIALECT_SHARE = 0.35  # of the children whose speech has a colour of its place


class Prompts:
    """The texts of one language over one bank; `extra` are the user's own domains."""

    def __init__(self, lang: Lang, extra: Sequence[Domain] = ()) -> None:
        self.lang = lang
        self._bank: Catalogue = load_catalogue()
        table = read_table(f"collect/{lang}.toml")
        self._texts = dict(_flat(table))
        self.sha = hashlib.sha256(json.dumps(table, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        domains = (*self._bank.domains, *extra)
        self._scenes: dict[str, Scene] = {scene.id: scene for domain in domains for scene in domain.scenes}
        self._scenarios: dict[str, Scenario] = {scenario.id: scenario for scenario in self._bank.scenarios}
        self._tasks = {task.id: getattr(task, lang) for task in load_tasks()}
        people = self._bank.people
        self._emotions = {entry.id: entry for entry in self._bank.emotions}
        self._outcomes = {entry.id: entry for entry in people.outcomes}
        self._families: dict[str, Family] = {entry.id: entry for entry in people.families}
        self._regions: dict[str, Region] = {entry.id: entry for entry in people.regions}
        self._temperaments: dict[str, Temperament] = {entry.id: entry for entry in people.temperaments}
        self._lines: dict[str, Sequence[str]] = {
            **{f"knob.{entry.id}": getattr(entry.talk, lang) for entry in people.knobs},
            **{f"channel.{entry.id}": getattr(entry.shows, lang) for entry in people.channels},
            **{f"habit.{entry.id}": getattr(entry.examples, lang) for entry in people.talk_habits},
        }

    def text(self, key: str, facts: Mapping[str, str]) -> str:
        """The text `key` (such as `child.system`) with its placeholders filled."""
        return Template(self._texts[key]).substitute(facts).strip()

    def line(self, key: str) -> str:
        """A text without placeholders."""
        return self._texts[key].strip()

    def category(self, category: str) -> str:
        """What a kind of harm asks of the companion beyond the rule for all; empty where nothing more."""
        return self._texts.get(f"companion.category.{category}", "").strip()

    def facts(self, card: Card) -> dict[str, str]:
        """Everything that a text may say about a card."""
        child, band = card.child, card.child.band
        return {
            **self._who(card),
            **self._what(card),
            "channel": self._join(self._found(self._lines, f"channel.{child.channel}", card)),
            "habit": self._join(self._found(self._lines, f"habit.{child.habit}", card)) if child.habit else "",
            "band_child": self.line(f"child.bands.{band}"),
            "band_companion": self.line(f"companion.bands.{band}"),
            "acts": self.acts,
            "distress": str(card.distress),
            "turns": str(card.turns),
            "length_low": str(card.length[0]) if card.length else "",
            "length_high": str(card.length[1]) if card.length else "",
        }

    @property
    def acts(self) -> str:
        """The acts, one a line, with their definitions."""
        return "\n".join(f"{act.id}: {getattr(act.definition, self.lang)}" for act in self._bank.acts)

    def style(self, factor: str) -> tuple[str, str]:
        """Definition and example lines of a failing style."""
        style = next(style for style in self._bank.styles if style.id == factor)
        lines: Sequence[str] = getattr(style.lines, self.lang)
        return getattr(style.definition, self.lang), "\n".join(lines[:6])

    def history(self, turns: Iterable[Turn]) -> str:
        """Turns as lines with speakers, for a text that quotes a talk."""
        names = {"user": self.line("words.child"), "assistant": self.line("words.companion")}
        colon = "：" if self.lang == "zh" else ": "
        return "\n".join(f"{names[turn.role]}{colon}{turn.content}" for turn in turns if turn.role in names)

    def _who(self, card: Card) -> dict[str, str]:
        child, rng = card.child, Random(card.seed)  # noqa: S311 - choices that can be repeated
        region = self._found(self._regions, child.region, card)
        dialects = getattr(region.hints, self.lang)
        dialect = rng.choice(dialects) if dialects and rng.random() < _DIALECT_SHARE else None
        talk = [*getattr(self._found(self._temperaments, child.temperament, card).talk, self.lang)]
        for knob in child.knobs:
            talk += self._found(self._lines, f"knob.{knob}", card)
        return {
            "name": child.name,
            "age": str(child.age),
            "gender": self.line(f"words.{child.gender}"),
            "family": getattr(self._found(self._families, child.family, card), self.lang),
            "setting": rng.choice(getattr(region.setting, self.lang)),
            "dialect": f"{dialect.name}: {self._join(dialect.words)}" if dialect else "",
            "temperament": self._join(talk),
        }

    def _what(self, card: Card) -> dict[str, str]:
        """What happened. A scenario's own text takes the place of a scene's; it hides nothing but what it says."""
        facts = dict.fromkeys(("scene", "hidden", "must", "must_not", "emotion", "phrases", "body", "outcome", "task"), "")
        if card.scenario:
            scenario = self._found(self._scenarios, card.scenario, card)
            facts |= {"scene": getattr(scenario, self.lang), "hidden": self.line("words.none")}
            facts |= {"must": getattr(scenario.must, self.lang), "must_not": getattr(scenario.must_not, self.lang)}
        elif card.scene:
            scene = self._found(self._scenes, card.scene, card)
            facts |= {"scene": getattr(scene, self.lang), "hidden": getattr(scene.hidden, self.lang)}
        if card.task:
            facts["task"] = self._found(self._tasks, card.task, card)
        if card.emotion:
            emotion = self._emotions[card.emotion]
            facts |= {"emotion": getattr(emotion, self.lang), "phrases": self._join(getattr(emotion.phrases, self.lang))}
            facts["body"] = self._join(getattr(emotion.body, self.lang))
        if card.outcome:
            facts["outcome"] = getattr(self._found(self._outcomes, card.outcome, card).definition, self.lang)
        return facts

    def _found(self, table: Mapping[str, Any], key: str, card: Card) -> Any:
        if key not in table:
            raise DataError(
                f"card {card.id!r} speaks of {key!r}, which the bank has not",
                hint="plan again, or put the topic files of the plan beside it",
            )
        return table[key]

    def _join(self, words: Iterable[str]) -> str:
        return ("；" if self.lang == "zh" else "; ").join(words)


@cache
def load_prompts(lang: Lang) -> Prompts:
    """The prompts over the bank as it ships."""
    return Prompts(lang)


def _flat(table: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)


def band_words(band: AgeBand, prompts: Prompts) -> dict[str, str]:
    """What the product knows of a child before a word is said: the age band."""
    return {"band_companion": prompts.line(f"companion.bands.{band}"), "age_words": str(band), "acts": prompts.acts}
