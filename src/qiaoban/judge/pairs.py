"""Which of two talks is better: asked twice with the sides exchanged, for judges prefer what they read first.

A verdict that does not survive the exchange is `unclear`; how often that happens is told with the result (Zheng et al. 2023,
"Judging LLM-as-a-judge", on position bias).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from qiaoban.conversation import Conversation, Turn, language
from qiaoban.errors import DataError
from qiaoban.judge.evidence import Evidence
from qiaoban.judge.rubric import OVERALL, SEPARATOR, Rubric, load_rubric, rater
from qiaoban.teacher.answers import BadReplyError, json_of, validated
from qiaoban.teacher.ask import Ask, Teacher

Verdict = Literal["a", "b", "same", "unclear"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_TOKENS = 3000


@dataclass(frozen=True)
class PairItem:
    """Two talks about the same thing, `a` of one system and `b` of another, that one judge is asked about."""

    a: Conversation
    b: Conversation
    judge: str

    @property
    def id(self) -> str:
        """Of the ledger: the judge, the talk."""
        return f"{rater(self.judge)}{SEPARATOR}{self.a.id}"

    @property
    def sha(self) -> str:
        """Changes with either talk and with the rubric."""
        whole = load_rubric(language(self.a)).sha + self.a.to_json() + self.b.to_json()
        return hashlib.sha256(whole.encode()).hexdigest()


def matched(a: Iterable[Conversation], b: Iterable[Conversation], judge: str) -> Iterator[PairItem]:
    """Talks of the same id, in the order of `b`. `DataError` where a talk of `b` has no partner."""
    partners = {talk.id: talk for talk in a}
    for talk in b:
        if talk.id not in partners:
            raise DataError(f"{talk.id!r} is in the second file only", hint="compare files that hold talks of the same ids")
        yield PairItem(partners[talk.id], talk, judge)


async def judge_pair(item: PairItem, teacher: Teacher) -> str:
    """The verdicts on a pair, as a line of JSON: `verdicts` by dimension, and both answers with their quotations."""
    rubric = load_rubric(language(item.a))
    forth = await _asked(item, rubric, teacher, swapped=False)
    back = await _asked(item, rubric, teacher, swapped=True)
    verdicts = {name: _verdict(forth[name].better, back[name].better) for name in forth}
    whole = {"id": item.a.id, "judge": item.judge, "rubric": rubric.sha[:16], "verdicts": verdicts}
    return json.dumps(whole | {"a_first": _plain(forth), "b_first": _plain(back)}, ensure_ascii=False)


class _Line(BaseModel):
    dimension: str
    quote_first: str | None = None
    quote_second: str | None = None
    why: str = ""
    better: Literal["first", "second", "same"]


class _Answer(BaseModel):
    comparisons: tuple[_Line, ...] = Field(min_length=1)


async def _asked(item: PairItem, rubric: Rubric, teacher: Teacher, *, swapped: bool) -> Mapping[str, _Line]:
    first, second = (item.b, item.a) if swapped else (item.a, item.b)
    system, user = rubric.pair_question(first, second)
    ask = Ask(
        card=item.id,
        slot="b_first" if swapped else "a_first",
        messages=(Turn(role="system", content=system), Turn(role="user", content=user)),
        max_tokens=_TOKENS,
        temperature=0.0,
        json=True,
        again=rubric.again,
    )
    return await teacher.ask(ask, lambda text: _read(text, rubric, first, second))


def _read(text: str, rubric: Rubric, first: Conversation, second: Conversation) -> Mapping[str, _Line]:
    """Every dimension and `overall` once. A preference needs a quotation from each side; `same` needs none."""
    lines = validated(_Answer, json_of(text)).comparisons
    by_name = {line.dimension: line for line in lines}
    if len(by_name) < len(lines):
        raise BadReplyError("twice", "a dimension was there twice")
    names = (*rubric.paired, OVERALL)
    if missing := [name for name in names if name not in by_name]:
        raise BadReplyError("missing_dimension", f"{missing[0]!r} was missing")
    sides = Evidence(first), Evidence(second)
    for name in rubric.paired:
        line = by_name[name]
        quotes = (line.quote_first, line.quote_second)
        wrong = [quote or "" for side, quote in zip(sides, quotes, strict=True) if side.turn_of(quote) is None]
        if line.better != "same" and wrong:
            raise BadReplyError("no_such_quote", f"a quotation for {name!r} does not stand in its talk: {wrong[0][:60]!r}")
    return {name: by_name[name] for name in names}


def _verdict(forth: str, back: str) -> Verdict:
    """What both answers say together: a side wins only if it wins from either place."""
    if forth == back == "same":
        return "same"
    if (forth, back) == ("first", "second"):
        return "a"
    return "b" if (forth, back) == ("second", "first") else "unclear"


def _plain(lines: Mapping[str, _Line]) -> dict[str, Any]:
    return {name: line.model_dump(exclude={"dimension"}) for name, line in lines.items()}
