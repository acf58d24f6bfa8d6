"""Cards that start from what exists: single messages to expand, talks to repair, talks to branch into preference pairs.

What a talk says of itself (language, age band, scene, emotion, outcome) is kept; the rest of the child is drawn by the seed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qiaoban.bank.catalogue import OLDEST, YOUNGEST, Catalogue
from qiaoban.collect.card import Card, Child, Factor, Given, Hit
from qiaoban.collect.children import Cradle, dice, number, pick
from qiaoban.collect.plan import distress_at_start
from qiaoban.collect.rules import Draft
from qiaoban.collect.world import Source, World
from qiaoban.conversation import Act, AgeBand, Category, Conversation, Emotion, Lang, Meta, Turn, explain
from qiaoban.errors import DataError, UsageError
from qiaoban.safety.policy import default_classifier
from qiaoban.safety.signals import ChildMessage, RuleClassifier, Severity

DOMAIN = "given"  # of a card whose dialogue does not say its own
FACTORS: tuple[Factor, ...] = get_args(Factor)
_VALIDATION = {Act.NOTICE, Act.ACCEPT, Act.EMPATHISE, Act.LABEL, Act.SAVOUR}
_ADVICE = {Act.EXPLORE, Act.PLAN, Act.LIMIT}
_HAN = re.compile(r"[\u3400-\u9fff]")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(_Strict):
    """One thing that a child said, for `expand`. What is left out is drawn."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    lang: Lang | None = None
    age: int | None = Field(default=None, ge=YOUNGEST, le=OLDEST)
    gender: Literal["girl", "boy"] | None = None
    domain: str | None = None
    emotion: Emotion | None = None
    outcome: str | None = None


class Finding(_Strict):
    """One hit of a rule on a turn (from 0, as in `messages`), for `repair`."""

    id: str
    turn: int = Field(ge=0)
    rule: str
    severity: str = ""
    message: str = ""


def expand_cards(
    messages: Iterable[Mapping[str, Any]], bank: Catalogue, *, seed: int = 0, turns: tuple[int, int] = (4, 9)
) -> list[Card]:
    """One card for each row {"id", "text", "lang", "age"}; `DataError` names a row that is wrong.

    An emotion that the row does not name is one whose word stands in the text, else it is drawn; the outcome fits it.
    """
    deck = _Deck(bank, "expand", seed)
    cards = []
    for row, message in enumerate(_rows(Message, messages), start=1):
        lang = message.lang or _lang_of(message.text)
        name = deck.name(lang)
        rng = dice(seed, name, message.id)
        age = message.age or rng.randint(6, OLDEST)
        emotion = message.emotion or deck.feeling(message.text, lang, age, name)
        outcome = _known_outcome(message, deck.world, row) or deck.outcome(emotion, name)
        risk = disclosed(message.text, lang, age)
        outcome = "referred" if risk and outcome == "savoured" else outcome
        said = Turn(role="user", content=message.text, emotion=emotion)
        mood = Source(id="", level="everyday", positive=outcome == "savoured", ages=(age, age), emotions=(emotion,), domains=())
        cards.append(
            Card(
                id=name,
                mode="expand",
                lang=lang,
                domain=message.domain or DOMAIN,
                child=deck.child(None, lang, age, name, message.gender or ""),
                emotion=emotion,
                distress=distress_at_start(mood, emotion, rng),
                outcome=outcome,
                risk=risk,
                turns=rng.randint(*turns),
                given=Given(id=message.id, turns=(said,), meta=Meta(lang=lang)),
                seed=number(seed, name, "rollout"),
            )
        )
    return cards


def repair_cards(
    talks: Iterable[Conversation], findings: Iterable[Mapping[str, Any]], bank: Catalogue, *, seed: int = 0
) -> list[Card]:
    """One card for each talk that has findings. `DataError` names an unknown id, or a turn that cannot be mended."""
    hits: dict[str, list[Hit]] = defaultdict(list)
    for finding in _rows(Finding, findings):
        hit = Hit(turn=finding.turn, rule=finding.rule, message=finding.message)
        if hit not in hits[finding.id]:
            hits[finding.id].append(hit)
    deck = _Deck(bank, "repair", seed)
    cards = []
    for talk in talks:
        for hit in hits.get(talk.id, ()):
            _check_turn(talk, hit)
        if talk.id in hits:
            mine = tuple(sorted(hits.pop(talk.id), key=lambda hit: hit.turn))
            cards.append(deck.of_talk(talk).model_copy(update={"hits": mine}))
    if hits:
        raise DataError(f"a finding is about {next(iter(hits))!r}, which is not among the talks")
    return cards


def branch_cards(talks: Iterable[Conversation], bank: Catalogue, *, per_talk: int = 2, seed: int = 0) -> list[Card]:
    """For up to `per_talk` companion turns of each talk, a card for each failing style.

    First comes a turn that validates a feeling, then one that advises, then a later one, then any.
    """
    if per_talk < 1:
        raise UsageError(f"per_talk is {per_talk}, at least one turn of a talk is needed")
    deck = _Deck(bank, "branch", seed)
    cards = []
    for talk in talks:
        for at in _telling_turns(talk, per_talk, seed):
            cards += [deck.of_talk(talk).model_copy(update={"at": at, "factor": factor}) for factor in FACTORS]
    return cards


def disclosed(text: str, lang: Lang, age: int) -> Category | None:
    """The kind of harm that a child's words tell of, as the product's own guard sees it."""
    verdict = _classifier().assess(ChildMessage(text=text, context=(), lang=lang, band=AgeBand.of(age)))
    return verdict.category if verdict.severity.rank >= Severity.CONCERN.rank else None


