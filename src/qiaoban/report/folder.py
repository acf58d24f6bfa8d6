"""A folder that `qiaoban curate` wrote: its counts, its findings, its talks, read again and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import Conversation, parse_record, read_conversations, read_records
from qiaoban.curate.rules import Severity
from qiaoban.errors import DataError

HELD_OUT, PERSONAL = "3-held-out", "4-personal-data"


class _Record(BaseModel):
    """Frozen; keys that a later curation adds are no error."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stage(_Record):
    """How many talks went into a stage and came out, and why the others did not, by reason."""

    stage: str
    read: int
    kept: int
    dropped: dict[str, int]


class Options(_Record):
    """How it was curated: names of the test sets, whether a deny list was given, and what was done instead of dropping."""

    against: tuple[str, ...]
    deny: bool
    drop_repairable: bool
    redact: bool


class Stats(_Record):
    """`stats.json`. Folders of older releases have no `options` and no `origin` (talks read: synthetic, people, unknown)."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    options: Options | None = None
    origin: dict[str, int] | None = None


class Found(_Record):
    """A line of `findings.jsonl`."""

    id: str
    turn: int | None
    rule: str
    severity: Severity
    message: str


class Gone(_Record):
    """A line of a stage's `dropped.jsonl`."""

    id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class CuratedFolder:
    """The folder and its counts; everything else is read when it is asked for."""

    path: Path
    stats: Stats

    @classmethod
    def open(cls, path: Path) -> CuratedFolder:
        """`DataError` where a file is missing, or where the counts are not those of a curation."""
        hint = "curate a file into it: `qiaoban curate FILE FOLDER`"
        for name in ("stats.json", "findings.jsonl", "kept.jsonl"):
            if not (path / name).is_file():
                raise DataError(f"there is no {name} in it", path=path, hint=hint)
        try:
            text = (path / "stats.json").read_text("utf-8")
            return cls(path, parse_record(Stats, text, path=path / "stats.json"))
        except (DataError, UnicodeDecodeError):
            hint += "; `qiaoban judge` wants a folder of its own"
            raise DataError("these are not the counts of a curation", path=path / "stats.json", hint=hint) from None

    @property
    def kept(self) -> Path:
        """The talks that are left."""
        return self.path / "kept.jsonl"

    def talks(self) -> Iterator[Conversation]:
        """The talks that are left, in order."""
        return read_conversations(self.kept)

    def findings(self) -> Iterator[Found]:
        """What the rules found in all talks that were read, in the order of the talks."""
        return read_records(self.path / "findings.jsonl", Found)

    def dropped(self, stage: str) -> Iterator[Gone]:
        """The talks that a stage left out, with the evidence; none where the stage's folder is gone."""
        path = self.path / stage / "dropped.jsonl"
        return read_records(path, Gone) if path.is_file() else iter(())

    def stage(self, name: str) -> Stage | None:
        """The counts of one stage."""
        return next((each for each in self.stats.stages if each.stage == name), None)
