"""The data set that QiaoBan released in 2023: {dialog_id, emotion, topic, dialog: [{text, speaker}]}.

It is read as it stands: that the child calls the assistant its mother is a matter for the rules, and not for a reader.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from qiaoban.conversation import Conversation, Meta, Turn
from qiaoban.formats.flat import CHILD, COMPANION, dialog_of, split_system
from qiaoban.formats.record import SYSTEM, Format, Notes, Record, note_ignored, shorten
from qiaoban.formats.store import save_array
from qiaoban.formats.words import feeling, feeling_word

_DIGITS = 15  # longer numbers lose digits in tools that read them as floats


def _read(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    turns = [
        _turn(record, each, f"dialog.{place}", notes)
        for place, each in enumerate(record.items(record.need(row, "dialog"), "dialog"))
    ]
    note_ignored(row, ("dialog_id", "emotion", "topic", "dialog"), notes)
    meta = Meta(
        topic=record.optional(row.get("topic"), "topic"),
        emotion=feeling(record.optional(row.get("emotion"), "emotion"), notes),
    )
    return Conversation(id=record.name(row.get("dialog_id"), turns), turns=tuple(turns), meta=meta)


def _turn(record: Record, value: Any, key: str, notes: Notes) -> Turn:
    said = record.mapping(value, key)
    who = record.need(said, "speaker")
    if who not in (CHILD, COMPANION):
        raise record.error(f"{key}.speaker: {CHILD} or {COMPANION} is wanted (found {shorten(who)})")
    note_ignored(said, ("text", "speaker"), notes)
    text = record.words(record.need(said, "text"), f"{key}.text")
    return Turn(role="user" if who == CHILD else "assistant", content=text)


def _write(talk: Conversation, lost: Counter[str]) -> list[Any]:
    _, turns = split_system(talk, lost)
    lost[SYSTEM] += talk.turns[0].role == "system"
    number = talk.id.isascii() and talk.id.isdigit() and talk.id == str(int(talk.id[:_DIGITS]))
    emotion = talk.meta.emotion
    return [
        {
            "dialog_id": int(talk.id) if number else talk.id,
            "emotion": feeling_word(emotion) if emotion else None,
            "topic": talk.meta.topic,
            "dialog": dialog_of(turns),
        }
    ]


QIAOBAN_2023 = Format(
    name="qiaoban2023",
    about='a JSON array or lines {"dialog_id", "emotion", "topic", "dialog": [{"text", "speaker"}]}',
    looks=lambda row: isinstance(row.get("dialog"), list),
    decode=_read,
    encode=_write,
    save=save_array,
    keeps=frozenset(["id", "meta.topic", "meta.emotion"]),
)
