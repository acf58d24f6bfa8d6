"""Near-duplicates of texts: n-grams, MinHash (Broder 1997), bands (LSH) that propose pairs, exact Jaccard that decides.

Texts are compared as they sound: NFKC, lower case, without punctuation and, in Chinese, without spaces. An n-gram is a run of
characters in Chinese and of words in English. Bands only propose, so a threshold on Jaccard means what it says.
"""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import chain
from tempfile import TemporaryFile
from typing import NamedTuple
from weakref import finalize

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # type: ignore[import-untyped,unused-ignore]

from qiaoban.conversation import Lang

PERMUTATIONS = 128
MISSED = 0.005  # the share of pairs exactly at the threshold that the bands may fail to propose
BLOCK = 1024  # texts that are sketched at once
_SEED = 42
_AGREE = 2  # bands that must agree: unrelated texts often share one, rarely two
_CROWD = 8  # texts that one band of one run proposes at most
_NOISE = re.compile(r"[^\w+=×÷<>☀-➿🌀-🫿]+|_+")
_APOSTROPHE = re.compile(r"['’‘`´]")
_MULTIPLIERS = np.array([int.from_bytes(blake2b(bytes([k]), digest_size=8).digest()) | 1 for k in range(16)], np.uint64)

Hashes = NDArray[np.uint64]
Keys = NDArray[np.uint32]


class Folded(NamedTuple):
    """A text as it is compared, with its language."""

    text: str
    lang: Lang

    def __len__(self) -> int:
        """Characters in Chinese, words in English."""
        return len(self.text) if self.lang == "zh" else len(self.text.split())


class Match(NamedTuple):
    """An earlier text that is nearly the same: the tag it was kept under, their Jaccard similarity, whether they are equal."""

    tag: str
    score: float
    same: bool = False


def fold(text: str, lang: Lang) -> Folded:
    """`text` without what does not count as a difference. Words stay one space apart in English."""
    gap = "" if lang == "zh" else " "
    text = _NOISE.sub(gap, text if lang == "zh" else _APOSTROPHE.sub("", text)).lower()
    if not unicodedata.is_normalized("NFKC", text):  # rare once punctuation is out, and the check is much cheaper
        text = _NOISE.sub(gap, unicodedata.normalize("NFKC", text)).lower()
    return Folded(text.strip(), lang)


