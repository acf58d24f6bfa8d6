"""One training set of several sources: shares by tokens, caps on repeats, splits that no scene crosses, and a manifest.

The same sources and options give the same bytes. Talks that share a topic, a card or a source dialogue stay in one split
(union-find over these keys across all sources), so that nothing in `valid` or `test` was seen in `train` under another name.
Shares are of tokens and not of talks: companion turns are short and stories are long. TRL's mixture takes the first rows of a
source and LLaMA-Factory's interleaving counts rows; here rows are drawn in an order that a seed decides.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, get_args

from qiaoban.conversation import Conversation, Turn, parse_conversation
from qiaoban.errors import DataError, UsageError
from qiaoban.files import write_atomically

Kind = Literal["companion", "general", "instruction"]
Split = Literal["train", "valid", "test"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
# Shares of tokens; the 2023 run never published its own. What is not companionship is half talk, half instructions.
PRESETS: Mapping[str, Mapping[Kind, float]] = {
    f"companion-{part}": {"companion": part / 100, "general": (100 - part) / 200, "instruction": (100 - part) / 200}
    for part in (30, 50, 70)
}
Count = Callable[[Sequence[Turn]], int]


@dataclass(frozen=True, kw_only=True)
class MixSource:
    """One file of talks. `weight` multiplies its part of its kind; no talk comes more often than `max_repeats` times."""

    name: str
    kind: Kind
    path: Path
    weight: float = 1.0
    max_repeats: int = 3
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """What the mixture is to be. `tokens` None makes the largest that shares and caps allow.

    `temperature` flattens the parts of sources inside a kind: 1 is by size, higher is more even (p ∝ n^(1/t)).
    """

    sources: tuple[MixSource, ...]
    shares: Mapping[Kind, float] = field(default_factory=lambda: PRESETS["companion-50"])
    tokens: int | None = None
    temperature: float = 1.0
    splits: Mapping[Split, float] = field(default_factory=lambda: {"train": 0.8, "valid": 0.1, "test": 0.1})
    seed: int = 0


@dataclass(kw_only=True)
class _Shelf:
    """The talks of one source: where each stands in the store, how many tokens it has, and its split."""

    source: MixSource
    sha256: str = ""
    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("L"))
    tokens: array[int] = field(default_factory=lambda: array("L"))
    roots: array[int] = field(default_factory=lambda: array("L"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    given: dict[int, Split] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A talk that was drawn: the shelf, its place there, and which copy it is, from 1."""

    shelf: int
    place: int
    copy: int


def mix(options: MixOptions, read: Callable[[Path], Iterable[Conversation]], count: Count, out: Path) -> dict[str, Any]:
    """Write train, valid and test.jsonl and mix.json into `out`; returns the manifest.

    `read` gives the talks of a source, `count` the tokens of a talk. `UsageError` where shares cannot be had, with what can.
    """
    _check(options)
    groups = _Groups()
    with TemporaryFile() as store:
        shelves = [_shelve(source, read, count, store, groups, options.seed) for source in options.sources]
        split_of = _split(shelves, groups, options)
        manifest: dict[str, Any] = {
            "seed": options.seed,
            "shares": dict(options.shares),
            "sources": _sources(shelves),
            "splits": {},
        }
        for split in SPLITS:
            chosen = _draw(shelves, split_of, split, options)
            manifest["splits"][split] = _write(out / f"{split}.jsonl", chosen, shelves, store, split, options.seed)
    with write_atomically(out / "mix.json") as file:
        file.write(json.dumps(manifest, ensure_ascii=False, indent=2).encode() + b"\n")
    return manifest


def _check(options: MixOptions) -> None:
    names = [source.name for source in options.sources]
    if len(set(names)) < len(names):
        raise UsageError("two sources have one name", hint="give each source a name of its own")
    for kind, share in options.shares.items():
        if share > 0 and not any(source.kind == kind for source in options.sources):
            raise UsageError(
                f"no source is of kind {kind!r}, which is to have {share:.0%}", hint="add one, or set its share to 0"
            )
    if abs(sum(options.shares.values()) - 1) > 1e-6 or min(options.shares.values()) < 0:
        raise UsageError("the shares do not sum to 1", hint=f"presets: {', '.join(PRESETS)}")
    if abs(sum(options.splits.values()) - 1) > 1e-6 or options.splits.get("train", 0) <= 0:
        raise UsageError("the splits do not sum to 1, or train has none")
    if options.temperature <= 0 or any(source.max_repeats < 1 or source.weight <= 0 for source in options.sources):
        raise UsageError("temperature and weights are above 0, and repeats from 1")


