"""Everything that the page and the card tell, gathered from one curated folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from qiaoban.report.diversity import Diversity
from qiaoban.report.folder import CuratedFolder, Options, Stage
from qiaoban.report.hits import RuleHits
from qiaoban.report.judged import Judged, read_judged
from qiaoban.report.safety import Assessment, Assessor
from qiaoban.report.talks import TalkFigures


@dataclass(frozen=True)
class Digest:
    """What identifies `kept.jsonl`: its sha256, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Figures:
    """The figures of a curated folder."""

    stages: tuple[Stage, ...]
    options: Options | None
    read_from: dict[str, int] | None
    hits: RuleHits
    talks: TalkFigures
    diversity: tuple[Diversity, ...]
    safety: Assessment
    judged: Judged | None
    kept: Digest

    @property
    def read(self) -> int:
        """Talks that went into the first stage."""
        return self.stages[0].read

    @property
    def left(self) -> int:
        """Talks that came out of the last stage; `talks.talks` is another number where somebody has changed the file since."""
        return self.stages[-1].kept


def gather(path: Path) -> Figures:
    """Read the folder: its talks twice, in bounded memory. `DataError` where it is not one that `qiaoban curate` wrote."""
    folder = CuratedFolder.open(path)
    hits = RuleHits(folder.findings())
    judged = read_judged(path)
    assessor = Assessor(folder, hits, judged.ids if judged else None)
    talks = TalkFigures()
    for talk in folder.talks():
        talks.add(talk)
        assessor.add(talk)
    with folder.kept.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Figures(
        stages=folder.stats.stages,
        options=folder.stats.options,
        read_from=folder.stats.origin,
        hits=hits,
        talks=talks,
        diversity=tuple(talks.samples.measured()),
        safety=assessor.assessment(),
        judged=judged,
        kept=Digest(digest, folder.kept.stat().st_size),
    )
