"""Held-out test text out of the training set: shared n-grams (13 characters, 8 English words) and near-duplicates.

N-grams are looked up in the first child turn and in companion turns, as one shared 13-gram there is more than chance. They are
kept as sha256 and sorted, so that a deny list can be shipped where the test text cannot. It is no secret from somebody who has
part of the text: whoever knows twelve characters of it in a row can guess on from there, and a text shorter than an n-gram can
be guessed as a whole. Near-duplicates need the text itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import Conversation, Lang, decode_lines, language_of, open_bytes, parse_record
from qiaoban.curate.dedup import FoldedTalk, blocks
from qiaoban.curate.near import BLOCK, Folded, NearIndex, fold
from qiaoban.curate.stage import Dropped, Outcome
from qiaoban.errors import DataError
from qiaoban.files import write_atomically

SIZES: Mapping[Lang, int] = {"zh": 13, "en": 8}
LEAST: Mapping[Lang, int] = {"zh": 6, "en": 4}  # a shorter text says nothing of its own
_NEAR_SIZES: Mapping[Lang, int] = {"zh": 3, "en": 2}  # prompts are short
_NEAR_LEAST: Mapping[Lang, int] = {"zh": 10, "en": 6}
_DIGITS = 16  # hex digits of a sha256 that are kept: a chance hit in 10^9 look-ups against 10^6 n-grams is 1 in 20 000


@dataclass(frozen=True)
class HeldOut:
    """A test set by name. Its texts may be prompts, turns or whole dialogues; each may have its own language."""

    name: str
    texts: Iterable[str]


class Entry(NamedTuple):
    """A held-out text: its set, and the sha256 of the folded text."""

    source: str
    text: str


class Hit(NamedTuple):
    """Where a talk meets a test set: how, with which text, and in which turn (-1: the talk as a whole)."""

    how: Literal["ngram", "near"]
    entry: Entry
    turn: int


class DenyList:
    """N-grams of held-out texts, hashed where only their hashes are known.

    A text shorter than an n-gram stands for itself and hits only a turn that equals it.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._hashes: list[list[str]] = []
        self._hashed: dict[str, int] = {}
        self._plain: dict[str, int] = {}

    def add(self, entry: Entry, hashes: Iterable[str]) -> None:
        """A text by its n-gram hashes. An n-gram that two texts share names the first."""
        kept = sorted(set(hashes))
        for each in kept:
            self._hashed.setdefault(each, len(self.entries))
        self.entries.append(entry)
        self._hashes.append(kept)

    def add_set(self, held_out: HeldOut) -> None:
        """Every text of a set that is long enough to say something of its own."""
        for text in held_out.texts:
            folded = fold(text, language_of(text))
            if len(folded) >= LEAST[folded.lang]:
                kept = set(_ngrams(folded))
                for each in kept:
                    self._plain.setdefault(each, len(self.entries))
                self.entries.append(Entry(held_out.name, _sha(folded.text)))
                self._hashes.append(sorted(map(_short_sha, kept)))

    def find(self, folded: Folded) -> Entry | None:
        """The held-out text with which `folded` shares an n-gram, if any. Hashing is for hashed texts only."""
        for each in _ngrams(folded):
            at = self._plain.get(each)
            if self._hashed:
                hashed = self._hashed.get(_short_sha(each))
                at = min((one for one in (at, hashed) if one is not None), default=None)
            if at is not None:
                return self.entries[at]
        return None

    def rows(self) -> Iterator[tuple[Entry, list[str]]]:
        """Each text with its n-gram hashes, in the order in which they were added."""
        return zip(self.entries, self._hashes, strict=True)


def decontaminate(
    talks: Iterable[Conversation], *, against: Sequence[HeldOut] = (), deny: DenyList | None = None, threshold: float = 0.7
) -> Iterator[Outcome]:
    """Leave out talks that share text with a test set, with reason ngram_of_test or near_test.

    The detail names the set, the hash of the text and the turn. `against` is searched by n-grams and near-duplicates, `deny`
    by n-grams. Test sets are read into memory, talks are not.
    """
    listed = DenyList()
    for entry, hashes in deny.rows() if deny else ():
        listed.add(entry, hashes)
    sets = [HeldOut(each.name, list(each.texts)) for each in against]
    for held_out in sets:
        listed.add_set(held_out)
    if not listed.entries:
        yield from talks
        return
    near = _near_index(sets, threshold)
    for block in blocks(talks, BLOCK):
        probes = [_probes(talk) for talk in block]
        near.open([folded for each in probes for _, folded in each])
        first = 0
        for talk, each in zip(block, probes, strict=True):
            hit = _ngram_hit(each, listed) or _near_hit(each, near, first)
            first += len(each)
            yield talk if hit is None else _dropped(talk, hit)