@cache
def _classifier() -> RuleClassifier:
    return default_classifier()


def _check_turn(talk: Conversation, hit: Hit) -> None:
    where = f"talk {talk.id!r}, rule {hit.rule!r}: turn {hit.turn}"
    if hit.turn >= len(talk.turns):
        raise DataError(f"{where} does not exist, the talk has {len(talk.turns)} turns")
    if talk.turns[hit.turn].role == "system":
        raise DataError(f"{where} is a system message, and only what somebody said is repaired")


def _telling_turns(talk: Conversation, count: int, seed: int) -> list[int]:
    """Companion turns that a child's turn comes before, the most telling first, given back in their order."""
    own = [i for i, turn in enumerate(talk.turns) if turn.role == "assistant" and any(t.role == "user" for t in talk.turns[:i])]
    first = next((i for i in own if _VALIDATION & set(talk.turns[i].acts)), next(iter(own), None))
    advice = next((i for i in own if i != first and _ADVICE & set(talk.turns[i].acts)), None)
    rng = dice(seed, "branch", talk.id)
    rest = [i for i in own if i not in {first, advice}]
    rng.shuffle(rest)
    rest.sort(key=lambda i: i < len(talk.turns) / 2)
    chosen = [i for i in (first, advice, *rest) if i is not None]
    return sorted(chosen[:count])


class _Deck:
    """Makes the cards of one mode, with ids counted by language."""

    def __init__(self, bank: Catalogue, mode: Literal["expand", "repair", "branch"], seed: int) -> None:
        self.world = World.of(bank)
        self.cradle = Cradle(self.world)
        self.mode, self.seed = mode, seed
        self.counts: Counter[str] = Counter()
        self.children: dict[str, Child] = {}

    def name(self, lang: Lang) -> str:
        self.counts[lang] += 1
        return f"{lang}-{self.mode}-s{self.seed}-{self.counts[lang]:06d}"

    def child(self, source: Source | None, lang: Lang, age: int, key: str, gender: str = "") -> Child:
        return self.cradle.child(Draft(source, age, lang), dice(self.seed, key, "child"), gender=gender)

    def feeling(self, text: str, lang: Lang, age: int, key: str) -> Emotion:
        """The emotion whose word stands in the text, else one that a child of `age` has a word for."""
        known = [entry for entry in self.world.bank.emotions if entry.min_age <= age]
        words = {entry.id: re.escape(entry.zh) if lang == "zh" else rf"\b{re.escape(entry.en)}\b" for entry in known}
        said = [emotion for emotion, word in words.items() if re.search(word, text, re.IGNORECASE)]
        return dice(self.seed, key, "emotion").choice(said or [entry.id for entry in known])

    def outcome(self, emotion: Emotion, key: str) -> str:
        good = emotion.family in {"joy", "love"}
        fitting = [(o.id, o.weight) for o in self.world.bank.people.outcomes if (o.id == "savoured") == good]
        return pick(dice(self.seed, key, "outcome"), fitting)

    def of_talk(self, talk: Conversation) -> Card:
        """A card that knows of a talk what the talk says itself; cards of one talk have the same child."""
        meta = talk.meta
        lang = meta.lang or _lang_of("".join(turn.content for turn in talk.turns))
        name = self.name(lang)
        source = self.world.sources.get(meta.topic or "")
        if talk.id not in self.children:
            self.children[talk.id] = self.child(source, lang, self._age(meta, source, talk.id), talk.id)
        from_scenario = source is not None and source.level in {"safeguarding", "adversarial"}
        return Card(
            id=name,
            mode=self.mode,
            lang=lang,
            domain=meta.domain or (source.domains[0] if source else DOMAIN),
            scene=source.id if source and not from_scenario else None,
            scenario=source.id if source and from_scenario else None,
            child=self.children[talk.id],
            emotion=meta.emotion,
            distress=next((turn.distress for turn in talk.turns if turn.distress is not None), 0),
            outcome=meta.outcome,
            risk=meta.risk,
            turns=max(1, min(20, sum(turn.role == "user" for turn in talk.turns))),
            given=Given(id=talk.id, turns=talk.turns, meta=meta),
            seed=number(self.seed, name, "rollout"),
        )

    def _age(self, meta: Meta, source: Source | None, key: str) -> int:
        """An age of the talk's band and, where the two meet, of its scene."""
        low, high = meta.age_band.years if meta.age_band else (source.ages if source else (6, OLDEST))
        years = list(range(max(low, YOUNGEST), min(high, OLDEST) + 1))
        scene = [year for year in years if source and source.ages[0] <= year <= source.ages[1]]
        return dice(self.seed, key, "age").choice(scene or years)


Row = TypeVar("Row", bound=_Strict)


def _rows(kind: type[Row], rows: Iterable[Mapping[str, Any]]) -> Iterable[Row]:
    for number_of_row, row in enumerate(rows, start=1):
        try:
            yield kind.model_validate(row)
        except ValidationError as error:
            raise DataError(f"row {number_of_row}: {explain(error, kind)}") from None


def _known_outcome(message: Message, world: World, row: int) -> str | None:
    known: Sequence[str] = [outcome.id for outcome in world.bank.people.outcomes]
    if message.outcome is not None and message.outcome not in known:
        raise DataError(f"row {row}: outcome: {message.outcome!r} is unknown", hint=f"known are {', '.join(known)}")
    return message.outcome


def _lang_of(text: str) -> Lang:
    return "zh" if _HAN.search(text) else "en"
