"""How far raters agree: in how many levels exactly, and Cohen's kappa with quadratic weights (Cohen 1968) beyond chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations

_LEVELS = (0, 1, 2)


class Agreement:
    """Counts pairs of levels that two raters gave in the same dimension of the same talk."""

    def __init__(self) -> None:
        self._pairs: defaultdict[tuple[str, str], defaultdict[str, Counter[tuple[int, int]]]] = defaultdict(
            lambda: defaultdict(Counter)
        )

    def add(self, levels: Mapping[str, Mapping[str, int | None]]) -> None:
        """The levels of one talk: by rater, by dimension. What either left open does not count."""
        for first, second in combinations(sorted(levels), 2):
            table = self._pairs[first, second]
            for name, one in levels[first].items():
                other = levels[second].get(name)
                if one is not None and other is not None:
                    table[name][one, other] += 1

    def table(self) -> list[dict[str, object]]:
        """One row a pair of raters and dimension: how many levels, the share that is equal, kappa, and opposite ones.

        Kappa is None where both gave one and the same level only: chance and agreement cannot be told apart then.
        """
        rows: list[dict[str, object]] = []
        for (first, second), dimensions in sorted(self._pairs.items()):
            for name, counts in dimensions.items():
                total = sum(counts.values())
                rows.append(
                    {
                        "raters": [first, second],
                        "dimension": name,
                        "levels": total,
                        "equal": round(sum(n for (a, b), n in counts.items() if a == b) / total, 3),
                        "kappa": kappa(counts),
                        "opposite": counts[0, 2] + counts[2, 0],
                    }
                )
        return rows


def kappa(counts: Mapping[tuple[int, int], int]) -> float | None:
    """Quadratically weighted kappa of a table of level pairs; None where it is not defined."""
    total = sum(counts.values())
    first = Counter[int]()
    second = Counter[int]()
    for (a, b), n in counts.items():
        first[a] += n
        second[b] += n
    by_chance = sum((a - b) ** 2 * first[a] * second[b] / total for a in _LEVELS for b in _LEVELS) if total else 0.0
    if not by_chance:
        return None
    seen = sum((a - b) ** 2 * n for (a, b), n in counts.items())
    return round(1 - seen / by_chance, 3)
