"""One source's growing file: what has been fetched, and what a later process may trust of it.

A process can die at any instant. So bytes go to the file without a buffer of ours, and what is more than bytes (the
entity tag that they belong to, the offset up to which wheels are complete) goes to a marks file that is replaced whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from qiaoban.errors import EngineError
from qiaoban.files import write_atomically

# EFBIG and EDQUOT are the same news to a person as ENOSPC: no more bytes fit here.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

FreeBytes: TypeAlias = Callable[[Path], int]


class Progress(Protocol):
    """What a pull or a verify tells whoever waits for it. Counts are bytes."""

    def start(self, total: int | None) -> None:
        """A count begins, at zero, towards `total` (None: unknown). A retry or another source starts anew."""

    def advance(self, n: int) -> None:
        """`n` more bytes are there; the first advance after a start may be what an earlier pull left."""

    def note(self, text: str) -> None:
        """One line worth showing: which source, what failed, what is waited for."""

    def done(self) -> None:
        """No more calls follow, whether it went well or not."""


class Silent:
    """A Progress that says nothing."""

    def start(self, total: int | None) -> None: ...

    def advance(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self) -> None: ...


class SourceError(EngineError):
    """One source did not give the file; the next one may. The message is one line."""


class DiskFullError(EngineError):
    """No room for the rest. What was fetched is kept. `needed` and `free` are bytes; `needed` None means unknown."""

    def __init__(self, folder: Path, *, needed: int | None, free: int) -> None:
        wanted = "more bytes" if needed is None else f"{needed:,} more bytes"
        super().__init__(
            f"the disk is full: {wanted} are needed under {folder} and {free:,} are free; what was fetched is kept",
            hint="free some space, or set QIAOBAN_HOME to a folder on a larger disk, and run the same command again",
            retryable=True,
        )
        self.needed = needed
        self.free = free


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What is known of a partial file besides its bytes.

    `etag` is the hub's entity tag for these bytes, `total` the announced size, `claimed` the sha256 that the hub
    states; `ends` holds the offset after each complete wheel.
    """

    etag: str | None = None
    total: int | None = None
    claimed: str | None = None
    ends: list[int] = field(default_factory=list)


def free_disk_bytes(folder: Path) -> int:
    """Free bytes for an ordinary user on the disk that holds `folder`, which must exist."""
    return shutil.disk_usage(folder).free


class Partial:
    """The file `<name>.part` in `folder`, its marks beside it, and the room left for it."""

    def __init__(self, folder: Path, name: str, *, progress: Progress, free_bytes: FreeBytes = free_disk_bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / f"{name}.part"
        self.progress = progress
        self._free_bytes = free_bytes
        self._marks_path = folder / f"{name}.marks.json"
        self.marks = _read_marks(self._marks_path)

    @property
    def size(self) -> int:
        """Bytes on disk, 0 when nothing was fetched yet."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def whole_wheels(self) -> int:
        """How many wheels are completely in the file."""
        return len(self.marks.ends)

    def discard(self) -> None:
        """Forget everything: the bytes are of no use."""
        self.path.unlink(missing_ok=True)
        self._marks_path.unlink(missing_ok=True)
        self.marks = Marks()

    def drop_half_wheel(self) -> None:
        """Cut the file back to its last complete wheel; a file shorter than its marks say is begun anew."""
        end = self.marks.ends[-1] if self.marks.ends else 0
        if self.size < end:
            self.discard()
        elif self.size > end:
            os.truncate(self.path, end)

    def mark_wheel(self) -> None:
        """The bytes so far end with a complete wheel: make them durable and say so."""
        self.sync()
        self._save(replace(self.marks, ends=[*self.marks.ends, self.size]))

    def expect(self, marks: Marks, *, aside: int = 0) -> None:
        """Start counting towards `marks.total`. `aside` is room needed besides the file, in bytes.

        Raises DiskFullError if the rest will not fit.
        """
        self._save(marks)
        if marks.total is not None:
            self.reserve(marks.total - self.size + aside)
        self.progress.start(marks.total)
        self.progress.advance(self.size)

    def reserve(self, needed: int) -> None:
        """Raises DiskFullError if fewer than `needed` bytes are free."""
        free = self._free_bytes(self.folder)
        if needed > free:
            raise DiskFullError(self.folder, needed=needed, free=free)

    def append(self, chunks: Iterable[bytes]) -> None:
        """Write `chunks` at the end. Raises DiskFullError when the disk fills up; what was written stays."""
        with self.path.open("ab", buffering=0) as file:
            for chunk in chunks:
                try:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                    raise self.no_room() from error
                self.progress.advance(len(chunk))

    def no_room(self) -> DiskFullError:
        """The error for a disk that just filled up."""
        needed = None if self.marks.total is None else self.marks.total - self.size
        return DiskFullError(self.folder, needed=needed, free=self._free_bytes(self.folder))

    def sync(self) -> None:
        """Bytes reach the disk before anything that relies on them does."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def _save(self, marks: Marks) -> None:
        try:
            with write_atomically(self._marks_path) as file:
                file.write(json.dumps(asdict(marks)).encode())
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise self.no_room() from error
        self.marks = marks


def _read_marks(path: Path) -> Marks:
    """Marks as saved; none, which means starting over, if they are missing or not what we write."""
    try:
        raw = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return Marks()
    match raw:
        case {"etag": str() | None, "total": int() | None, "claimed": str() | None, "ends": list() as ends}:
            if all(isinstance(end, int) for end in ends):
                return Marks(etag=raw["etag"], total=raw["total"], claimed=raw["claimed"], ends=ends)
    return Marks()