def write_deny_list(path: Path, sets: Iterable[HeldOut]) -> int:
    """Write the hashes of test sets as JSONL, atomically; returns how many texts it holds."""
    listed = DenyList()
    for each in sets:
        listed.add_set(each)
    header = {"format": "qiaoban-deny-list", "version": 1, "zh": SIZES["zh"], "en": SIZES["en"]}
    with write_atomically(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for entry, hashes in listed.rows():
            line = {"set": entry.source, "text": entry.text, "ngrams": hashes}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return len(listed.entries)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Header(_Strict):
    format: Literal["qiaoban-deny-list"]
    version: Literal[1]
    zh: Literal[13]
    en: Literal[8]


class _Line(_Strict):
    source: str = Field(alias="set", min_length=1)
    text: str = Field(pattern="^[0-9a-f]{64}$")
    ngrams: tuple[str, ...]


def load_deny_list(path: Path) -> DenyList:
    """Read what `write_deny_list` wrote. `DataError` names the line that is no deny list, or another version of one."""
    listed = DenyList()
    headed = False
    with open_bytes(path) as file:
        for number, line in decode_lines(file, path):
            if isinstance(line, DataError):
                raise line
            if not headed:
                parse_record(_Header, line, path=path, number=number)
                headed = True
                continue
            record = parse_record(_Line, line, path=path, number=number)
            listed.add(Entry(record.source, record.text), record.ngrams)
    if not headed:
        raise DataError("the file is empty", path=path, hint="write it again with `write_deny_list`")
    return listed


def _sha(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _short_sha(text: str) -> str:
    return _sha(text)[:_DIGITS]


def _ngrams(folded: Folded) -> Iterator[str]:
    """Each n-gram; the whole text where it is shorter than one."""
    size = SIZES[folded.lang]
    if folded.lang == "zh":
        return (folded.text[at : at + size] for at in range(max(1, len(folded.text) - size + 1)))
    words = folded.text.split()
    return (" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1)))


def _probes(talk: Conversation) -> list[tuple[int, Folded]]:
    """What is compared: the first child turn, companion turns, and the whole talk as turn -1."""
    said = FoldedTalk(talk)
    return [*said.first, *said.turns, (-1, said.dialogue)]


def _ngram_hit(probes: Sequence[tuple[int, Folded]], listed: DenyList) -> Hit | None:
    for at, folded in probes:
        if at >= 0 and len(folded) >= LEAST[folded.lang] and (entry := listed.find(folded)):
            return Hit("ngram", entry, at)
    return None


def _near_index(sets: Sequence[HeldOut], threshold: float) -> NearIndex:
    index = NearIndex(threshold, _NEAR_SIZES)
    for each in sets:
        folded = [fold(text, language_of(text)) for text in each.texts]
        for block in blocks((one for one in folded if len(one) >= _NEAR_LEAST[one.lang]), BLOCK):
            index.open(block)
            for place, one in enumerate(block):
                index.keep(place, f"{_sha(one.text)} {each.name}")
    return index


def _near_hit(probes: Sequence[tuple[int, Folded]], index: NearIndex, first: int) -> Hit | None:
    for place, (at, folded) in enumerate(probes, start=first):
        if len(folded) >= _NEAR_LEAST[folded.lang] and (match := index.match(place)):
            text, _, source = match.tag.partition(" ")
            return Hit("near", Entry(source, text), at)
    return None


def _dropped(talk: Conversation, hit: Hit) -> Dropped:
    reason = "ngram_of_test" if hit.how == "ngram" else "near_test"
    where = "the whole talk" if hit.turn < 0 else f"turn {hit.turn}"
    return Dropped(talk.id, reason, f"set {hit.entry.source}, text {hit.entry.text[:_DIGITS]}, in {where}")