class _Groups:
    """Union-find over whatever ties talks together: topics, cards, source dialogues."""

    def __init__(self) -> None:
        self._parents = array("L")
        self._of: dict[bytes, int] = {}

    def join(self, keys: Iterable[str]) -> int:
        """The group of a talk with these keys; groups that it connects become one."""
        roots = {self.root(self._node(key)) for key in keys}
        first = min(roots)
        for other in roots:
            self._parents[other] = first
        return first

    def root(self, node: int) -> int:
        """The group that a node belongs to now."""
        while self._parents[node] != node:
            self._parents[node] = self._parents[self._parents[node]]
            node = self._parents[node]
        return node

    def _node(self, key: str) -> int:
        digest = hashlib.blake2b(key.encode(), digest_size=12).digest()
        if digest not in self._of:
            self._of[digest] = len(self._parents)
            self._parents.append(len(self._parents))
        return self._of[digest]


def ties(talk: Conversation, source: str) -> Iterator[str]:
    """What ties a talk to others: its topic, its card, the dialogue that it was made from; by itself, its id."""
    if talk.meta.topic:
        yield f"topic:{talk.meta.topic}"
    if talk.provenance.card_sha:
        yield f"card:{talk.provenance.card_sha}"
    if talk.provenance.source:
        yield f"talk:{talk.provenance.source}"
    yield f"talk:{talk.id}" if talk.meta.topic or talk.provenance.card_sha else f"talk:{source}:{talk.id}"


def _shelve(
    source: MixSource,
    read: Callable[[Path], Iterable[Conversation]],
    count: Count,
    store: IO[bytes],
    groups: _Groups,
    seed: int,
) -> _Shelf:
    shelf = _Shelf(source=source, sha256=_sha256(source.path))
    for place, talk in enumerate(read(source.path)):
        line = talk.to_json().encode() + b"\n"
        shelf.starts.append(store.tell())
        shelf.lengths.append(len(line))
        store.write(line)
        shelf.tokens.append(max(1, count(talk.turns)))
        shelf.roots.append(groups.join(ties(talk, source.name)))
        shelf.keys.append(_number(f"{seed}|{source.name}|{talk.id}|{place}"))
        if talk.split is not None:
            shelf.given[place] = talk.split
    if not shelf.starts:
        raise DataError("there is no talk in it", path=source.path, hint="leave the source out")
    return shelf


def _split(shelves: Sequence[_Shelf], groups: _Groups, options: MixOptions) -> dict[int, Split]:
    """A split for every group. A split that a talk brings along holds for its group; the rest fill what lacks most."""
    sizes: dict[int, int] = defaultdict(int)
    given: dict[int, set[Split]] = defaultdict(set)
    for shelf in shelves:
        for place, tokens in enumerate(shelf.tokens):
            shelf.roots[place] = root = groups.root(shelf.roots[place])
            sizes[root] += tokens
            if place in shelf.given:
                given[root].add(shelf.given[place])
    crossing = [root for root, found in given.items() if len(found) > 1]
    if crossing:
        raise DataError(
            f"{len(crossing)} groups of talks that share a topic or a card stand in several splits",
            hint="take `split` out of the talks, and it is made anew",
        )
    split_of: dict[int, Split] = {root: next(iter(found)) for root, found in given.items()}
    filled = dict.fromkeys(SPLITS, 0)
    for root, split in split_of.items():
        filled[split] += sizes[root]
    total = sum(sizes.values())
    for root in sorted(sizes.keys() - split_of.keys(), key=lambda each: _number(f"{options.seed}|group|{each}")):
        lacks = {split: options.splits.get(split, 0.0) * total - filled[split] for split in SPLITS}
        split = max(SPLITS, key=lambda each: (lacks[each], each == "train"))
        split_of[root] = split
        filled[split] += sizes[root]
    return split_of


def _draw(shelves: Sequence[_Shelf], split_of: Mapping[int, Split], split: Split, options: MixOptions) -> list[Drawn]:
    """Which talks of a split, how often. Only `train` repeats."""
    places = [[p for p in range(len(s.starts)) if split_of[s.roots[p]] == split] for s in shelves]
    there = [sum(shelf.tokens[p] for p in mine) for shelf, mine in zip(shelves, places, strict=True)]
    repeats = [shelf.source.max_repeats if split == "train" else 1 for shelf in shelves]
    quotas = _quotas(shelves, there, repeats, options, split)
    drawn = []
    for index, shelf in enumerate(shelves):
        order = sorted(places[index], key=lambda p, keys=shelf.keys: keys[p])  # type: ignore[misc]
        left = quotas[index]
        for copy in range(1, repeats[index] + 1):
            for place in order:
                if left < shelf.tokens[place] / 2:
                    break
                drawn.append(Drawn(index, place, copy))
                left -= shelf.tokens[place]
    return drawn


