"""A `Card` says what one dialogue is to be, before any model is asked; a plan is a JSONL file of cards.

A card holds identifiers of the bank and not its words, so that it stays short and a reviewer can count by it. What a teacher
reads is made of it by `qiaoban.collect.prompts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import AgeBand, Category, Emotion, Lang, Meta, Turn, read_records
from qiaoban.files import write_lines

Mode = Literal["script", "roleplay", "expand", "general", "repair", "branch"]
Template = Literal["coach", "seed2023"]
Factor = Literal["dismissing", "disapproving", "laissez_faire"]


class _Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Child(_Strict):
    """Who speaks: identifiers of `people.toml`, and a name of `names.toml`."""

    name: str
    gender: Literal["girl", "boy"]
    age: int = Field(ge=5, le=17)
    family: str
    region: str
    temperament: str
    knobs: tuple[str, ...] = ()
    channel: str
    habit: str | None = None

    @property
    def band(self) -> AgeBand:
        """The age band that words and lengths follow."""
        return AgeBand.of(self.age)


class Hit(_Strict):
    """A finding that `repair` mends: the turn (from 0, as in `messages`), the rule and what it says."""

    turn: int = Field(ge=0)
    rule: str
    message: str


class Given(_Strict):
    """A dialogue that exists already, or the single message that `expand` grows."""

    id: str
    turns: tuple[Turn, ...] = Field(min_length=1)
    meta: Meta = Meta()


class Card(_Strict):
    """One dialogue to be.

    `scene` is a scene of `topics/`, `scenario` one of `scenarios.toml` that takes its place in a safeguarding card, `task` an
    entry of `general.toml`. `distress` runs from 0 to 4 and is the child's at the start. `turns` counts the child's turns.
    `given`, `hits`, `at` and `factor` serve the modes that start from an existing dialogue. `seed` feeds every choice that is
    made while the dialogue is generated, so that the same card and the same answers give the same dialogue.
    """

    id: str = Field(min_length=1)
    mode: Mode
    lang: Lang
    domain: str
    scene: str | None = None
    scenario: str | None = None
    task: str | None = None
    child: Child
    emotion: Emotion | None = None
    distress: int = Field(default=0, ge=0, le=4)
    outcome: str | None = None
    risk: Category | None = None
    turns: int = Field(ge=1, le=20)
    template: Template = "coach"
    length: tuple[int, int] | None = None
    given: Given | None = None
    hits: tuple[Hit, ...] = ()
    at: int | None = None
    factor: Factor | None = None
    seed: int

    @property
    def sha(self) -> str:
        """SHA-256 of the card's JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """One line without its newline."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)


def read_plan(path: Path) -> Iterator[Card]:
    """Stream the cards of a plan. `DataError` names path:line, the key and its value."""
    return read_records(path, Card)


def write_plan(path: Path, cards: Iterable[Card]) -> int:
    """Write a plan atomically; returns how many cards it holds."""
    return write_lines(path, (card.to_json() for card in cards))
