"""Parquet as Hugging Face shows it: a strict `messages` column of {role, content}, everything else in columns beside it.

Rows of other data sets (ShareGPT, pairs, OpenAI messages in Parquet) are read too: a row is an object like a line of JSON.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from qiaoban.conversation import Conversation, Meta, Provenance, Turn
from qiaoban.errors import DataError
from qiaoban.files import write_atomically
from qiaoban.formats.chat import EVERYTHING, messages_of, read_messages
from qiaoban.formats.record import Format, Notes, Record, note_ignored

MAGIC = b"PAR1"
_ROWS = 4096  # read or written at once
_CHARACTERS = 2**24  # in one part at most, about: what is held in memory
_META, _PROVENANCE = tuple(Meta.model_fields), tuple(Provenance.model_fields)
_SCHEMA = pl.Schema(
    {
        "id": pl.String,
        "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
        "turns": pl.List(pl.Struct({"acts": pl.List(pl.String), "emotion": pl.String, "distress": pl.Int8})),
        **{key: pl.Boolean if key == "synthetic" else pl.String for key in (*_META, *_PROVENANCE, "split")},
    }
)


def parquet_records(path: Path) -> Iterator[Record]:
    """Rows without their empty columns, a few thousand in memory at once."""
    with _explained(path):
        frame = pl.scan_parquet(path)
        total = frame.select(pl.len()).collect().item()
    for start in range(0, total, _ROWS):
        with _explained(path):
            rows = frame.slice(start, _ROWS).collect().to_dicts()
        for number, row in enumerate(rows, start=start + 1):
            value = {key: each for key, each in row.items() if each is not None}
            yield Record(path=path, part=f"record {number}", value=value)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the Parquet file cannot be read: {reason}", path=path, hint="fetch or write it again") from None


def _read(record: Record, notes: Notes) -> Conversation:
    row = record.fields()
    turns = read_messages(record, record.need(row, "messages"), "messages", notes)
    labels = row.get("turns") or [{} for _ in turns]
    if not isinstance(labels, list) or len(labels) != len(turns):
        raise record.error(f"turns: one entry for each of {len(turns)} messages is wanted")
    note_ignored(row, _SCHEMA, notes)
    said = [
        Turn(role=turn.role, content=turn.content, **{key: each for key, each in (label or {}).items() if each is not None})
        for turn, label in zip(turns, labels, strict=True)
    ]
    return Conversation(
        id=record.name(row.get("id"), said),
        turns=tuple(said),
        meta=Meta(**{key: row[key] for key in _META if key in row}),
        provenance=Provenance(**{key: row[key] for key in _PROVENANCE if key in row}),
        split=row.get("split"),
    )


def _write(talk: Conversation, lost: Counter[str]) -> list[Any]:
    labels = [{"acts": list(turn.acts), "emotion": turn.emotion, "distress": turn.distress} for turn in talk.turns]
    own = {"id": talk.id, "messages": messages_of(talk.turns), "turns": labels, "split": talk.split}
    return [own | talk.meta.model_dump(mode="json") | talk.provenance.model_dump(mode="json")]


def _save(path: Path, rows: Iterable[Any]) -> None:
    """Parts beside the target, then one file of them: no more than a part is ever in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        parts: list[Path] = []
        for part in _batches(rows):
            parts.append(Path(folder) / f"{len(parts):08}.parquet")
            pl.DataFrame(part, schema=_SCHEMA).write_parquet(parts[-1])
        with write_atomically(path) as file:
            if parts:
                pl.scan_parquet(parts).sink_parquet(file, row_group_size=_ROWS)
            else:
                pl.DataFrame(schema=_SCHEMA).write_parquet(file)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += sum(len(message["content"]) for message in row["messages"])
        if len(batch) >= _ROWS or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


PARQUET = Format(
    name="parquet",
    about="a Parquet file as Hugging Face reads it: a column `messages`, all else beside it",
    looks=lambda row: {"id", "messages", "turns"} <= row.keys() and isinstance(row["turns"], list),
    decode=_read,
    encode=_write,
    save=_save,
    keeps=EVERYTHING,
)