def _quotas(
    shelves: Sequence[_Shelf], there: Sequence[int], repeats: Sequence[int], options: MixOptions, split: Split
) -> list[float]:
    """Tokens that each source gives to a split."""
    most = {
        kind: sum(n * r for s, n, r in zip(shelves, there, repeats, strict=True) if s.source.kind == kind) for kind in KINDS
    }
    wanted = {kind: share for kind, share in options.shares.items() if share > 0}
    reachable = min(most[kind] / share for kind, share in wanted.items())
    total = reachable
    if options.tokens is not None and split == "train":
        total = float(options.tokens)
        if total > reachable + 0.5:
            short = min(wanted, key=lambda kind: most[kind] / wanted[kind])
            raise UsageError(
                f"{options.tokens:,} tokens cannot be had: {short} would need {wanted[short] * total:,.0f} and has "
                f"{most[short]:,} with its repeats",
                hint=f"at most {int(reachable):,} tokens; or more data, more repeats, or a smaller share of {short}",
            )
    quotas = [0.0] * len(shelves)
    for kind, share in wanted.items():
        mine = [index for index, shelf in enumerate(shelves) if shelf.source.kind == kind]
        _fill(quotas, mine, share * total, shelves, there, repeats, options.temperature)
    return quotas


def _fill(  # noqa: PLR0913, PLR0917 - one step of _quotas
    quotas: list[float],
    mine: Sequence[int],
    total: float,
    shelves: Sequence[_Shelf],
    there: Sequence[int],
    repeats: Sequence[int],
    temperature: float,
) -> None:
    """Share `total` out among the sources of a kind; what goes over a source's cap goes to the others."""
    pulls = {i: shelves[i].source.weight * there[i] ** (1 / temperature) for i in mine if there[i]}
    left = total
    while pulls and left > 0.5:
        whole = sum(pulls.values())
        over = [i for i in pulls if left * pulls[i] / whole >= there[i] * repeats[i]]
        for i in over or pulls:
            quotas[i] = there[i] * repeats[i] if over else left * pulls[i] / whole
        if not over:
            return
        left -= sum(quotas[i] for i in over)
        for i in over:
            del pulls[i]


def _write(
    path: Path, drawn: list[Drawn], shelves: Sequence[_Shelf], store: IO[bytes], split: Split, seed: int
) -> dict[str, Any]:
    """Write a split in the order that the seed gives; returns its counts by kind and by source."""
    drawn.sort(key=lambda d: _number(f"{seed}|{d.shelf}|{d.place}|{d.copy}"))
    kinds: dict[str, int] = defaultdict(int)
    sources: dict[str, dict[str, int]] = {shelf.source.name: {"talks": 0, "tokens": 0, "copies": 0} for shelf in shelves}
    digest, turns = hashlib.sha256(), 0
    with write_atomically(path) as file:
        for each in drawn:
            shelf = shelves[each.shelf]
            store.seek(shelf.starts[each.place])
            talk = parse_conversation(store.read(shelf.lengths[each.place]).decode())
            name = talk.id if each.copy == 1 else f"{talk.id}#{each.copy}"
            line = talk.model_copy(update={"id": name, "split": split}).to_json().encode() + b"\n"
            file.write(line)
            digest.update(line)
            turns += len(talk.turns)
            kinds[shelf.source.kind] += shelf.tokens[each.place]
            counts = sources[shelf.source.name]
            counts["talks"] += 1
            counts["tokens"] += shelf.tokens[each.place]
            counts["copies"] += each.copy > 1
    total = sum(kinds.values())
    return {
        "talks": len(drawn),
        "turns": turns,
        "tokens": total,
        "shares": {kind: round(kinds[kind] / total, 4) if total else 0.0 for kind in KINDS},
        "sources": sources,
        "sha256": digest.hexdigest(),
    }


def _sources(shelves: Sequence[_Shelf]) -> list[dict[str, Any]]:
    return [
        {
            "name": shelf.source.name,
            "kind": shelf.source.kind,
            "file": shelf.source.path.name,
            "sha256": shelf.sha256,
            "licence": shelf.source.licence,
            "talks": len(shelf.starts),
            "tokens": sum(shelf.tokens),
            "weight": shelf.source.weight,
            "max_repeats": shelf.source.max_repeats,
        }
        for shelf in shelves
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(text: str) -> int:
    """64 bits that a text decides, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
