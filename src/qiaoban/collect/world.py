"""`World`: the bank indexed for the planner, every scene and scenario as a `Source` that rules can speak of.

Who lives at home in which scene, which scenario belongs to which field of life and the like stand in `bank/collect/rules.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Catalogue, Family, Lines, Name, Scenario, Scene, TalkHabit
from qiaoban.collect.card import Card
from qiaoban.conversation import Category, Emotion, explain
from qiaoban.errors import DataError

Level = Literal["everyday", "sensitive", "safeguarding", "adversarial"]
LEVELS: tuple[Level, ...] = ("everyday", "sensitive", "safeguarding", "adversarial")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Harm(_Entry):
    """In which fields of life the scenarios of a category are at home, and which feelings they raise."""

    category: Category
    domains: Lines
    emotions: tuple[Emotion, ...] = Field(min_length=1)


class Fit(_Entry):
    """Which child fits the scenes that `match`: nothing but what is named where something is named."""

    why: str
    match: Lines
    families: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    gender: Literal["girl", "boy"] | None = None
    regions: tuple[str, ...] = ()
    channel: str | None = None

    def holds_for(self, name: str) -> bool:
        """Whether the scene or scenario `name` is one of those that `match`."""
        return any(fnmatchcase(name, pattern) for pattern in self.match)


class Words(_Entry):
    """Words that put a person into a scene; `not` are compounds that mean somebody else."""

    zh: Lines
    en: Lines
    other: tuple[str, ...] = Field(default=(), alias="not")

    def stand_in(self, zh: str, en: str) -> bool:
        """Whether either text speaks of the person."""
        for compound in self.other:
            zh = zh.replace(compound, "")
        found = any(word in zh for word in self.zh)
        return found or any(re.search(rf"\b{word}\b", en, re.IGNORECASE) for word in self.en)


class RuleTable(_Entry):
    """`rules.toml`."""

    adversarial: tuple[Category, ...]
    also_adversarial: tuple[str, ...]
    also_safeguarding: tuple[str, ...]
    severe: tuple[Category, ...]
    emergency: tuple[Category, ...]
    words: dict[str, Words]
    absent: dict[str, tuple[str, ...]]
    regions: dict[str, tuple[str, ...]]
    harms: tuple[Harm, ...] = Field(alias="harm")
    fits: tuple[Fit, ...] = Field(alias="fit")


@cache
def rule_table() -> RuleTable:
    """The table of the bank. `DataError` names the key that is wrong."""
    name = "collect/rules.toml"
    try:
        return RuleTable.model_validate(read_table(name))
    except ValidationError as error:
        raise DataError(explain(error, RuleTable), path=name) from None


_ANY_CHILD = Fit(why="", match=("*",))


@dataclass(frozen=True)
class Source:
    """What a card is about, a scene or a scenario, in the terms that rules speak of. `slow` tells a disclosure over turns."""

    id: str
    level: Level
    positive: bool
    ages: tuple[int, int]
    emotions: tuple[Emotion, ...]
    domains: tuple[str, ...]
    risk: Category | None = None
    slow: bool = False
    fit: Fit = _ANY_CHILD


@dataclass(frozen=True)
class World:
    """The bank by id, with every scene and scenario as a `Source`."""

    bank: Catalogue
    table: RuleTable
    sources: Mapping[str, Source]
    word_age: Mapping[Emotion, int]
    families: Mapping[str, Family]
    habits: Mapping[str, TalkHabit]
    names: Mapping[str, Mapping[str, Name]]

    @classmethod
    def of(cls, bank: Catalogue) -> World:
        """Index `bank`."""
        table = rule_table()
        harms = {harm.category: harm for harm in table.harms}
        sources = [_of_scene(scene, domain.id, bank, table) for domain in bank.domains for scene in domain.scenes]
        sources += [_of_scenario(scenario, harms[scenario.category], bank, table) for scenario in bank.scenarios]
        return cls(
            bank=bank,
            table=table,
            sources={source.id: source for source in sources},
            word_age={entry.id: entry.min_age for entry in bank.emotions},
            families={family.id: family for family in bank.people.families},
            habits={habit.id: habit for habit in bank.people.talk_habits},
            names={"zh": {name.name: name for name in bank.names.zh}, "en": {name.name: name for name in bank.names.en}},
        )

    def source_of(self, card: Card) -> Source | None:
        """The scene or scenario of a card, None where it has none or an unknown one."""
        return self.sources.get(card.scenario or card.scene or "")

    def level_of(self, card: Card) -> Level | None:
        """The risk level of a card that a plan made of the bank."""
        source = self.source_of(card)
        return source.level if source else None


def _of_scene(scene: Scene, domain: str, bank: Catalogue, table: RuleTable) -> Source:
    return Source(
        id=scene.id,
        level="sensitive" if scene.risk else "everyday",
        positive=scene.positive,
        ages=scene.ages,
        emotions=scene.emotions,
        domains=(domain,),
        risk=scene.risk,
        fit=_fit_of(scene, bank, table),
    )


def _of_scenario(scenario: Scenario, harm: Harm, bank: Catalogue, table: RuleTable) -> Source:
    tests = scenario.category in table.adversarial or scenario.id in table.also_adversarial
    return Source(
        id=scenario.id,
        level="adversarial" if tests and scenario.id not in table.also_safeguarding else "safeguarding",
        positive=False,
        ages=scenario.ages,
        emotions=harm.emotions,
        domains=harm.domains,
        risk=scenario.category,
        slow=scenario.directness == "over_turns",
        fit=_fit_of(scenario, bank, table),
    )


def _fit_of(entry: Scene | Scenario, bank: Catalogue, table: RuleTable) -> Fit:
    """Every `[[fit]]` that matches, in one; where none names families, the words of the text tell who must live there."""
    fits = [fit for fit in table.fits if fit.holds_for(entry.id)]
    named = [set(fit.families) for fit in fits if fit.families]
    present = {who for who, words in table.words.items() if words.stand_in(entry.zh, entry.en)}
    at_home = [f.id for f in bank.people.families if not present & set(table.absent.get(f.id, ()))]
    return Fit(
        why="; ".join(fit.why for fit in fits),
        match=(entry.id,),
        families=tuple(f.id for f in bank.people.families if all(f.id in some for some in named)) if named else tuple(at_home),
        prefer=tuple(name for fit in fits for name in fit.prefer),
        gender=next((fit.gender for fit in fits if fit.gender), None),
        regions=next((fit.regions for fit in fits if fit.regions), ()),
        channel=next((fit.channel for fit in fits if fit.channel), None),
    )
