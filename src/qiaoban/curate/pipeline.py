"""The stages in their order: rules, duplicates, held-out texts, personal data. Each leaves three files.

Talks are read twice: once for the rules, then once for all that follows, in which each stage hands its talks to the next.

A stage writes `kept.jsonl`, `dropped.jsonl` (id, reason, detail) and `stats.json` into a folder of its own, whole or not at
all. What goes into a stage comes out of it, kept or dropped; counts change only between stages. The same input gives the same
bytes.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from time import perf_counter
from typing import Any, Protocol

from qiaoban.conversation import Conversation
from qiaoban.curate.decontaminate import DenyList, HeldOut, decontaminate
from qiaoban.curate.dedup import dedup
from qiaoban.curate.lint import lint
from qiaoban.curate.near import BLOCK
from qiaoban.curate.pii import without_pii
from qiaoban.curate.rules import Finding
from qiaoban.curate.stage import Dropped, Outcome
from qiaoban.files import write_atomically, write_json

Read = Callable[[], Iterable[Conversation]]
Stage = Callable[[Iterable[Conversation]], Iterable[Outcome]]
ORIGINS = {True: "synthetic", False: "people", None: "unknown"}  # what `provenance.synthetic` says of who wrote a talk


@dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """What is held against a dialogue. `against` are test sets, `deny` a list of hashed ones; `redact` mends personal data."""

    against: tuple[HeldOut, ...] = ()
    deny: DenyList | None = None
    drop_repairable: bool = False
    redact: bool = False

    def as_json(self) -> dict[str, Any]:
        """What is told of them in `stats.json`: names of test sets, never their texts."""
        return {
            "against": [each.name for each in self.against],
            "deny": self.deny is not None,
            "drop_repairable": self.drop_repairable,
            "redact": self.redact,
        }


@dataclass(frozen=True)
class StageCount:
    """How many dialogues went into a stage and came out, why the others did not, by reason, and how long it took.

    The time stands in no file, for the same input gives the same bytes.
    """

    stage: str
    read: int
    kept: int
    dropped: dict[str, int]
    seconds: float = field(default=0, compare=False)

    def as_json(self) -> dict[str, Any]:
        """What the files tell."""
        return {"stage": self.stage, "read": self.read, "kept": self.kept, "dropped": self.dropped}


class Hands(Protocol):
    """Who does the work that looks at one talk at a time: this process, or a cluster (`qiaoban.curate.scale`)."""

    def findings(self, read: Read) -> Iterator[Finding]:
        """Findings as `lint` gives them."""
        ...

    def each(self, stage: Stage, talks: Iterable[Conversation]) -> Iterable[Outcome]:
        """What `stage` makes of the talks, in their order. It may be called on any part of them, elsewhere."""
        ...


class _OwnHands:
    """This process."""

    def findings(self, read: Read) -> Iterator[Finding]:
        return lint(read())

    def each(self, stage: Stage, talks: Iterable[Conversation]) -> Iterable[Outcome]:
        return stage(talks)


def curate(read: Read, out: Path, options: CurateOptions, hands: Hands | None = None) -> list[StageCount]:
    """Run every stage over the talks that `read` gives (it is called twice or more), and write all into `out`.

    Findings of the rules go to `out/findings.jsonl`, which `collect plan --mode repair` takes; the last `kept.jsonl` also
    stands in `out` itself, with `stats.json` for the whole way: the stages, the options, and how many of the talks read were
    synthetic, by people, or do not say.
    """
    hands = hands or _OwnHands()
    findings = out / "findings.jsonl"
    origin = dict.fromkeys(ORIGINS.values(), 0)
    began = perf_counter()
    reasons = _judge(hands.findings(read), findings, options)
    judging = perf_counter() - began
    stages: list[tuple[str, Stage]] = [
        ("1-rules", partial(_by_rules, reasons=reasons, origin=origin)),
        ("2-duplicates", dedup),
        ("3-held-out", partial(hands.each, partial(decontaminate, against=options.against, deny=options.deny))),
        ("4-personal-data", partial(hands.each, partial(without_pii, redacting=options.redact))),
    ]
    counts = _run(stages, read(), out)
    counts[0] = replace(counts[0], seconds=counts[0].seconds + judging)
    with write_atomically(out / "kept.jsonl") as file, (out / stages[-1][0] / "kept.jsonl").open("rb") as last:
        copyfileobj(last, file)
    stats = {"stages": [count.as_json() for count in counts], "options": options.as_json(), "origin": origin}
    write_json(out / "stats.json", stats)
    return counts


def _judge(findings: Iterable[Finding], path: Path, options: CurateOptions) -> dict[str, str]:
    """Write all findings; the dialogues that are to go, with the first rule against each."""
    severities = ("drop", "repair") if options.drop_repairable else ("drop",)
    reasons: dict[str, str] = {}
    with write_atomically(path) as file:
        for finding in findings:
            row = {"id": finding.id, "turn": finding.turn, "rule": finding.rule, "severity": finding.severity}
            file.write(json.dumps(row | {"message": finding.message}, ensure_ascii=False).encode() + b"\n")
            if finding.severity in severities:
                reasons.setdefault(finding.id, finding.rule)
    return reasons


def _by_rules(talks: Iterable[Conversation], reasons: dict[str, str], origin: dict[str, int]) -> Iterator[Outcome]:
    for talk in talks:
        origin[ORIGINS[talk.provenance.synthetic]] += 1
        yield Dropped(talk.id, reasons[talk.id]) if talk.id in reasons else talk


def _run(
    stages: Iterable[tuple[str, Stage]],
    talks: Iterable[Conversation],
    out: Path,
) -> list[StageCount]:
    """Lead the talks through all stages at once."""
    lines = _Lines()
    written: list[_Written] = []
    for name, stage in stages:
        written.append(_Written(name, stage(talks), out / name, lines))
        talks = written[-1].kept()
    for _ in talks:
        pass
    counts = [stage.count() for stage in written]
    inside = [0.0, *(count.seconds for count in counts)]  # the clock of a stage also runs while those before it work
    counts = [replace(count, seconds=count.seconds - before) for count, before in zip(counts, inside, strict=False)]
    for count in counts:
        write_json(out / count.stage / "stats.json", count.as_json())
    return counts


class _Lines:
    """JSON of the talks that were written a moment ago: most go through every stage as they are."""

    def __init__(self) -> None:
        self._recent: OrderedDict[int, tuple[Conversation, bytes]] = OrderedDict()

    def of(self, talk: Conversation) -> bytes:
        """The line of a talk."""
        known = self._recent.get(id(talk))  # held here, so that no other object can have its id
        if known is None:
            known = self._recent[id(talk)] = talk, talk.to_json().encode() + b"\n"
            if len(self._recent) > 4 * BLOCK:
                self._recent.popitem(last=False)
        return known[1]


class _Written:
    """One stage at work: hands on what it keeps, writes what it keeps and drops."""

    def __init__(self, name: str, outcomes: Iterable[Outcome], folder: Path, lines: _Lines) -> None:
        self._name, self._outcomes, self._folder, self._lines = name, outcomes, folder, lines
        self._why: Counter[str] = Counter()
        self._keeps = 0
        self._seconds = 0.0

    def kept(self) -> Iterator[Conversation]:
        """The talks that go on. The files are there when the last one has been taken."""
        folder = self._folder
        with write_atomically(folder / "kept.jsonl") as good, write_atomically(folder / "dropped.jsonl") as bad:
            began = perf_counter()
            for each in self._outcomes:
                if isinstance(each, Dropped):
                    self._why[each.reason] += 1
                    bad.write(json.dumps(asdict(each), ensure_ascii=False).encode() + b"\n")
                    continue
                self._keeps += 1
                good.write(self._lines.of(each))
                self._seconds += perf_counter() - began
                yield each
                began = perf_counter()
            self._seconds += perf_counter() - began

    def count(self) -> StageCount:
        """What came of it so far."""
        return StageCount(
            self._name, self._keeps + self._why.total(), self._keeps, dict(sorted(self._why.items())), self._seconds
        )
