"""Lists of messages with a role: Qiaoban's own JSONL, OpenAI messages, ShareGPT."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qiaoban.conversation import Conversation, Role, Turn, parse_conversation
from qiaoban.errors import DataError
from qiaoban.formats.record import Format, Notes, Record, note_ignored, shorten
from qiaoban.formats.store import save_array, save_lines

EVERYTHING = frozenset(
    ["id", "turn acts", "turn emotion", "turn distress", "provenance", "split"]
    + [f"meta.{key}" for key in ("lang", "topic", "domain", "age_band", "emotion", "outcome", "risk", "relation")]
)
ROLES: Mapping[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
SHAREGPT: Mapping[Role, str] = {"user": "human", "assistant": "gpt", "system": "system"}
ROLE_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_OWN = {"id", "messages", "turns", "meta", "provenance", "split"}
_SHAREGPT_KEYS = ("conversations", "conversation")


def read_messages(record: Record, value: Any, key: str, notes: Notes) -> list[Turn]:
    """Turns of a list of {role, content} or {from, value}. `DataError` for a role that has no place in a talk."""
    return [read_message(record, each, f"{key}.{place}", notes) for place, each in enumerate(record.items(value, key))]


def read_message(record: Record, value: Any, key: str, notes: Notes) -> Turn:
    """One message."""
    message = record.mapping(value, key)
    role_key = "from" if "from" in message else "role"
    content_key = next((name for name in ("value", "content", "text") if name in message), "content")
    role = record.words(record.need(message, role_key), f"{key}.{role_key}")
    if role.lower() not in ROLES:
        raise record.error(
            f"{key}.{role_key}: {shorten(role)} has no place in a talk",
            hint=f"known are {', '.join(ROLES)}; take records with tools or pictures out",
        )
    note_ignored(message, (role_key, content_key), notes)
    content = _content(record, record.need(message, content_key), f"{key}.{content_key}")
    return Turn(role=ROLES[role.lower()], content=content)


def _content(record: Record, value: Any, key: str) -> str:
    """Text, also where it comes in parts as newer chat endpoints take it."""
    if not isinstance(value, list):
        return record.words(value, key)
    parts = [record.mapping(part, f"{key}.{place}") for place, part in enumerate(value)]
    for place, part in enumerate(parts):
        if part.get("type") != "text":
            raise record.error(f"{key}.{place}.type: only text can be read (found {shorten(part.get('type'))})")
    return "".join(record.words(part.get("text"), f"{key}.{place}.text") for place, part in enumerate(parts))


def messages_of(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """{role, content} and nothing else."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _is_own(row: Mapping[str, Any]) -> bool:
    return {"id", "messages"} <= row.keys() and (bool(row.keys() & (_OWN - {"id", "messages"})) or len(row) == 2)


def _read_own(record: Record, notes: Notes) -> Conversation:
    text = record.text or json.dumps(record.value, ensure_ascii=False)
    try:
        return parse_conversation(text)
    except DataError as error:
        raise record.error(error.message) from None


def _read_openai(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    turns = read_messages(record, record.need(row, "messages"), "messages", notes)
    note_ignored(row, ("id", "messages"), notes)
    return Conversation(id=record.name(row.get("id"), turns), turns=tuple(turns))


def _read_sharegpt(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    key = next((name for name in _SHAREGPT_KEYS if name in row), _SHAREGPT_KEYS[0])
    turns = read_messages(record, record.need(row, key), key, notes)
    if system := record.optional(row.get("system"), "system"):
        turns.insert(0, Turn(role="system", content=system))
    note_ignored(row, ("id", key, "system"), notes)
    return Conversation(id=record.name(row.get("id"), turns), turns=tuple(turns))


def _write_sharegpt(talk: Conversation, lost: Counter[str]) -> list[Any]:
    return [{"id": talk.id, "conversations": [{"from": SHAREGPT[turn.role], "value": turn.content} for turn in talk.turns]}]


QIAOBAN = Format(
    name="qiaoban",
    about="Qiaoban's own JSON lines: messages, and everything that is known of them",
    looks=_is_own,
    decode=_read_own,
    encode=lambda talk, lost: [talk.to_json()],
    save=save_lines,
    keeps=EVERYTHING,
)
OPENAI = Format(
    name="openai",
    about='JSON lines {"messages": [{"role", "content"}]}',
    looks=lambda row: isinstance(row.get("messages"), list) and not row.keys() & {"label", "kto_tag", "chosen"},
    decode=_read_openai,
    encode=lambda talk, lost: [{"messages": messages_of(talk.turns)}],
    save=save_lines,
    info={"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": ROLE_TAGS},
)
SHAREGPT_FORMAT = Format(
    name="sharegpt",
    about='a JSON array or lines {"conversations": [{"from": human|gpt|system, "value"}]}',
    looks=lambda row: bool(row.keys() & set(_SHAREGPT_KEYS)) and not row.keys() & {"chosen", "rejected", "kto_tag"},
    decode=_read_sharegpt,
    encode=_write_sharegpt,
    save=save_array,
    keeps=frozenset(["id"]),
    info={"formatting": "sharegpt", "columns": {"messages": "conversations"}},
)
