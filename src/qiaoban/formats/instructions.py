"""Questions with an answer: Alpaca (with history and system) and BELLE (single, and a talk told in the question).

The two look alike and stand in one file often, so that one reader takes both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qiaoban.conversation import Conversation, Turn
from qiaoban.formats.record import (
    EDGES,
    JOINED,
    OPENING,
    SYSTEM,
    UNANSWERED,
    CannotHoldError,
    Format,
    Notes,
    Record,
    note_ignored,
)
from qiaoban.formats.store import save_array, save_lines

_MARK = re.compile(r"(?:^|\n)\s*(Human|Assistant)\s*[:：]")
_ANY_MARK = re.compile(r"(?:Human|Assistant)\s*[:：]")
_KNOWN = ("id", "instruction", "input", "output", "history", "system")
Pair = tuple[str, str]


def question_pairs(talk: Conversation, lost: Counter[str], *, system: bool) -> tuple[str, list[Pair]]:
    """The system text and the talk as questions with answers. Two turns of one speaker become one, and are counted.

    A first turn of the companion and a last one of the child have no partner: they are left out and counted.
    """
    turns = list(talk.turns)
    text = turns.pop(0).content if system and turns[0].role == "system" and turns[0].content else ""
    lost[SYSTEM] += sum(turn.role == "system" for turn in turns)
    joined: list[Turn] = []
    for turn in turns:
        if turn.role == "system":
            continue
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(role=turn.role, content=f"{joined[-1].content}\n{turn.content}")
            lost[JOINED] += 1
        else:
            joined.append(turn)
    if joined and joined[0].role == "assistant":
        del joined[0]
        lost[OPENING] += 1
    if len(joined) % 2:
        del joined[-1]
        lost[UNANSWERED] += 1
    if not joined:
        raise CannotHoldError("there is no question with an answer")
    return text, [(ask.content, reply.content) for ask, reply in zip(joined[::2], joined[1::2], strict=True)]


def _read(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    question = record.words(record.need(row, "instruction"), "instruction")
    if extra := record.optional(row.get("input"), "input"):
        question = f"{question}\n{extra}" if question else extra
    answer = record.words(record.need(row, "output"), "output")
    turns = [*_history(record, row.get("history") or []), *_told(question), Turn(role="assistant", content=answer)]
    if system := record.optional(row.get("system"), "system"):
        turns.insert(0, Turn(role="system", content=system))
    note_ignored(row, _KNOWN, notes)
    return Conversation(id=record.name(row.get("id"), turns), turns=tuple(turns))


def _history(record: Record, value: Any) -> list[Turn]:
    if not isinstance(value, list):
        raise record.error("history: a list of [question, answer] is wanted")
    turns: list[Turn] = []
    for place, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise record.error(f"history.{place}: [question, answer] is wanted")
        ask, reply = (record.words(text, f"history.{place}") for text in pair)
        turns += [Turn(role="user", content=ask), Turn(role="assistant", content=reply)]
    return turns


def _is_told(question: str) -> bool:
    """BELLE's second form: the question holds the talk so far and stops where the assistant is to speak."""
    marks = list(_MARK.finditer(question))
    if len(marks) < 2 or marks[-1][1] != "Assistant":
        return False
    return not question[: marks[0].start()].strip() and not question[marks[-1].end() :].strip()


def _told(question: str) -> list[Turn]:
    if not _is_told(question):
        return [Turn(role="user", content=question)]
    marks = list(_MARK.finditer(question))
    ends = [mark.start() for mark in marks[1:]]
    return [
        Turn(role="user" if mark[1] == "Human" else "assistant", content=question[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=False)
    ]


def _write_alpaca(talk: Conversation, lost: Counter[str]) -> list[Any]:
    system, pairs = question_pairs(talk, lost, system=True)
    if _is_told(pairs[-1][0]):
        raise CannotHoldError("a turn reads like a talk told by BELLE")
    history = [list(pair) for pair in pairs[:-1]]
    ask, reply = pairs[-1]
    return [{"instruction": ask, "input": "", "output": reply, "system": system, "history": history}]


def _write_belle(talk: Conversation, lost: Counter[str]) -> list[Any]:
    _, pairs = question_pairs(talk, lost, system=False)
    texts = [text for pair in pairs for text in pair]
    if any(_ANY_MARK.search(text) for text in texts):
        raise CannotHoldError("a turn holds a speaker's mark")
    if len(pairs) == 1:
        return [{"instruction": pairs[0][0], "input": "", "output": pairs[0][1]}]
    lost[EDGES] += sum(text != text.strip() for text in texts[:-1])
    return [{"instruction": _tell(pairs), "input": "", "output": pairs[-1][1]}]


def _tell(pairs: Sequence[Pair]) -> str:
    before = "".join(f"Human:{ask}\nAssistant:{reply}\n" for ask, reply in pairs[:-1])
    return f"{before}Human:{pairs[-1][0]}\nAssistant:"


def _looks(row: Mapping[str, Any]) -> bool:
    return {"instruction", "output"} <= row.keys() and not row.keys() & {"chosen", "kto_tag"}


BELLE = Format(
    name="belle",
    about='JSON lines {"instruction", "input", "output"}; of several turns, "Human:…\\nAssistant:" stands in the instruction',
    looks=lambda row: _looks(row) and isinstance(row["instruction"], str) and _is_told(row["instruction"]),
    decode=_read,
    encode=_write_belle,
    save=save_lines,
    info={"columns": {"prompt": "instruction", "query": "input", "response": "output"}},
)
ALPACA = Format(
    name="alpaca",
    about='a JSON array or lines {"instruction", "input", "output", "history", "system"}',
    looks=_looks,
    decode=_read,
    encode=_write_alpaca,
    save=save_array,
    info={
        "columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    },
)