def grams(folded: Folded, size: int) -> set[str]:
    """The distinct runs of `size` characters or words; a shorter text is one run."""
    if folded.lang == "zh":
        text = folded.text
        return {text[at : at + size] for at in range(max(1, len(text) - size + 1))}
    words = folded.text.split()
    return {" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared n-grams over all n-grams, 0 to 1."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


@cache
def choose_bands(threshold: float) -> tuple[int, int]:
    """(bands, rows): the longest rows with which two bands agree on all but `MISSED` of the pairs at the threshold."""
    for rows in range(PERMUTATIONS // 4, 1, -1):
        bands = PERMUTATIONS // rows
        agree = threshold**rows
        missed = (1 - agree) ** bands + bands * agree * (1 - agree) ** (bands - 1)
        if missed <= MISSED:
            return bands, rows
    return PERMUTATIONS, 1


@lru_cache(maxsize=1 << 16)
def _word_code(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest()) if word else 0


def _codes(texts: Sequence[Folded], size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """One number a character or word of all texts, which are of one language, and how many each has: at least `size`."""
    if texts[0].lang == "zh":
        padded = [each.text.ljust(size, "\0") for each in texts]
        codes = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
        return codes, np.fromiter(map(len, padded), np.int64)
    words = [each.text.split() for each in texts]
    words = [each if len(each) >= size else each + [""] * (size - len(each)) for each in words]
    return np.fromiter(map(_word_code, chain.from_iterable(words)), np.uint64), np.fromiter(map(len, words), np.int64)


def _gram_hashes(texts: Sequence[Folded], size: int) -> tuple[Hashes, Hashes]:
    """Hashes of the n-grams of all texts in one row, and where each text's begin: no Python loop over n-grams."""
    flat, lengths = _codes(texts, size)
    windows = len(flat) - size + 1
    hashes = flat[:windows] * _MULTIPLIERS[0]
    for step in range(1, size):
        hashes += flat[step : windows + step] * _MULTIPLIERS[step]
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)  # the finaliser of MurmurHash3
    hashes ^= hashes >> np.uint64(33)
    inside = np.ones(len(flat), bool)
    for back in range(1, size):  # windows that would run into the next text
        inside[np.cumsum(lengths) - back] = False
    starts = np.concatenate([[0], np.cumsum(lengths - size + 1)]).astype(np.uint64)
    return hashes[inside[:windows]], starts


def signatures(texts: Sequence[Folded], sizes: Mapping[Lang, int]) -> NDArray[np.uint32]:
    """MinHash signatures, one row of `PERMUTATIONS` numbers a text."""
    result = np.zeros((len(texts), PERMUTATIONS), np.uint32)
    for lang, size in sizes.items():
        rows = [row for row, each in enumerate(texts) if each.lang == lang]
        for at in range(0, len(rows), BLOCK):
            some = rows[at : at + BLOCK]
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(
                *_gram_hashes([texts[row] for row in some], size), PERMUTATIONS, _SEED
            )
            numbers = chain.from_iterable(matrix.to_rows())  # three times as fast as an array of lists
            result[some] = np.fromiter(numbers, np.uint32, len(some) * PERMUTATIONS).reshape(len(some), PERMUTATIONS)
    return result


class _Runs:
    """The keys of one band of kept texts in sorted runs, merged as they grow: 8 bytes a text, and look-ups of many at once."""

    def __init__(self) -> None:
        self._runs: list[tuple[Keys, Keys]] = []

    def add(self, keys: Keys, owners: Keys) -> None:
        """`owners` are greater than all that were added before."""
        run = _sorted(keys, owners)
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            older = self._runs.pop()
            run = _sorted(np.concatenate([older[0], run[0]]), np.concatenate([older[1], run[1]]))
        self._runs.append(run)

    def pairs(self, keys: Keys) -> Iterator[Hashes]:
        """(place << 32 | owner) for every place in `keys` whose key an owner has."""
        order = np.argsort(keys)  # in order, because look-ups that go from left to right stay in the processor's cache
        asked = keys[order]
        for known, owners in self._runs:
            low = np.searchsorted(known, asked, "left")
            here = np.flatnonzero(known[np.minimum(low, len(known) - 1)] == asked)
            low = low[here]
            counts = np.minimum(np.searchsorted(known, asked[here], "right") - low, _CROWD)
            places = np.repeat(order[here].astype(np.uint64), counts)
            steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield places << np.uint64(32) | owners[np.repeat(low, counts) + steps].astype(np.uint64)


def _sorted(keys: Keys, owners: Keys) -> tuple[Keys, Keys]:
    order = np.argsort(keys, kind="stable")
    return keys[order], owners[order]


def _within(keys: Keys) -> Iterator[Hashes]:
    """(place << 32 | earlier place) for the places in `keys` that have the same key."""
    order = np.argsort(keys, kind="stable").astype(np.uint64)
    known = keys[order]
    at = np.arange(len(keys))
    starts = np.maximum.accumulate(np.where(np.append(True, known[1:] != known[:-1]), at, 0)[: len(at)])
    for step in range(min(_CROWD, int((at - starts).max(initial=0)))):
        later = at[starts + step < at]
        yield order[later] << np.uint64(32) | order[starts[later] + step]


def _agreed(pairs: Sequence[Hashes]) -> dict[int, list[int]]:
    """For each place the others with which enough bands agree, in rising order."""
    result: dict[int, list[int]] = {}
    if pairs:
        found, counts = np.unique(np.concatenate(pairs), return_counts=True)
        for pair in found[counts >= _AGREE].tolist():
            result.setdefault(pair >> 32, []).append(pair & 0xFFFFFFFF)
    return result


class _Shelf:
    """Kept texts with their tags, on disk: memory holds 8 bytes a text. The file goes with the shelf."""

    def __init__(self) -> None:
        self._file = TemporaryFile(prefix="qiaoban-near-")  # noqa: SIM115 - as long as the shelf
        finalize(self, self._file.close)
        self._ends = array("Q", [0])
        self._unwritten: list[bytes] = []

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, folded: Folded, tag: str) -> None:
        """Put a text behind the others."""
        record = f"{folded.lang}\0{tag}\0{folded.text}".encode()
        self._unwritten.append(record)
        self._ends.append(self._ends[-1] + len(record))

    def __getitem__(self, owner: int) -> tuple[Folded, str]:
        if self._unwritten:
            self._file.seek(0, os.SEEK_END)
            self._file.write(b"".join(self._unwritten))
            self._unwritten.clear()
        self._file.seek(self._ends[owner])
        record = self._file.read(self._ends[owner + 1] - self._ends[owner]).decode()
        lang, tag, text = record.split("\0", 2)
        return Folded(text, "zh" if lang == "zh" else "en"), tag


class NearIndex:
    """Kept texts, and whether a new one is nearly the same as one of them.

    `open` a block of texts, `match` each in turn, `keep` those that stay. Memory for a kept text: 8 bytes a band (32 bands at
    0.7) and 8 more. The time for a text does not grow with how many share a band: of a crowd, the first ones are compared.
    """

    def __init__(self, threshold: float, sizes: Mapping[Lang, int]) -> None:
        self.threshold, self.sizes = threshold, sizes
        self._bands, self._rows = choose_bands(threshold)
        self._runs = [_Runs() for _ in range(self._bands)]
        self._shelf = _Shelf()
        self._block: Sequence[Folded] = ()
        self._keys: Keys = np.zeros((self._bands, 0), np.uint32)
        self._older: dict[int, list[int]] = {}
        self._recent: dict[int, list[int]] = {}
        self._kept: dict[int, int] = {}

    def open(self, block: Sequence[Folded]) -> None:
        """Sketch the next texts; `match` and `keep` then take their places in `block`."""
        if self._kept:
            places, owners = list(self._kept), np.fromiter(self._kept.values(), np.uint32)
            for runs, keys in zip(self._runs, self._keys, strict=True):
                runs.add(keys[places], owners)
        self._kept, self._block = {}, block
        self._keys = self._band_keys(signatures(block, self.sizes))
        bands = list(zip(self._runs, self._keys, strict=True))
        self._older = _agreed([pairs for runs, keys in bands for pairs in runs.pairs(keys)])
        self._recent = _agreed([pairs for keys in self._keys for pairs in _within(keys)])

    def match(self, place: int) -> Match | None:
        """The kept text that is the same, or else the first whose Jaccard similarity reaches the threshold.

        An empty text matches nothing.
        """
        folded = self._block[place]
        owners = self._older.get(place, []) + [self._kept[at] for at in self._recent.get(place, ()) if at in self._kept]
        if not owners or not folded.text:
            return None
        others = [self._shelf[owner] for owner in owners]
        for other, tag in others:
            if other == folded:
                return Match(tag, 1.0, same=True)
        mine = grams(folded, self.sizes[folded.lang])
        for other, tag in others:
            score = jaccard(mine, grams(other, self.sizes[other.lang]))
            if score >= self.threshold:
                return Match(tag, score)
        return None

    def keep(self, place: int, tag: str) -> None:
        """Later texts are compared with this one too; `tag` says where it stands."""
        self._kept[place] = len(self._shelf)
        self._shelf.add(self._block[place], tag)

    def _band_keys(self, rows: NDArray[np.uint32]) -> Keys:
        """One number a band of the signature: shape (bands, texts)."""
        parts = rows[:, : self._bands * self._rows].reshape(len(rows), self._bands, self._rows).astype(np.uint64)
        keys = np.zeros((len(rows), self._bands), np.uint64)
        for step in range(self._rows):
            keys = (keys ^ parts[:, :, step]) * np.uint64(0xFF51AFD7ED558CCD)
            keys ^= keys >> np.uint64(32)
        return np.ascontiguousarray((keys >> np.uint64(16)).astype(np.uint32).T)
