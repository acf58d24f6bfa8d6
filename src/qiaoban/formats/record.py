"""What every reader and writer of a format shares: a raw record with its place, and what a format cannot hold."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from qiaoban.conversation import Conversation, Turn
from qiaoban.errors import DataError

Item = TypeVar("Item")
Notes = Counter[str]  # what happened while reading that is no error, and how often
OnBad = Callable[[DataError], None]
LONGEST = 16 * 2**20  # bytes of one record: more is no talk, and would not stream


class CannotHoldError(Exception):
    """A format has no way to say this talk without changing who says what. The writer leaves the talk out and counts it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One raw record: a JSON text, a row that is parsed already, or the text of one file. `part` names it inside the file."""

    path: Path
    line: int | None = None
    part: str = ""
    text: str = ""
    value: Mapping[str, Any] | None = None

    def error(self, message: str, *, hint: str = "") -> DataError:
        """A `DataError` that names the place of this record."""
        return DataError(f"{self.part}: {message}" if self.part else message, path=self.path, line=self.line, hint=hint)

    def fields(self) -> Mapping[str, Any]:
        """The JSON object that the record is."""
        if self.value is not None:
            return self.value
        try:
            value = json.loads(self.text)
        except json.JSONDecodeError as error:
            raise self.error(
                f"not JSON: {error.msg} at character {error.colno}, near {shorten(self.text[max(0, error.pos - 20) :])}",
                hint="the line is cut or damaged: mend it or take it out",
            ) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets within brackets
            raise self.error(f"not JSON that can be read: {error}") from None
        return self.mapping(value, "record")

    def mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        """`value`, which must be an object."""
        if not isinstance(value, Mapping):
            raise self.error(f"{key}: an object is wanted (found {shorten(value)})")
        return value

    def items(self, value: Any, key: str) -> list[Any]:
        """`value`, which must be a list with something in it."""
        if not isinstance(value, list) or not value:
            raise self.error(f"{key}: a list with at least one entry is wanted (found {shorten(value)})")
        return value

    def words(self, value: Any, key: str) -> str:
        """`value`, which must be text that can be written down again."""
        if not isinstance(value, str):
            raise self.error(f"{key}: text is wanted (found {shorten(value)})")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(f"{key}: there is half of a character in it (found {shorten(value)})") from None
        return value

    def optional(self, value: Any, key: str) -> str | None:
        """As `words`, where nothing is fine too, also as pandas writes it: NaN, the only value that is not itself."""
        return None if value is None or value != value else self.words(value, key)  # noqa: PLR0124

    def need(self, row: Mapping[str, Any], key: str) -> Any:
        """The value of `key`, which must be there."""
        if key not in row:
            raise self.error(f"there is no key {key!r} (found {shorten(', '.join(map(str, row)))})")
        return row[key]

    def name(self, value: Any, turns: Iterable[Turn]) -> str:
        """The id that the source gives, else one from the content."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or value == "":
            return content_id(turns)
        return self.words(value, "id")


def content_id(turns: Iterable[Turn]) -> str:
    """16 hexadecimal digits that roles and words decide: equal talks have equal ids, in every run and on every machine."""
    said = json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def shorten(value: Any, limit: int = 60) -> str:
    """A value for a message."""
    text = repr(value[: limit * 2] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def note_ignored(row: Mapping[str, Any], known: Iterable[str], notes: Notes) -> None:
    """Count the keys that a reader does not know."""
    for key in row.keys() - set(known):
        if row[key] not in (None, "", [], {}):
            notes[f"ignored key {shorten(key)}"] += 1


@dataclass(kw_only=True)
class Loss:
    """What was written, and what the format could not hold: `lost` by field, `left_out` whole talks by reason."""

    talks: int = 0
    turns: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.lost or self.left_out)


# Turns that a format cannot hold as they are; each makes a talk shorter by one.
SYSTEM, UNANSWERED, OPENING, JOINED = "system turns", "unanswered turns", "opening turns", "turns joined with the next"
SHORTER = (SYSTEM, UNANSWERED, OPENING, JOINED)
REPEATED = "repeated ids, made unique"
EDGES = "spaces or line ends of a turn"


def count_lost(talk: Conversation, keeps: frozenset[str], lost: Counter[str]) -> None:
    """Count what `talk` says of itself and a format that keeps only `keeps` does not."""
    if "id" not in keeps and talk.id != content_id(talk.turns):
        lost["id"] += 1
    for label in ("acts", "emotion", "distress"):
        if f"turn {label}" not in keeps:
            lost[f"turn {label}"] += sum(getattr(turn, label) not in (None, ()) for turn in talk.turns)
    for key, value in talk.meta:
        if value is not None and f"meta.{key}" not in keeps:
            lost[f"meta.{key}"] += 1
    if "provenance" not in keeps and any(value is not None for _, value in talk.provenance):
        lost["provenance"] += 1
    if "split" not in keeps and talk.split is not None:
        lost["split"] += 1


@dataclass(frozen=True, kw_only=True)
class Format(Generic[Item]):
    """A way to write talks or pairs down. `looks` tells whether a first record is of it; `encode` counts what it drops."""

    name: str
    about: str
    looks: Callable[[Mapping[str, Any]], bool]
    decode: Callable[[Record, Notes], Item]
    encode: Callable[[Item, Counter[str]], list[Any]]
    save: Callable[[Path, Iterable[Any]], None]
    keeps: frozenset[str] = frozenset()
    info: Mapping[str, Any] | None = None  # its entry in LLaMA-Factory's dataset_info.json
