"""Duplicates: the same talk, nearly the same talk, the same opening, companion turns that are one template, the same meaning.

A stream stage. Talks are compared with the talks kept before them, so that the first of a cluster stays and each talk that is
left out names a kept one that it resembles. Memory: about 2 kB for a kept talk with five companion turns that are new, and 4
bytes a dimension more for the pass by meaning; texts lie on disk, and talks are not held beyond a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qiaoban.conversation import Conversation, Lang, language
from qiaoban.curate.near import BLOCK, Folded, NearIndex, fold
from qiaoban.curate.stage import Dropped, Outcome
from qiaoban.errors import UsageError

Vectors = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Level:
    """How one kind of text is compared. A text of fewer than `least` characters (English: words) is not; 0 turns it off.

    A short text is compared by shorter n-grams: one changed character touches five 5-grams, a fifth of a 25-character turn.
    """

    threshold: float
    sizes: Mapping[Lang, int]
    least: Mapping[Lang, int]

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold <= 1:
            raise UsageError(f"a threshold of {self.threshold} is outside 0.5-1: below, unrelated talks would be proposed")

    @property
    def is_on(self) -> bool:
        """Whether any text is compared."""
        return any(self.least.values())


def _level(zh: int, en: int, least_zh: int, least_en: int) -> Level:
    return Level(0.7, {"zh": zh, "en": en}, {"zh": least_zh, "en": least_en})


@dataclass(frozen=True)
class Levels:
    """The three levels, and the share of companion turns above which a talk of repeated turns is left out."""

    dialogue: Level = field(default_factory=lambda: _level(5, 3, 1, 1))
    opening: Level = field(default_factory=lambda: _level(3, 2, 16, 10))
    turn: Level = field(default_factory=lambda: _level(3, 2, 12, 6))
    turn_share: float = 0.5


@dataclass(frozen=True)
class RepeatedTurn:
    """A companion turn that stands nearly the same in an earlier talk. `turn` counts all turns from 0, as `like_turn` does."""

    talk: str
    turn: int
    like: str
    like_turn: int
    score: float


class Encoder(Protocol):
    """Texts to vectors, one row a text; equal texts give equal rows."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Shape (texts, dimensions)."""


def dedup(
    talks: Iterable[Conversation], *, levels: Levels | None = None, repeats: list[RepeatedTurn] | None = None
) -> Iterator[Outcome]:
    """Leave out talks that repeat an earlier one, with reason exact, near_dialogue, near_opening or repeated_turns.

    Repeated companion turns, also of talks that stay, are appended to `repeats`.
    """
    sieve = _Sieve(levels or Levels(), repeats)
    for block in blocks(talks, BLOCK):
        yield from sieve.block(block)


def dedup_meaning(talks: Iterable[Conversation], encoder: Encoder, *, threshold: float = 0.9) -> Iterator[Outcome]:
    """Leave out talks with a cosine of `threshold` or more to one kept before. Time grows with the square of the talks."""
    known: list[Vectors] = []
    names: list[str] = []
    for block in blocks(talks, 256):
        vectors = _encode(encoder, ["\n".join(turn.content for turn in talk.turns) for talk in block])
        best, like = _nearest(vectors, known)
        within = vectors @ vectors.T
        stay: list[int] = []
        for row, talk in enumerate(block):
            score, name = float(best[row]), names[like[row]] if known else ""
            if stay and (near := float(within[row, stay].max())) > score:
                score, name = near, block[stay[int(within[row, stay].argmax())]].id
            if score >= threshold:
                yield Dropped(talk.id, "near_meaning", f"like {name}, cosine {score:.2f}")
            else:
                stay.append(row)
                yield talk
        if stay:
            known.append(vectors[stay])
            names.extend(block[row].id for row in stay)


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    source = iter(items)
    while block := list(islice(source, size)):
        yield block


class FoldedTalk:
    """What child and companion say, each turn folded once; `turns` are the companion's with their places among all turns."""

    def __init__(self, talk: Conversation) -> None:
        self.lang = language(talk)
        self._said = [
            (at, turn.role, fold(turn.content, self.lang)) for at, turn in enumerate(talk.turns) if turn.role != "system"
        ]
        self.turns = [(at, folded) for at, role, folded in self._said if role == "assistant"]

    @property
    def dialogue(self) -> Folded:
        """All that is said."""
        return self._joined(folded for _, _, folded in self._said)

    @property
    def first(self) -> list[tuple[int, Folded]]:
        """The first thing that the child says, with its place; empty if it says nothing."""
        return [(at, folded) for at, role, folded in self._said if role == "user"][:1]

    @property
    def opening(self) -> Folded:
        """The first thing that the child says and the first reply."""
        return self._joined(folded for _, folded in [*self.first, *self.turns[:1]])

    def _joined(self, parts: Iterable[Folded]) -> Folded:
        return Folded(("" if self.lang == "zh" else " ").join(each.text for each in parts if each.text), self.lang)


