"""Quotas and coverage: which cells a plan has, and which scene and feeling fill each of them.

A *cell* is (domain, age band, risk level, outcome). Quotas are met by construction: the columns of a table of cells hold each
value as often as its share asks, and rows only ever swap values (`allot`). `Filler` then chooses a scene and an emotion for
every row, greedily for pairs of values that no card has yet, as covering arrays are built (Cohen et al. 1997, AETG), and
otherwise evenly over the scenes.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeVar

from qiaoban.collect.rules import emotions_of, outcomes_of, years_of
from qiaoban.collect.world import Level, Source, World
from qiaoban.conversation import AgeBand, Emotion

Value = TypeVar("Value")
Cell = tuple[str, str, str, str]
Stratum = tuple[str, str, str, tuple[str, ...]]
Pair = tuple[int, int, str, str]
DIMENSIONS = ("domain", "age_band", "risk", "outcome", "emotion")
_COLUMNS = tuple(columns for size in (1, 2, 3) for columns in combinations(range(4), size))
_NOWHERE = 1e9  # what a row costs that no scene can fill
_ASKED_TO_HELP = 40_000  # rows that are asked, in all, to exchange with rows that nobody can fill
_LOOK_AT = 64  # variants looked at for a pair
_ROWS_TO_BEND = 12


class Variant(NamedTuple):
    """One way to fill a row: its cell, the scene or scenario, and the feeling."""

    cell: Cell
    source: str
    emotion: Emotion

    def pairs(self) -> list[Pair]:
        """The ten pairs of values that a card of this variant covers."""
        values = (*self.cell, str(self.emotion.value))
        return [(i, j, values[i], values[j]) for i, j in combinations(range(5), 2)]


class Grid:
    """Everything that the rules admit: variants by cell and by pair, and the strata in which scenes take turns."""

    def __init__(self, variants: Iterable[Variant], outcomes: Mapping[str, tuple[str, ...]]) -> None:
        self.variants = tuple(variants)
        self.by_cell: dict[Cell, dict[str, list[Emotion]]] = defaultdict(dict)
        self.by_pair: dict[Pair, list[int]] = defaultdict(list)
        self.strata: dict[Stratum, dict[str, None]] = defaultdict(dict)
        self._outcomes = outcomes
        for index, variant in enumerate(self.variants):
            self.by_cell[variant.cell].setdefault(variant.source, []).append(variant.emotion)
            self.strata[self.stratum(variant.cell, variant.source)][variant.source] = None
            for pair in variant.pairs():
                self.by_pair[pair].append(index)

    def stratum(self, cell: Cell, source: str) -> Stratum:
        """Where scenes take turns: the same domain, band and level, and the same outcomes that they allow."""
        return (cell[0], cell[1], cell[2], self._outcomes[source])

    def values(self, dimension: int) -> list[str]:
        """The values of a column that some scene can fill."""
        return sorted({cell[dimension] for cell in self.by_cell})


@dataclass(frozen=True)
class Wanted:
    """What a grid is limited to."""

    ages: tuple[int, int]
    domains: frozenset[str]
    levels: frozenset[Level]
    outcomes: frozenset[str]


def grid_of(world: World, wanted: Wanted) -> Grid:
    """Every variant of the bank inside `wanted`."""
    ends = {source.id: outcomes_of(source, world) for source in world.sources.values()}
    variants = [v for source in world.sources.values() for v in _variants(source, ends[source.id], world, wanted)]
    return Grid(variants, ends)


def _variants(source: Source, ends: tuple[str, ...], world: World, wanted: Wanted) -> Iterable[Variant]:
    if source.level not in wanted.levels:
        return
    for band in AgeBand:
        years = [year for year in years_of(band, wanted.ages) if source.ages[0] <= year <= source.ages[1]]
        emotions = list(dict.fromkeys(e for year in reversed(years) for e in emotions_of(source, year, world)))
        for domain in source.domains:
            if domain in wanted.domains:
                for end in ends:
                    if end in wanted.outcomes:
                        yield from (Variant((domain, band.value, source.level, end), source.id, e) for e in emotions)


def quotas(weights: Mapping[str, float], count: int, rng: random.Random) -> dict[str, int]:
    """Whole numbers that sum to `count`, each within one of its share: the largest remainders are rounded up."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items() if weight > 0}
    got = {name: int(share) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: (got[name] - exact[name], rng.random()))
    for name in order[: count - sum(got.values())]:
        got[name] += 1
    return got


def spread(quota: Mapping[str, int]) -> list[str]:
    """Every name as often as its quota says, each as evenly over the list as can be."""
    total = sum(quota.values())
    given: Counter[str] = Counter()
    names: list[str] = []
    for place in range(1, total + 1):
        due = max(quota, key=lambda name: quota[name] * place / total - given[name])
        given[due] += 1
        names.append(due)
    return names


