"""A whole talk as one marked-up text in {topic, input}: Baize's, and the text that QiaoBan was trained on in 2023.

The mark of a speaker inside a turn would put words into another mouth when it is read back, so that such a talk is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qiaoban.conversation import Conversation, Meta, Turn
from qiaoban.formats.record import EDGES, SYSTEM, CannotHoldError, Format, Notes, Record, note_ignored, shorten
from qiaoban.formats.store import save_array
from qiaoban.formats.words import speaker

_KEEPS = frozenset(["meta.topic"])
_OPENING = "The conversation between human and AI assistant."
_BAIZE = re.compile(r"\[\|(Human|AI)\|\]")
_END = "</s>"
CHILD, COMPANION = speaker("qiaoban2023", "child"), speaker("qiaoban2023", "companion")
_LABEL = re.compile(f"({CHILD}|{COMPANION})[：:]")
_LINES = re.compile(f"\n(?=(?:{CHILD}|{COMPANION})[：:])")  # of a text that does not close its turns


def split_system(talk: Conversation, lost: Counter[str]) -> tuple[str, list[Turn]]:
    """The text of a first system turn, and the turns of speakers; other system turns are counted as lost."""
    first = talk.turns[0]
    spoken = [turn for turn in talk.turns if turn.role != "system"]
    if not spoken:
        raise CannotHoldError("nobody speaks in it")
    lost[SYSTEM] += len(talk.turns) - len(spoken) - (first.role == "system")
    return first.content if first.role == "system" else "", spoken


def _conversation(record: Record, row: Mapping[str, Any], preamble: str, turns: list[Turn], notes: Notes) -> Conversation:
    if not turns:
        raise record.error(f"input: nobody speaks in it (found {shorten(row['input'])})")
    if preamble:
        turns.insert(0, Turn(role="system", content=preamble))
    note_ignored(row, ("id", "topic", "input"), notes)
    topic = record.optional(row.get("topic"), "topic")
    return Conversation(id=record.name(row.get("id"), turns), turns=tuple(turns), meta=Meta(topic=topic))


def _row(talk: Conversation, text: str) -> list[Any]:
    return [{"topic": talk.meta.topic, "input": text}]


def _read_baize(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    parts = _BAIZE.split(record.words(record.need(row, "input"), "input"))
    turns = [
        Turn(role="user" if mark == "Human" else "assistant", content=text.strip())
        for mark, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns and turns[-1] == Turn(role="user", content=""):  # where the next question would stand
        del turns[-1]
    preamble = parts[0].strip()
    return _conversation(record, row, "" if preamble == _OPENING else preamble, turns, notes)


def _write_baize(talk: Conversation, lost: Counter[str]) -> list[Any]:
    preamble, turns = split_system(talk, lost)
    texts = [preamble, *(turn.content for turn in turns)]
    if any(_BAIZE.search(text) for text in texts):
        raise CannotHoldError("a turn holds a speaker's mark")
    if talk.turns[0].role == "system" and preamble.strip() in {"", _OPENING}:
        lost[SYSTEM] += 1
        preamble = ""
    lost[EDGES] += sum(text != text.strip() for text in texts)
    marks = {"user": "[|Human|]", "assistant": "[|AI|]"}
    lines = [preamble.strip() or _OPENING, *(f"{marks[turn.role]} {turn.content}" for turn in turns)]
    if turns[-1].role == "assistant" or not turns[-1].content.strip():
        lines.append(marks["user"] + " ")
    return _row(talk, "\n".join(lines))


def _read_flat(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    text = record.words(record.need(row, "input"), "input")
    first = _LABEL.search(text)
    preamble = text[: first.start()].strip() if first else ""
    turns = []
    parts = (text.split(_END) if _END in text else _LINES.split(text)) if first else []
    for place, said in enumerate(parts):
        said = said[first.start() :] if first and place == 0 else said  # noqa: PLW2901 - without the preamble
        label = _LABEL.match(said.lstrip())
        if label:
            turns.append(Turn(role="user" if label[1] == CHILD else "assistant", content=said.lstrip()[label.end() :]))
        elif said.strip():
            raise record.error(f"input: part {place + 1} does not say who speaks (found {shorten(said)})")
    return _conversation(record, row, preamble, turns, notes)


def _write_flat(talk: Conversation, lost: Counter[str]) -> list[Any]:
    preamble, turns = split_system(talk, lost)
    if _LABEL.search(preamble) or any(_END in text for text in [preamble, *(turn.content for turn in turns)]):
        raise CannotHoldError("a turn holds a speaker's mark")
    if talk.turns[0].role == "system" and not preamble.strip():
        lost[SYSTEM] += 1
    lost[EDGES] += preamble != preamble.strip()
    return _row(talk, preamble.strip() + "".join(f"{_who(turn)}：{turn.content}{_END}" for turn in turns))


def _who(turn: Turn) -> str:
    return CHILD if turn.role == "user" else COMPANION


def _text(row: Mapping[str, Any]) -> str:
    return row["input"] if "topic" in row and isinstance(row.get("input"), str) else ""


def dialog_of(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as QiaoBan 2023 lists them."""
    return [{"text": turn.content, "speaker": _who(turn)} for turn in turns]


BAIZE = Format(
    name="baize",
    about='a JSON array or lines {"topic", "input": "…[|Human|] … [|AI|] …"}',
    looks=lambda row: bool(_BAIZE.search(_text(row))),
    decode=_read_baize,
    encode=_write_baize,
    save=save_array,
    keeps=_KEEPS,
)
QIAOBAN_FLAT = Format(
    name="qiaoban2023-flat",
    about=f'a JSON array or lines {{"topic", "input": "{CHILD}：…{_END}{COMPANION}：…{_END}"}}, the training text of 2023',
    looks=lambda row: bool(_LABEL.search(_text(row))),
    decode=_read_flat,
    encode=_write_flat,
    save=save_array,
    keeps=_KEEPS,
)
