"""Where records stand: JSON lines, one JSON array, a Parquet file, an archive of text files. All of them are streamed.

A record is never longer than a limit, so that a damaged file (one line of 200 MB, an array that is never closed) costs no more
memory than a sound one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from qiaoban.conversation import decode_lines, open_bytes
from qiaoban.errors import DataError
from qiaoban.files import write_atomically
from qiaoban.formats.record import LONGEST, OnBad, Record, shorten

_CHUNK = 2**18
_CUT_ESCAPE = 16  # a fault so close to the end of what was read may be a value that is cut there
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TO_UTF8 = "convert the file to UTF-8, for instance with `iconv -f UTF-16 -t UTF-8`"


def raise_bad(error: DataError) -> None:
    """What is done with a bad record unless the caller says otherwise."""
    raise error


def json_records(path: Path, limit: int = LONGEST, on_bad: OnBad = raise_bad) -> Iterator[Record]:
    """Records of JSON lines or of one JSON array, whichever it is. Bad lines go to `on_bad`; a bad array always raises."""
    with open_bytes(path) as file:
        head = file.read(_CHUNK)
        if head.startswith(_UTF16):
            raise DataError("the file is UTF-16, not UTF-8", path=path, hint=_TO_UTF8)
        file.seek(0)
        if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield from _Array(path, file, limit)
            return
        for number, line in decode_lines(_bounded(file, path, limit, on_bad), path):
            if isinstance(line, DataError):
                on_bad(line)
            else:
                yield Record(path=path, line=number, text=line)


def _bounded(file: IO[bytes], path: Path, limit: int, on_bad: OnBad) -> Iterator[bytes]:
    """Lines of at most `limit` bytes. A longer one is reported, skipped without being held, and stands as a blank line."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(_CHUNK)
            size += len(line)
        on_bad(_too_long(path, number, size, limit))
        yield b"\n"


def _too_long(path: Path, line: int, size: int, limit: int, part: str = "") -> DataError:
    return DataError(
        f"{part}the record is longer than {limit / 2**20:.3g} MB ({size / 2**20:,.1f} MB were read)",
        path=path,
        line=line,
        hint="no talk is so long: look whether newlines are missing, or raise the limit",
    )


class _Array:
    """Splits a JSON array into its elements without reading more than one of them and a little."""

    def __init__(self, path: Path, file: IO[bytes], limit: int) -> None:
        self._path, self._file, self._limit = path, file, limit
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder()
        self._text, self._at = "", 0  # what was read, and how far it was used
        self._ended = False
        self._line, self._number = 1, 0
        self._bytes = 0

    def __iter__(self) -> Iterator[Record]:
        self._take("[")
        if self._next() != "]":
            while True:
                yield self._element()
                if self._next() != ",":
                    break
                self._take(",")
                self._next()
        if self._next() != "]":
            found = shorten(self._text[self._at : self._at + 20]) if self._next() else "the end of the file"
            raise self._error(f"',' or ']' is wanted after a record (found {found})")
        self._take("]")
        if self._next():
            raise self._error(f"there is more after the array (found {shorten(self._text[self._at : self._at + 20])})")

    def _element(self) -> Record:
        """The value at the cursor, which moves behind it."""
        self._number += 1
        line, want = self._line, _CHUNK
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _CUT_ESCAPE
                if not cut or self._ended:
                    raise self._error(f"not JSON: {error.msg} near {shorten(self._text[max(0, error.pos - 20) :])}") from None
            except (ValueError, RecursionError) as error:
                raise self._error(f"not JSON that can be read: {error}") from None
            else:
                break
            if len(self._text) - self._at > self._limit:
                raise _too_long(self._path, line, len(self._text) - self._at, self._limit, f"record {self._number}: ")
            self._read(want)
            want *= 2  # a long record is parsed again a few times, and not once a chunk
        text = self._text[self._at : end]
        self._line += text.count("\n")
        self._at = end
        record = Record(path=self._path, line=line, part=f"record {self._number}", text=text)
        if not isinstance(value, dict):
            raise record.error(f"an object is wanted (found {shorten(value)})", hint="an array of records, or one a line")
        return Record(path=self._path, line=line, part=record.part, text=text, value=value)

    def _next(self) -> str:
        """The next character that is no space, or nothing at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read(_CHUNK)

    def _take(self, character: str) -> None:
        if self._next() == character:
            self._at += 1

    def _read(self, size: int) -> None:
        chunk = self._file.read(size)
        self._ended = not chunk
        begins = self._bytes - len(self._decoder.getstate()[0])
        try:
            more = self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            found = f"byte {begins + error.start} of the file is not UTF-8 (0x{error.object[error.start]:02x})"
            raise self._error(found) from None
        self._bytes += len(chunk)
        self._text, self._at = self._text[self._at :] + more, 0

    def _error(self, message: str) -> DataError:
        hint = "the file is cut or damaged: mend the array, or write one record a line"
        return DataError(f"record {self._number}: {message}", path=self._path, line=self._line, hint=hint)


def save_lines(path: Path, rows: Iterable[Any]) -> None:
    """One record a line, atomically. A row is an object, or JSON already."""
    with write_atomically(path) as file:
        for row in rows:
            file.write(_dump(row) + b"\n")


def save_array(path: Path, rows: Iterable[Any]) -> None:
    """One JSON array with a record a line, atomically; JSON lines where the name ends in .jsonl or .ndjson."""
    if path.suffix.lower() in {".jsonl", ".ndjson"}:
        save_lines(path, rows)
        return
    with write_atomically(path) as file:
        before = b"[\n"
        for row in rows:
            file.write(before + _dump(row))
            before = b",\n"
        file.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def _dump(row: Any) -> bytes:
    return (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)).encode()
