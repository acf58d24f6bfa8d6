"""The stages in their order: rules, duplicates, held-out texts, personal data. Each reads a file and leaves three.

A stage writes `kept.jsonl`, `dropped.jsonl` (id, reason, detail) and `stats.json` into a folder of its own, whole or not at
all. What goes into a stage comes out of it, kept or dropped; counts change only between stages. The same input gives the same
bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qiaoban.conversation import Conversation, read_conversations
from qiaoban.curate.decontaminate import DenyList, HeldOut, decontaminate
from qiaoban.curate.dedup import dedup
from qiaoban.curate.lint import lint
from qiaoban.curate.pii import without_pii
from qiaoban.curate.stage import Dropped, Outcome
from qiaoban.files import write_atomically

Read = Callable[[], Iterable[Conversation]]


@dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """What is held against a dialogue. `against` are test sets, `deny` a list of hashed ones; `redact` mends personal data."""

    against: tuple[HeldOut, ...] = ()
    deny: DenyList | None = None
    drop_repairable: bool = False
    redact: bool = False


@dataclass(frozen=True)
class StageCount:
    """How many dialogues went into a stage and came out, and why the others did not, by reason."""

    stage: str
    read: int
    kept: int
    dropped: dict[str, int]


def curate(read: Read, out: Path, options: CurateOptions) -> list[StageCount]:
    """Run every stage over the talks that `read` gives (it is called twice), and write all into `out`.

    Findings of the rules go to `out/findings.jsonl`, which `collect plan --mode repair` takes; the last `kept.jsonl` also
    stands in `out` itself, with `stats.json` for the whole way.
    """
    findings = out / "findings.jsonl"
    stages: list[tuple[str, Callable[[Iterable[Conversation]], Iterable[Outcome]]]] = [
        ("1-rules", partial(_by_rules, reasons=_judge(read, findings, options))),
        ("2-duplicates", dedup),
        ("3-held-out", partial(decontaminate, against=options.against, deny=options.deny)),
        ("4-personal-data", partial(without_pii, redacting=options.redact)),
    ]
    counts = []
    for name, stage in stages:
        counts.append(_run(name, stage, read(), out / name))
        read = partial(read_conversations, out / name / "kept.jsonl")
    with write_atomically(out / "kept.jsonl") as file, (out / stages[-1][0] / "kept.jsonl").open("rb") as last:
        for line in last:
            file.write(line)
    _write_json(out / "stats.json", {"stages": [asdict(count) for count in counts]})
    return counts


def _judge(read: Read, path: Path, options: CurateOptions) -> dict[str, str]:
    """Write all findings; the dialogues that are to go, with the first rule against each."""
    severities = ("drop", "repair") if options.drop_repairable else ("drop",)
    reasons: dict[str, str] = {}
    with write_atomically(path) as file:
        for finding in lint(read()):
            row = {"id": finding.id, "turn": finding.turn, "rule": finding.rule, "severity": finding.severity}
            file.write(json.dumps(row | {"message": finding.message}, ensure_ascii=False).encode() + b"\n")
            if finding.severity in severities:
                reasons.setdefault(finding.id, finding.rule)
    return reasons


def _by_rules(talks: Iterable[Conversation], reasons: dict[str, str]) -> Iterator[Outcome]:
    for talk in talks:
        yield Dropped(talk.id, reasons[talk.id]) if talk.id in reasons else talk


def _run(
    name: str, stage: Callable[[Iterable[Conversation]], Iterable[Outcome]], talks: Iterable[Conversation], folder: Path
) -> StageCount:
    why: Counter[str] = Counter()
    keeps = 0
    with write_atomically(folder / "kept.jsonl") as good, write_atomically(folder / "dropped.jsonl") as bad:
        for each in stage(talks):
            if isinstance(each, Dropped):
                why[each.reason] += 1
                bad.write(json.dumps(asdict(each), ensure_ascii=False).encode() + b"\n")
            else:
                keeps += 1
                good.write(each.to_json().encode() + b"\n")
    count = StageCount(name, keeps + sum(why.values()), keeps, dict(sorted(why.items())))
    _write_json(folder / "stats.json", asdict(count))
    return count


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with write_atomically(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")
