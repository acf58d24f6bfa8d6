"""Levels for one talk: a judge finds evidence first, then a level, in every dimension; what is quoted must stand there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import Conversation, Turn, language
from qiaoban.judge.evidence import Evidence
from qiaoban.judge.rubric import SEPARATOR, Rubric, load_rubric, rater
from qiaoban.teacher.answers import BadReplyError, json_of, validated
from qiaoban.teacher.ask import Ask, Teacher

_TOKENS = 3000
_UNPROVED = 4  # dimensions without evidence that a second answer may have: more is a judge who does not read


class Level(BaseModel):
    """What one judge says of one dimension. `level` is None where nothing in the talk calls for it.

    `proved` is false where the quotation does not stand in the talk: such a level is kept to be seen, and never counted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    level: Literal[0, 1, 2] | None
    turn: int | None = None
    quote: str | None = None
    why: str = ""
    proved: bool = False

    @property
    def counted(self) -> int | None:
        """The level, if there is one and its evidence stands in the talk."""
        return self.level if self.proved else None


class Judgement(BaseModel):
    """All levels of one talk by one judge. `round_` is 0, 1, … where a judge is asked more than once."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    judge: str
    round: int = 0
    rubric: str
    own_teacher: bool = False  # the judge also wrote the talk: such judges prefer themselves
    levels: dict[str, Level]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)


@dataclass(frozen=True)
class TalkItem:
    """A talk that one judge is asked about. Every second round names the dimensions in the other order."""

    talk: Conversation
    judge: str
    round: int = 0

    @property
    def id(self) -> str:
        """Of the ledger: the judge, the round, the talk."""
        return f"{rater(self.judge, self.round)}{SEPARATOR}{self.talk.id}"

    @property
    def sha(self) -> str:
        """Changes with the talk and with the rubric."""
        return hashlib.sha256((load_rubric(language(self.talk)).sha + self.talk.to_json()).encode()).hexdigest()


async def judge_talk(item: TalkItem, teacher: Teacher) -> str:
    """The judgement of a talk, as a line of JSON. Raises `CardFailedError` where the judge cannot be read."""
    rubric = load_rubric(language(item.talk))
    names = tuple(rubric.dimensions)
    system, user = rubric.talk_question(item.talk, names if item.round % 2 == 0 else names[::-1])
    ask = Ask(
        card=item.id,
        slot="levels",
        messages=(Turn(role="system", content=system), Turn(role="user", content=user)),
        max_tokens=_TOKENS,
        temperature=0.0,
        json=True,
        again=rubric.again,
    )
    levels = await teacher.ask(ask, _Reader(item.talk, rubric).read)
    return Judgement(
        id=item.talk.id,
        judge=item.judge,
        round=item.round,
        rubric=rubric.sha[:16],
        own_teacher=item.talk.provenance.teacher == item.judge,
        levels=dict(levels),
    ).to_json()


class _Line(Level):
    dimension: str


class _Answer(BaseModel):
    judgements: tuple[_Line, ...] = Field(min_length=1)


@dataclass
class _Reader:
    """Reads the answers about one talk. The first must prove all that it says; a later one nearly all."""

    talk: Conversation
    rubric: Rubric
    _seen: int = field(default=0)

    def read(self, text: str) -> Mapping[str, Level]:
        """Every dimension once, in the order of the rubric. Raises `BadReplyError`."""
        self._seen += 1
        lines = validated(_Answer, json_of(text)).judgements
        by_name = {line.dimension: line for line in lines}
        if len(by_name) < len(lines):
            raise BadReplyError("twice", "a dimension was there twice")
        if unknown := sorted(set(by_name) - set(self.rubric.dimensions)):
            raise BadReplyError("unknown_dimension", f"{unknown[0]!r} is no dimension")
        if missing := [name for name in self.rubric.dimensions if name not in by_name]:
            raise BadReplyError("missing_dimension", f"{missing[0]!r} was missing")
        evidence = Evidence(self.talk)
        levels = {name: self._checked(by_name[name], evidence) for name in self.rubric.dimensions}
        unproved = [name for name, level in levels.items() if level.level is not None and not level.proved]
        if unproved and (self._seen == 1 or len(unproved) > _UNPROVED):
            name, quote = unproved[0], by_name[unproved[0]].quote or ""
            raise BadReplyError("no_such_quote", f"the quotation for {name!r} does not stand in the talk: {quote[:60]!r}")
        return levels

    def _checked(self, line: _Line, evidence: Evidence) -> Level:
        if line.level is None:
            return Level(level=None, why=line.why)
        turn = evidence.turn_of(line.quote, line.turn)
        return Level(level=line.level, turn=turn, quote=line.quote, why=line.why, proved=turn is not None)
