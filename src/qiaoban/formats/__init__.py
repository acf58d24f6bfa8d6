"""Reads and writes the data sets of others, one talk or one preference pair at a time.

    detect(path)                       which format a file has, by what is in it
    read_talks(path), read_pairs(path) stream it
    write_talks(...), write_pairs(...) write it whole or not at all, and say what the format could not hold

`TALKS` and `PAIRS` name the formats. What happens on reading that is no error (a key that is ignored, an emotion word without a
counterpart, two talks with one id) is counted in `notes`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from qiaoban.conversation import Conversation, explain, open_bytes
from qiaoban.errors import DataError, UsageError
from qiaoban.formats import chat, cpsycoun, flat, instructions, pairs, parquet, qiaoban2023
from qiaoban.formats.pairs import Judged, Pair
from qiaoban.formats.record import (
    LONGEST,
    REPEATED,
    SHORTER,
    CannotHoldError,
    Format,
    Loss,
    Notes,
    OnBad,
    Record,
    content_id,
    count_lost,
    shorten,
)
from qiaoban.formats.store import json_records, raise_bad

__all__ = [
    "LONGEST",
    "PAIRS",
    "TALKS",
    "Format",
    "Loss",
    "Notes",
    "OnBad",
    "Pair",
    "content_id",
    "detect",
    "read_pairs",
    "read_talks",
    "write_pairs",
    "write_talks",
]

# In the order in which they are looked for.
TALKS: Mapping[str, Format[Conversation]] = {
    each.name: each
    for each in (
        parquet.PARQUET,
        chat.QIAOBAN,
        chat.OPENAI,
        chat.SHAREGPT_FORMAT,
        instructions.BELLE,
        instructions.ALPACA,
        flat.BAIZE,
        qiaoban2023.QIAOBAN_2023,
        flat.QIAOBAN_FLAT,
        cpsycoun.CPSYCOUN,
    )
}
PAIRS: Mapping[str, Format[Pair | Judged]] = {
    each.name: each for each in (pairs.PAIRS, pairs.TRL_KTO, pairs.LLAMAFACTORY, pairs.LLAMAFACTORY_KTO, pairs.TRL)
}
_ALL: Mapping[str, Format[Any]] = {**PAIRS, **TALKS}
_TRIED = 20  # records that are looked at where the first ones are damaged
_HEAD = 2**16
Item = TypeVar("Item")


class _Named(Protocol):
    @property
    def id(self) -> str: ...

    def model_copy(self, *, update: Mapping[str, Any]) -> Any: ...


Thing = TypeVar("Thing", bound=_Named)


def detect(path: Path | str, *, limit: int = LONGEST) -> str:
    """The name of the format that a file has, judged by its first sound record. `DataError` lists what was looked for."""
    path = Path(path)
    faults: list[DataError] = []
    is_parquet = _is_parquet(path)
    is_text = not is_parquet and _is_text(path)
    for each in _first(path, limit, faults):
        if is_text and cpsycoun.looks_like_talk(each.text):
            return cpsycoun.CPSYCOUN.name
        try:
            row = each.fields()
        except DataError as error:
            faults.append(error)
            continue
        found = _of_row(row, is_parquet=is_parquet)
        if found:
            return found
        keys = shorten(", ".join(map(str, row)), 120)
        raise each.error(f"no known format has a record with the keys {keys}", hint=_looked_for())
    if faults:
        raise DataError(f"no known format; {faults[0].message}", hint=f"{faults[0].hint or 'mend it'}; {_looked_for()}")
    raise DataError("the file is empty: its format cannot be told", path=path, hint="name the format")


def _first(path: Path, limit: int, faults: list[DataError]) -> Iterator[Record]:
    """The first records; faults of a record or of the file itself are gathered."""
    try:
        yield from islice(_records(path, limit, faults.append), _TRIED)
    except DataError as error:
        faults.append(error)


def _of_row(row: Mapping[str, Any], *, is_parquet: bool) -> str | None:
    for form in _ALL.values():
        if form is parquet.PARQUET and not is_parquet:
            continue
        if form.looks(row):
            return form.name
    return None


def _looked_for() -> str:
    return "looked for\n" + "\n".join(f"  {form.name}: {form.about}" for form in _ALL.values())


def read_talks(
    path: Path | str,
    format: str | None = None,  # noqa: A002 - the word that everybody uses
    *,
    notes: Notes | None = None,
    on_bad: OnBad = raise_bad,
    limit: int = LONGEST,
) -> Iterator[Conversation]:
    """Stream the talks of a file; its format is detected unless it is named.

    A bad record raises `DataError` with path:line, or goes to `on_bad`, which then decides. `limit` is in bytes a record.
    An id that was there before gets a number: `id-2`.
    """
    notes = Counter() if notes is None else notes
    form = _form(TALKS, format or detect(path, limit=limit), "talks", "pairs")
    yield from _unique(_decoded(form, Conversation, Path(path), notes, on_bad=on_bad, limit=limit), notes)


def read_pairs(
    path: Path | str,
    format: str | None = None,  # noqa: A002
    *,
    notes: Notes | None = None,
    on_bad: OnBad = raise_bad,
    limit: int = LONGEST,
) -> Iterator[Pair]:
    """As `read_talks`, for preference pairs. Replies that were judged one by one are put together by their prompt."""
    notes = Counter() if notes is None else notes
    form = _form(PAIRS, format or detect(path, limit=limit), "pairs", "talks")
    yield from _unique(pairs.match(_decoded(form, Pair, Path(path), notes, on_bad=on_bad, limit=limit), notes), notes)


def write_talks(path: Path | str, talks: Iterable[Conversation], format: str) -> Loss:  # noqa: A002
    """Write talks whole or not at all; returns what was written and what the format could not hold."""
    form = _form(TALKS, format, "talks", "pairs")
    loss = Loss()

    def lose(talk: Conversation, lost: Counter[str]) -> None:
        count_lost(talk, form.keeps, lost)
        loss.turns += len(talk.turns) - sum(lost[key] for key in SHORTER)

    return _write(Path(path), _encoded(form, talks, loss, lose), form, loss)


def write_pairs(path: Path | str, items: Iterable[Pair], format: str) -> Loss:  # noqa: A002
    """As `write_talks`, for preference pairs."""
    form = _form(PAIRS, format, "pairs", "talks")
    loss = Loss()

    def lose(pair: Pair | Judged, lost: Counter[str]) -> None:
        if isinstance(pair, Pair):
            pairs.count_lost(pair, form.keeps, lost)
            loss.turns += sum(map(len, pair.sides().values()))

    return _write(Path(path), _encoded(form, items, loss, lose), form, loss)


def _encoded(
    form: Format[Item], items: Iterable[Item], loss: Loss, lose: Callable[[Item, Counter[str]], None]
) -> Iterator[Any]:
    for item in items:
        lost: Counter[str] = Counter()
        try:
            rows = form.encode(item, lost)
        except CannotHoldError as error:
            loss.left_out[str(error)] += 1
            continue
        lose(item, lost)
        loss.lost += lost
        loss.talks += 1
        yield from rows


def _write(path: Path, rows: Iterator[Any], form: Format[Any], loss: Loss) -> Loss:
    try:
        form.save(path, rows)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    return loss


def _form(forms: Mapping[str, Format[Item]], name: str, kind: str, other: str) -> Format[Item]:
    if name in forms:
        return forms[name]
    if name in _ALL:
        raise UsageError(f"{name} holds {other}, not {kind}", hint=f"formats of {kind}: {', '.join(forms)}")
    raise UsageError(f"there is no format {name!r}", hint=f"there are: {', '.join(_ALL)}")


def _decoded(
    form: Format[Item], kind: type[BaseModel], path: Path, notes: Notes, *, on_bad: OnBad, limit: int
) -> Iterator[Item]:
    for record in _records(path, limit, on_bad):
        try:
            item = form.decode(record, notes)
        except ValidationError as error:
            on_bad(record.error(explain(error, kind)))
        except DataError as error:
            on_bad(error)
        else:
            yield item


def _records(path: Path, limit: int, on_bad: OnBad) -> Iterator[Record]:
    """The raw records of a file, whatever it is stored as."""
    if _is_parquet(path):
        return parquet.parquet_records(path)
    if _is_text(path):
        return cpsycoun.text_records(path, limit, on_bad)
    return json_records(path, limit, on_bad)


def _is_parquet(path: Path) -> bool:
    if path.is_dir():
        return False
    with open_bytes(path) as file:
        return file.read(len(parquet.MAGIC)) == parquet.MAGIC


def _is_text(path: Path) -> bool:
    """A folder or an archive of texts, or a text that is no JSON and in which the speakers of CPsyCoun speak."""
    if path.is_dir():
        return True
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        return True
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")):
        return False
    return cpsycoun.looks_like_talk(head.decode("utf-8-sig", "ignore"))


def _unique(items: Iterable[Thing], notes: Notes) -> Iterator[Thing]:
    """Every id once. Eight bytes an id are kept, so that millions fit."""
    seen: set[int] = set()
    times: Counter[str] = Counter()
    for item in items:
        name, mark = item.id, _mark(item.id)
        while mark in seen:
            notes[REPEATED] += name == item.id
            times[item.id] += 1
            name = f"{item.id}-{times[item.id] + 1}"
            mark = _mark(name)
        seen.add(mark)
        yield item if name == item.id else item.model_copy(update={"id": name})


def _mark(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
