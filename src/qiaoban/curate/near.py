"""Near-duplicates of texts: n-grams, MinHash (Broder 1997), bands (LSH) that propose pairs, exact Jaccard that decides.

Texts are compared as they sound: NFKC, lower case, without punctuation and, in Chinese, without spaces. An n-gram is a run of
characters in Chinese and of words in English. Bands only propose, so a threshold on Jaccard means what it says.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # type: ignore[import-untyped,unused-ignore]

from qiaoban.conversation import Lang

PERMUTATIONS = 128
MISSED = 0.005  # the share of pairs exactly at the threshold that the bands may fail to propose
BLOCK = 1024  # texts that are sketched at once
_SEED = 42
_AGREE = 2  # bands that must agree: unrelated texts often share one, rarely two
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
    """An earlier text that is nearly the same: the tag it was kept under, and their Jaccard similarity."""

    tag: str
    score: float


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
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest())


def _codes(folded: Folded, size: int) -> Hashes:
    """One number a character or word, padded to at least `size`."""
    if folded.lang == "zh":
        return np.frombuffer(folded.text.ljust(size, "\0").encode("utf-32-le"), np.uint32).astype(np.uint64)
    codes = [_word_code(word) for word in folded.text.split()]
    return np.array(codes + [0] * (size - len(codes)), np.uint64)


def _gram_hashes(texts: Sequence[Folded], size: int) -> tuple[Hashes, Hashes]:
    """Hashes of the n-grams of all texts in one row, and where each text's begin: no Python loop over n-grams."""
    codes = [_codes(each, size) for each in texts]
    lengths = np.array([len(each) for each in codes], np.int64)
    flat = np.concatenate(codes)
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
            result[some] = np.array(matrix.to_rows(), np.uint32)
    return result


class _Runs:
    """Band keys of kept texts in sorted runs, merged as they grow: 8 bytes a key, and look-ups of many at once."""

    def __init__(self) -> None:
        self._runs: list[tuple[Keys, Keys]] = []

    def add(self, keys: Keys, owners: Keys) -> None:
        """`keys` has one row of bands for each owner."""
        run = _sorted(keys.ravel(), np.repeat(owners, keys.shape[1]))
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            older = self._runs.pop()
            run = _sorted(np.concatenate([older[0], run[0]]), np.concatenate([older[1], run[1]]))
        self._runs.append(run)

    def owners(self, keys: Keys) -> dict[int, list[int]]:
        """For each row of `keys`, the owners with which enough bands agree, in the order in which they were added."""
        pairs = [pair for run in self._runs for pair in _agreeing(keys, *run)]
        if not pairs:
            return {}
        found, counts = np.unique(np.concatenate(pairs), return_counts=True)
        result: dict[int, list[int]] = {}
        for pair in found[counts >= _AGREE].tolist():
            result.setdefault(pair >> 32, []).append(pair & 0xFFFFFFFF)
        return result


def _sorted(keys: Keys, owners: Keys) -> tuple[Keys, Keys]:
    order = np.argsort(keys, kind="stable")
    return keys[order], owners[order]


def _agreeing(keys: Keys, known: Keys, owners: Keys) -> Iterator[Hashes]:
    """(row << 32 | owner) for every band of a row that stands in `known`."""
    flat = keys.ravel()
    low, high = np.searchsorted(known, flat, "left"), np.searchsorted(known, flat, "right")
    for at in np.flatnonzero(high > low):
        yield np.uint64(int(at) // keys.shape[1] << 32) | owners[low[at] : high[at]].astype(np.uint64)


class NearIndex:
    """Kept texts, and whether a new one is nearly the same as one of them.

    `open` a block of texts, `match` each in turn, `keep` those that stay. Memory for a kept text: 8 bytes a band (32 bands at
    0.7), the folded text, and about 150 bytes of Python.
    """

    def __init__(self, threshold: float, sizes: Mapping[Lang, int]) -> None:
        self.threshold, self.sizes = threshold, sizes
        self._bands, self._rows = choose_bands(threshold)
        self._runs = _Runs()
        self._texts: list[Folded] = []
        self._tags: list[str] = []
        self._block: Sequence[Folded] = ()
        self._keys: Keys = np.zeros((0, self._bands), np.uint32)
        self._older: dict[int, list[int]] = {}
        self._recent: dict[int, list[int]] = {}
        self._pending: list[int] = []

    def open(self, block: Sequence[Folded]) -> None:
        """Sketch the next texts; `match` and `keep` then take their places in `block`."""
        if self._pending:
            first = len(self._texts) - len(self._pending)
            self._runs.add(self._keys[self._pending], np.arange(first, len(self._texts), dtype=np.uint32))
        self._pending, self._recent, self._block = [], {}, block
        self._keys = self._band_keys(signatures(block, self.sizes))
        self._older = self._runs.owners(self._keys)

    def match(self, place: int) -> Match | None:
        """The first kept text whose Jaccard similarity reaches the threshold. An empty text matches nothing."""
        folded = self._block[place]
        recent = Counter(owner for key in self._keys[place].tolist() for owner in self._recent.get(key, ()))
        owners = self._older.get(place, []) + sorted(owner for owner, count in recent.items() if count >= _AGREE)
        if not owners or not folded.text:
            return None
        mine = grams(folded, self.sizes[folded.lang])
        for owner in owners:
            other = self._texts[owner]
            score = jaccard(mine, grams(other, self.sizes[other.lang]))
            if score >= self.threshold:
                return Match(self._tags[owner], score)
        return None

    def keep(self, place: int, tag: str) -> None:
        """Later texts are compared with this one too; `tag` says where it stands."""
        owner = len(self._texts)
        self._texts.append(self._block[place])
        self._tags.append(tag)
        self._pending.append(place)
        for key in self._keys[place].tolist():
            self._recent.setdefault(key, []).append(owner)

    def _band_keys(self, rows: NDArray[np.uint32]) -> Keys:
        """One number a band of the signature; the band's own number goes in, so that bands do not meet each other."""
        parts = rows[:, : self._bands * self._rows].reshape(len(rows), self._bands, self._rows).astype(np.uint64)
        keys = np.tile(np.arange(1, self._bands + 1, dtype=np.uint64), (len(rows), 1))
        for step in range(self._rows):
            keys = (keys ^ parts[:, :, step]) * np.uint64(0xFF51AFD7ED558CCD)
            keys ^= keys >> np.uint64(32)
        return (keys >> np.uint64(16)).astype(np.uint32)