def allot(grid: Grid, quota: Sequence[Mapping[str, int]], rng: random.Random) -> list[Cell]:
    """Rows whose four columns meet their quotas and that scenes can fill, in proportion to how many scenes can.

    Where no such table exists the rows that nobody can fill move to the nearest cell, and the quotas give way.
    """
    columns = [[name for name, times in column.items() for _ in range(times)] for column in quota]
    for column in columns:
        rng.shuffle(column)
    rows: list[Cell] = [(a, b, c, d) for a, b, c, d in zip(*columns, strict=True)]
    _Swaps(grid, rows, rng).settle()
    cells = list(grid.by_cell)
    return [row if row in grid.by_cell else _nearest(row, cells, rng) for row in rows]


def _nearest(row: Cell, cells: list[Cell], rng: random.Random) -> Cell:
    return min(cells, key=lambda cell: (sum(a != b for a, b in zip(row, cell, strict=True)), rng.random()))


class _Swaps:
    """Hill climbing: two rows exchange some columns where that lowers the crowding, Σ rows² ÷ scenes over the cells."""

    def __init__(self, grid: Grid, rows: list[Cell], rng: random.Random) -> None:
        self.room = {cell: len(sources) for cell, sources in grid.by_cell.items()}
        self.rows, self.rng = rows, rng
        self.count = Counter(rows)

    def settle(self) -> None:
        size = len(self.rows)
        for _ in range(max(15 * size, min(60 * size, 60_000))):
            self._try(int(self.rng.random() * size), int(self.rng.random() * size), self.rng.choice(_COLUMNS))
        help_left = _ASKED_TO_HELP
        while help_left > 0 and (lost := [index for index, row in enumerate(self.rows) if row not in self.room]):
            help_left -= sum(map(self._rescue, lost[:_ROWS_TO_BEND]))

    def _rescue(self, index: int) -> int:
        """Exchange with one row after another, in every way, until the row can be filled; returns how many were asked."""
        others = self.rng.sample(range(len(self.rows)), min(len(self.rows), _ASKED_TO_HELP // 10))
        for asked, other in enumerate(others, start=1):
            for columns in _COLUMNS:
                self._try(index, other, columns)
                if self.rows[index] in self.room:
                    return asked
        return len(others)

    def _try(self, i: int, j: int, columns: tuple[int, ...]) -> None:
        old = self.rows[i], self.rows[j]
        new = swapped(*old, columns)
        if set(old) == set(new):
            return
        touched = dict.fromkeys((*old, *new))  # in order: floats do not add up alike in any order
        before = sum(map(self._cost, touched))
        self._replace(i, j, new)
        if sum(map(self._cost, touched)) >= before:
            self._replace(i, j, old)

    def _replace(self, i: int, j: int, new: tuple[Cell, Cell]) -> None:
        for index, cell in zip((i, j), new, strict=True):
            self.count[self.rows[index]] -= 1
            self.rows[index] = cell
            self.count[cell] += 1

    def _cost(self, cell: Cell) -> float:
        return self.count[cell] ** 2 / self.room[cell] if cell in self.room else self.count[cell] * _NOWHERE


def swapped(one: Cell, two: Cell, columns: Iterable[int]) -> tuple[Cell, Cell]:
    """Both cells after they exchanged `columns`."""
    first, second = list(one), list(two)
    for column in columns:
        first[column], second[column] = two[column], one[column]
    return (first[0], first[1], first[2], first[3]), (second[0], second[1], second[2], second[3])


class Mender:
    """Last touches to finished picks for pairs that are still missing: another feeling, or two cards exchange outcomes.

    Neither moves a scene, so quotas and the turns of the scenes stay as they are.
    """

    def __init__(self, grid: Grid, picks: list[Variant], cards_of: Counter[Pair], rng: random.Random) -> None:
        self.grid, self.picks, self.cards_of, self.rng = grid, picks, cards_of, rng
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, variant in enumerate(picks):
            self.places[variant.source].append(place)

    def mend(self) -> None:
        """Try every missing pair once."""
        for pair in self.grid.by_pair:
            if not self.cards_of[pair]:
                indices = self.grid.by_pair[pair]
                tries = map(self.grid.variants.__getitem__, self.rng.sample(indices, min(len(indices), _LOOK_AT)))
                any(self._try(variant, place) for variant in tries for place in self.places[variant.source])

    def _try(self, wanted: Variant, place: int) -> bool:
        cell = self.picks[place].cell
        if cell[:3] != wanted.cell[:3]:
            return False
        if cell == wanted.cell:
            return self._change({place: wanted})
        for other in self.rng.sample(range(len(self.picks)), min(len(self.picks), 4 * _LOOK_AT)):
            theirs = self.picks[other]
            swapped_cell = swapped(theirs.cell, cell, [3])[0]
            fits = theirs.source in self.grid.by_cell.get(swapped_cell, ())
            if (
                other != place
                and fits
                and theirs.cell[3] == wanted.cell[3]
                and self._change({place: wanted, other: theirs._replace(cell=swapped_cell)})
            ):
                return True
        return False

    def _change(self, to: Mapping[int, Variant]) -> bool:
        """Make the change if more pairs are covered with it than without."""
        old = [pair for place in to for pair in self.picks[place].pairs()]
        new = [pair for variant in to.values() for pair in variant.pairs()]
        before = sum(self.cards_of[pair] > 0 for pair in {*old, *new})
        self.cards_of.subtract(old)
        self.cards_of.update(new)
        if sum(self.cards_of[pair] > 0 for pair in {*old, *new}) <= before:
            self.cards_of.subtract(new)
            self.cards_of.update(old)
            return False
        for place, variant in to.items():
            self.picks[place] = variant
        return True


class Filler:
    """Chooses the scene and the feeling of every row."""

    def __init__(self, grid: Grid, rows: Sequence[Cell], rng: random.Random) -> None:
        self.grid, self.rng = grid, rng
        self.open = Counter(rows)
        self.size = len(rows)
        self.picks: list[Variant] = []
        self.cards_of: Counter[Pair] = Counter()
        self.turns: Counter[tuple[Stratum, str]] = Counter()
        self.uses: Counter[str] = Counter()
        self.felt: Counter[Emotion] = Counter()

    def fill(self) -> list[Variant]:
        """Variants in an order in which no scene comes twice before every one of its stratum came once."""
        while len(self.picks) < self.size:
            self._cover()
            rest = [cell for cell, times in self.open.items() for _ in range(times)]
            self.rng.shuffle(rest)
            for cell in rest[: max(8, self.size // 8)]:
                self._take(self._best_of(cell))
        Mender(self.grid, self.picks, self.cards_of, self.rng).mend()
        return self.picks

    def _cover(self) -> None:
        """Cards for pairs that none has, the rarest first; a pair that cannot be had now waits for the next time."""
        todo = [pair for pair in self.grid.by_pair if not self.cards_of[pair]]
        self.rng.shuffle(todo)
        todo.sort(key=lambda pair: -len(self.grid.by_pair[pair]))
        while todo and len(self.picks) < self.size:
            pair = todo.pop()
            if not self.cards_of[pair]:
                best = self._best_for(pair)
                if best:
                    self._take(best)

    def _best_for(self, pair: Pair) -> Variant | None:
        indices = self.grid.by_pair[pair]
        some = indices if len(indices) <= _LOOK_AT else self.rng.sample(indices, _LOOK_AT)
        ready = [v for v in map(self.grid.variants.__getitem__, some) if self._is_due(v.cell, v.source)]
        now = [variant for variant in ready if self.open[variant.cell] > 0]
        if not now:
            return next((variant for variant in ready[: _LOOK_AT // 4] if self._open_up(variant.cell)), None)
        return max(now, key=lambda v: (self._gain(v), -self.uses[v.source], self.rng.random()))

    def _best_of(self, cell: Cell) -> Variant:
        """For a given row: new pairs first, then the scene and the feeling that came least."""
        variants = [
            Variant(cell, source, emotion)
            for source, emotions in self.grid.by_cell[cell].items()
            if self._is_due(cell, source)
            for emotion in emotions
        ]
        return max(variants, key=lambda v: (self._gain(v), -self.uses[v.source], -self.felt[v.emotion], self.rng.random()))

    def _gain(self, variant: Variant) -> int:
        if len(self.cards_of) == len(self.grid.by_pair):
            return 0
        return sum(pair not in self.cards_of for pair in variant.pairs())

    def _is_due(self, cell: Cell, source: str) -> bool:
        """Whether nobody in the stratum came less often."""
        stratum = self.grid.stratum(cell, source)
        mine = self.turns[stratum, source]
        return mine == 0 or all(self.turns[stratum, other] >= mine for other in self.grid.strata[stratum])

    def _open_up(self, cell: Cell) -> bool:
        """Make a row for `cell` of two open ones that exchange columns, so that the quotas stay; false where none can."""
        rows = [row for row, times in self.open.items() if times > 0]
        near = sorted(rows, key=lambda row: sum(a != b for a, b in zip(row, cell, strict=True)))[:_ROWS_TO_BEND]
        for row in near:
            columns = [k for k in range(4) if row[k] != cell[k]]
            for other in rows:
                if all(other[k] == cell[k] for k in columns):
                    _, bent = swapped(row, other, columns)
                    if bent in self.grid.by_cell and (other != row):
                        self.open.subtract([row, other])
                        self.open.update([cell, bent])
                        return True
        return False

    def _take(self, variant: Variant) -> None:
        self.picks.append(variant)
        self.open[variant.cell] -= 1
        self.cards_of.update(variant.pairs())
        self.turns[self.grid.stratum(variant.cell, variant.source), variant.source] += 1
        self.uses[variant.source] += 1
        self.felt[variant.emotion] += 1
