"""What is judged and how: the dimensions with their anchored levels, and the questions that are put to a judge.

Three levels and not ten, each described by what can be seen, and evidence before the level: coarse anchored scales with reasons
first agree better with people than free scores (Zheng et al. 2023; Madani & Srihari 2024 for emotional support).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from string import Template

from pydantic import BaseModel, ConfigDict, model_validator

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Line, load_catalogue, parse_table
from qiaoban.conversation import Act, AgeBand, Conversation, Lang

OVERALL = "overall"
SEPARATOR = "\t"  # between rater and talk in the ids of a ledger
AGAIN = " again "  # between judge and round in the name of a rater
_PAIRED = ("accept", "empathise", "label", "limit", "explore", "safeguard", "order", "age_fit", "specific", "honest")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dimension(_Entry):
    """One thing that is judged: an act of emotion coaching, or (`about`) what no single act shows. Levels 0, 1 and 2."""

    act: Act | None = None
    about: Line | None = None
    levels: tuple[Line, Line, Line]

    @model_validator(mode="after")
    def _one_of_both(self) -> Dimension:
        if (self.act is None) == (self.about is None):
            raise ValueError("give `act` or `about`")
        return self


class _Questions(_Entry):
    system: Line
    user: Line
    outcome: Line = "$outcome"


class _Reask(_Entry):
    json_: Line

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.rstrip("_"))


class _Words(_Entry):
    unknown_band: Line


class _File(_Entry):
    talk: _Questions
    pair: _Questions
    reask: _Reask
    words: _Words
    dimension: dict[str, Dimension]


class Rubric:
    """The rubric in one language. `sha` changes with any word of it."""

    def __init__(self, lang: Lang) -> None:
        name = f"judge/{lang}.toml"
        self.lang = lang
        self._file = parse_table(_File, read_table(name), name)
        self.dimensions: Mapping[str, Dimension] = self._file.dimension
        bank = load_catalogue()
        self._definitions = {act.id: getattr(act.definition, lang) for act in bank.acts}
        self._outcomes = {entry.id: getattr(entry.definition, lang) for entry in bank.people.outcomes}
        whole = json.dumps([self._file.model_dump(mode="json"), self._definitions], ensure_ascii=False, sort_keys=True)
        self.sha = hashlib.sha256(whole.encode()).hexdigest()

    @property
    def paired(self) -> tuple[str, ...]:
        """The dimensions in which two talks are compared; the companion's only."""
        return _PAIRED

    @property
    def again(self) -> str:
        """What a second try is told; `$fault` stands for what was wrong."""
        return self._file.reask.json_

    def talk_question(self, talk: Conversation, names: Sequence[str]) -> tuple[str, str]:
        """System and user message that ask for the levels of one talk, in the order of `names`."""
        texts = self._file.talk
        outcome = self._outcomes.get(talk.meta.outcome or "")
        facts = {
            "band": self._band(talk.meta.age_band),
            "outcome": Template(texts.outcome).substitute(outcome=outcome) if outcome else "",
            "dimensions": "\n".join(self._described(name) for name in names),
            "talk": as_lines(talk),
        }
        return texts.system.strip(), Template(texts.user).substitute(facts).strip()

    def pair_question(self, first: Conversation, second: Conversation) -> tuple[str, str]:
        """System and user message that ask which of two talks is better, in each dimension and overall."""
        texts = self._file.pair
        facts = {
            "band": self._band(first.meta.age_band or second.meta.age_band),
            "dimensions": "\n".join(self._described(name) for name in self.paired),
            "first": as_lines(first),
            "second": as_lines(second),
        }
        return texts.system.strip(), Template(texts.user).substitute(facts).strip()

    def _band(self, band: AgeBand | None) -> str:
        return str(band) if band else self._file.words.unknown_band

    def _described(self, name: str) -> str:
        """A dimension for the judge: its name, what it is, and its levels, one a line."""
        dimension = self.dimensions[name]
        about = self._definitions[dimension.act] if dimension.act else dimension.about
        return "\n".join((f"{name}: {about}", *(f"  {level}  {text}" for level, text in enumerate(dimension.levels))))


@cache
def load_rubric(lang: Lang) -> Rubric:
    """The rubric as it ships. `DataError` names the key that is wrong."""
    return Rubric(lang)


def as_lines(talk: Conversation) -> str:
    """A talk as JSON, one turn a line, numbered from 1 without its system turns: nothing in it can end the quotation."""
    names = {"user": "child", "assistant": "companion"}
    spoken = [turn for turn in talk.turns if turn.role in names]
    rows = ({"n": n, "who": names[turn.role], "text": turn.content} for n, turn in enumerate(spoken, start=1))
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def rater(judge: str, round_: int = 0) -> str:
    """The name of a judge in one of its rounds."""
    return f"{judge}{AGAIN}{round_}" if round_ else judge