@dataclass(frozen=True)
class _Row:
    """A talk as the sieve sees it: its place in the block, its folded texts, and where its companion turns begin."""

    talk: Conversation
    place: int
    dialogue: Folded
    opening: Folded
    turns: list[tuple[int, Folded]]
    first_turn: int


def _rows(talks: Sequence[Conversation]) -> list[_Row]:
    rows: list[_Row] = []
    first = 0
    for place, talk in enumerate(talks):
        said = FoldedTalk(talk)
        rows.append(_Row(talk, place, said.dialogue, said.opening, said.turns, first))
        first += len(said.turns)
    return rows


class _Sieve:
    """What `dedup` remembers from block to block."""

    def __init__(self, levels: Levels, repeats: list[RepeatedTurn] | None) -> None:
        self.levels, self.repeats = levels, repeats
        self.dialogues, self.openings, self.turns = (
            NearIndex(each.threshold, each.sizes) for each in (levels.dialogue, levels.opening, levels.turn)
        )

    def block(self, talks: Sequence[Conversation]) -> Iterator[Outcome]:
        rows = _rows(talks)
        self.dialogues.open([row.dialogue for row in rows])
        self.openings.open([row.opening for row in rows] if self.levels.opening.is_on else [])
        self.turns.open([folded for row in rows for _, folded in row.turns] if self.levels.turn.is_on else [])
        for row in rows:
            found = self._repeated(row)
            dropped = self._verdict(row, found)
            if dropped is None:
                self._keep(row, {each.turn for each in found})
            yield dropped or row.talk

    def _verdict(self, row: _Row, found: Sequence[RepeatedTurn]) -> Dropped | None:
        name = row.talk.id
        match = self.dialogues.match(row.place)
        if match and match.same:
            return Dropped(name, "exact", f"like {match.tag}")
        if match and _counts(row.dialogue, self.levels.dialogue):
            return Dropped(name, "near_dialogue", f"like {match.tag}, Jaccard {match.score:.2f}")
        if _counts(row.opening, self.levels.opening) and (match := self.openings.match(row.place)):
            return Dropped(name, "near_opening", f"like {match.tag}, Jaccard {match.score:.2f}")
        if self.repeats is not None:
            self.repeats.extend(found)
        if row.turns and len(found) / len(row.turns) > self.levels.turn_share:
            likes = ", ".join(sorted({each.like for each in found})[:3])
            return Dropped(name, "repeated_turns", f"{len(found)} of {len(row.turns)} companion turns, like {likes}")
        return None

    def _repeated(self, row: _Row) -> list[RepeatedTurn]:
        found = []
        for place, (at, folded) in enumerate(row.turns, start=row.first_turn):
            if _counts(folded, self.levels.turn) and (match := self.turns.match(place)):
                like, _, like_turn = match.tag.rpartition("#")
                found.append(RepeatedTurn(row.talk.id, at, like, int(like_turn), round(match.score, 4)))
        return found

    def _keep(self, row: _Row, repeated: Set[int]) -> None:
        """A turn that repeats an earlier one is not kept: the first of a template stands for all, however many come."""
        self.dialogues.keep(row.place, row.talk.id)
        if _counts(row.opening, self.levels.opening):
            self.openings.keep(row.place, row.talk.id)
        for place, (at, folded) in enumerate(row.turns, start=row.first_turn):
            if at not in repeated and _counts(folded, self.levels.turn):
                self.turns.keep(place, f"{row.talk.id}#{at}")


def _counts(folded: Folded, level: Level) -> bool:
    return 0 < level.least[folded.lang] <= len(folded)


def _encode(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """Rows of length 1; a row of zeros stays so, and is near to nothing."""
    vectors = np.asarray(encoder.encode(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise UsageError(f"the encoder gave shape {vectors.shape} for {len(texts)} texts, or numbers that are not finite")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _nearest(vectors: Vectors, known: Sequence[Vectors]) -> tuple[Vectors, NDArray[np.intp]]:
    """For each row the highest cosine to a known vector, and which one it is."""
    best = np.full(len(vectors), -1, np.float32)
    like = np.zeros(len(vectors), np.intp)
    first = 0
    for some in known:
        scores = vectors @ some.T
        better = scores.max(axis=1) > best
        like[better] = first + scores.argmax(axis=1)[better]
        best = np.maximum(best, scores.max(axis=1))
        first += len(some)
    return best, like
