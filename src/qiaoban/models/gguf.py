"""Read the key-value header of a GGUF file, and nothing else of it.

The format is ggml's `docs/gguf.md`: magic, version (2 or 3), tensor count, key-value count, then the pairs, all little
endian. The `gguf` package builds numpy views of every token first and takes 10 s on a 150,000-token vocabulary; this
takes a fraction of a second. The file may be hostile: every length is checked before it is followed.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

from qiaoban.errors import DataError

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

# The largest real headers (260,000 tokens with their merges) stay near 12 MB and 800,000 elements.
_MAX_HEADER: Final = 128 * 2**20
_SMALLEST: Final = 24  # magic, version, two counts
_MAX_PAIRS: Final = 65_536
_MAX_ELEMENTS: Final = 4_000_000
_MAX_NESTING: Final = 4


def read_metadata(path: Path) -> dict[str, object]:
    """The header's pairs in the file's order: values are int, float, bool, str, or lists of these.

    Texts that are not UTF-8 come with replacement characters, since some vocabularies hold split characters; keys must
    be UTF-8. Raises DataError naming the file and the byte offset if it is not GGUF or does not hold together.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < _SMALLEST:
            raise DataError(f"not a GGUF file: it has only {size} bytes", path=path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data, path).pairs()


class _Header:
    """A cursor over the mapped file. `_end` bounds it: the file's size, or the most that a header may take."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path = data, path
        self._end = min(len(data), _MAX_HEADER)
        self._at = 0
        self._elements = 0

    def pairs(self) -> dict[str, object]:
        if self._data[:4] != _MAGIC:
            raise self._wrong(f"not a GGUF file: it starts with {self._data[:4]!r}")
        self._at = 4
        version = self._number(_U32)
        if version not in _VERSIONS:
            what = "is big-endian" if version in (v << 24 for v in (1, *_VERSIONS)) else f"has version {version}"
            raise self._wrong(f"the GGUF file {what}; little-endian versions 2 and 3 are read")
        self._number(_U64)  # how many tensors there are
        count = self._number(_U64)
        if count > _MAX_PAIRS:
            raise self._wrong(f"{count:,} pairs are more than a header may hold")
        pairs: dict[str, object] = {}
        for _ in range(count):
            key = self._key()
            if key in pairs:
                raise self._wrong(f"the key {key!r} appears twice")
            pairs[key] = self._value(self._number(_U32), 0)
        return pairs

    def _wrong(self, what: str) -> DataError:
        return DataError(f"{what} (at byte {self._at:,})", path=self._path)

    def _claim(self, length: int) -> int:
        """Step over `length` bytes and return where they start."""
        start = self._at
        if length > self._end - start:
            bound = "the file" if self._end == len(self._data) else f"the {_MAX_HEADER:,} bytes a header may take"
            raise self._wrong(f"{length:,} bytes are announced, which runs past the end of {bound}")
        self._at = start + length
        return start

    def _number(self, kind: struct.Struct) -> int:
        (number,) = kind.unpack_from(self._data, self._claim(kind.size))
        return int(number)

    def _key(self) -> str:
        start = self._claim(self._number(_U64))
        try:
            return self._data[start : self._at].decode()
        except UnicodeDecodeError as error:
            raise self._wrong("a key is not UTF-8") from error

    def _value(self, kind: int, depth: int) -> object:
        if kind == _STRING:
            return self._strings(1)[0]
        if kind == _ARRAY:
            return self._array(depth + 1)
        return self._scalars(kind, 1)[0]

    def _array(self, depth: int) -> list[object]:
        if depth > _MAX_NESTING:
            raise self._wrong(f"arrays are nested more than {_MAX_NESTING} deep")
        kind, count = self._number(_U32), self._number(_U64)
        self._elements += count
        if self._elements > _MAX_ELEMENTS:
            raise self._wrong(f"an array of {count:,} elements is more than a header may hold")
        if kind == _STRING:
            return list(self._strings(count))
        if kind == _ARRAY:
            return [self._array(depth + 1) for _ in range(count)]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[object]:
        if kind == _BOOL:
            start = self._claim(count)
            raw = self._data[start : self._at]
            if raw.translate(None, b"\0\1"):
                raise self._wrong("a truth value is neither 0 nor 1")
            return [byte == 1 for byte in raw]
        code = _SCALARS.get(kind)
        if code is None:
            raise self._wrong(f"the value type {kind} does not exist")
        form = f"<{count}{code}"
        return list(struct.unpack_from(form, self._data, self._claim(struct.calcsize(form))))

    def _strings(self, count: int) -> list[str]:
        """`count` texts. A vocabulary takes 300,000 rounds of this loop, hence the local names and the inlined step."""
        data, at, end, length_at = self._data, self._at, self._end, _U64.unpack_from
        texts: list[str] = []
        for _ in range(count):
            start = at + 8
            if start > end:
                self._at = at
                self._claim(8)
            stop = start + length_at(data, at)[0]
            if stop > end:
                self._at = start
                self._claim(stop - start)
            texts.append(data[start:stop].decode(errors="replace"))
            at = stop
        self._at = at
        return texts
