"""What judges have seen of a curated set: what `qiaoban judge talks` wrote into its folder `judge`, or into the set's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from qiaoban.conversation import read_records
from qiaoban.judge.agreement import Agreement
from qiaoban.judge.results import KINDS, counted, kind_of
from qiaoban.judge.talks import Judgement

_NAME = "judgements.jsonl"


@dataclass(frozen=True)
class Judged:
    """Judgements by judge, how many of them are by the model that wrote the talk, and the ids of the talks.

    `levels` counts by dimension how often each level was given, by all judges; `agreement` is `Agreement.table`.
    """

    by_judge: dict[str, int]
    own_teacher: int
    ids: frozenset[str]
    levels: dict[str, Counter[str]]
    agreement: list[dict[str, Any]]

    @property
    def level_rows(self) -> list[list[str | int]]:
        """A row a dimension: its name, then how often each of `KINDS` was given."""
        return [[name, *(counts[kind] for kind in KINDS)] for name, counts in self.levels.items()]

    @property
    def agreement_rows(self) -> list[list[object]]:
        """A row a pair of raters and dimension: both, how many levels, the share that is equal, kappa, opposite ones."""
        keys = ("dimension", "levels", "equal", "kappa", "opposite")
        return [
            [" and ".join(row["raters"]), *("–" if row[key] is None else row[key] for key in keys)] for row in self.agreement
        ]

    @property
    def count(self) -> int:
        """All judgements."""
        return sum(self.by_judge.values())


def read_judged(folder: Path) -> Judged | None:
    """The judgements of a curated folder; None where no judge has written any. The ids of judged talks are held in memory."""
    path = next((each / _NAME for each in (folder / "judge", folder) if (each / _NAME).is_file()), None)
    if path is None:
        return None
    judges, own, ids = Counter[str](), 0, set[str]()
    levels, agreement = dict[str, Counter[str]](), Agreement()
    for name, group in groupby(read_records(path, Judgement), key=attrgetter("id")):
        judgements = list(group)
        ids.add(name)
        agreement.add(counted(judgements))
        for judgement in judgements:
            judges[judgement.judge] += 1
            own += judgement.own_teacher
            for dimension, level in judgement.levels.items():
                levels.setdefault(dimension, Counter())[kind_of(level)] += 1
    return Judged(dict(sorted(judges.items())), own, frozenset(ids), levels, agreement.table())
