"""Batch forms: one JSON object a line, in and out, in order, `-` for standard streams.

A malformed line is reported with its number and skipped; the run goes on and ends with exit code 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from qiaoban.cli.voice import show_error
from qiaoban.conversation import decode_lines, open_bytes, parse_record
from qiaoban.errors import DataError

Record = TypeVar("Record", bound=BaseModel)
Parsed = TypeVar("Parsed")


class Batch:
    """Reads the records of a file and remembers whether a line was bad."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.failed = False

    def records(self, kind: type[Record]) -> Iterator[Record]:
        """Every well-formed line as `kind`; `DataError` only when the file itself cannot be read."""
        return self.parsed(lambda line, number: parse_record(kind, line, path=self._file, number=number))

    def parsed(self, parse: Callable[[str, int], Parsed]) -> Iterator[Parsed]:
        """What `parse` makes of every line and its number; a line that it refuses with `DataError` is reported and skipped."""
        for number, line in self._lines():
            try:
                if isinstance(line, DataError):
                    raise line
                yield parse(line, number)
            except DataError as error:
                self.bad(error)

    def bad(self, error: DataError) -> None:
        """Report a bad record, and remember that there was one."""
        show_error(error)
        self.failed = True

    def _lines(self) -> Iterator[tuple[int, str | DataError]]:
        if self._file == "-":
            yield from decode_lines(sys.stdin.buffer, "-")
            return
        with open_bytes(self._file) as file:
            yield from decode_lines(file, self._file)


def emit(row: dict[str, Any]) -> None:
    """One line of data, at once: a reader on the other end of a pipe is waiting for it."""
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    sys.stdout.flush()
