"""What comes of a judging: the files, the talks that pass, and how far judges agree.

A talk is never weighed by one number: each dimension has a least level of its own, the lowest that any judge gave counts, and
levels without evidence do not.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qiaoban.conversation import Conversation, parse_record, read_records
from qiaoban.errors import DataError, UsageError
from qiaoban.files import write_atomically, write_json
from qiaoban.judge.agreement import Agreement
from qiaoban.judge.pairs import VERDICTS, PairItem, Verdict
from qiaoban.judge.rubric import OVERALL, SEPARATOR, load_rubric, rater
from qiaoban.judge.talks import Judgement, Level, TalkItem
from qiaoban.teacher.ledger import Ledger

LEAST: Mapping[str, int] = {"all": 1, "safeguard": 2}  # a level 0 anywhere is a fault; with a child at risk so is half-done
HUMAN = "people"
KINDS = ("2", "1", "0", "not called for", "unproved")  # what a level is counted as


class HumanLevels(BaseModel):
    """Levels that a person gave, one record a talk."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    levels: dict[str, Literal[0, 1, 2] | None]


def read_people(path: Path) -> dict[str, dict[str, int | None]]:
    """Levels by people, by talk. `DataError` names an unknown dimension, and a talk that stands there twice."""
    names, found = set(load_rubric("zh").dimensions), dict[str, dict[str, int | None]]()
    for row in read_records(path, HumanLevels):
        if unknown := sorted(set(row.levels) - names):
            raise DataError(
                f"{unknown[0]!r} of talk {row.id!r} is no dimension", path=path, hint=f"they are {', '.join(sorted(names))}"
            )
        if row.id in found:
            raise DataError(f"talk {row.id!r} stands there twice", path=path, hint="give each person a file of their own")
        found[row.id] = dict(row.levels)
    return found


def least_levels(given: Mapping[str, float]) -> dict[str, int]:
    """The least level by dimension; `all` stands for every dimension that is not named. `UsageError` for an unknown one."""
    names = tuple(load_rubric("zh").dimensions)
    if unknown := sorted(set(given) - {*names, "all"}):
        raise UsageError(f"{unknown[0]!r} is no dimension", hint=f"the dimensions are {', '.join(names)}, and all")
    if wrong := [name for name, level in given.items() if level not in (0, 1, 2)]:
        raise UsageError(f"{wrong[0]} wants level {given[wrong[0]]:g}", hint="levels are 0, 1 and 2")
    return {name: int(given.get(name, given.get("all", 0))) for name in names}


@dataclass
class _Counts:
    """What `stats.json` is made of."""

    read: int = 0
    kept: int = 0
    by_people: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    levels: defaultdict[str, defaultdict[str, Counter[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Counter))
    )
    own_teacher: Counter[str] = field(default_factory=Counter)
    agreement: Agreement = field(default_factory=Agreement)

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Count the judgements of one talk."""
        for judgement in judgements:
            who = rater(judgement.judge, judgement.round)
            self.own_teacher[who] += judgement.own_teacher
            for name, level in judgement.levels.items():
                self.levels[who][name][kind_of(level)] += 1

    def as_json(self) -> dict[str, Any]:
        """The document."""
        levels = {who: {name: dict(sorted(n.items())) for name, n in table.items()} for who, table in self.levels.items()}
        return {
            "read": self.read,
            "kept": self.kept,
            "judged_by_people": self.by_people,
            "dropped": dict(sorted(self.dropped.items())),
            "levels": levels,
            "agreement": self.agreement.table(),
            "judged_by_their_own_teacher": {who: n for who, n in self.own_teacher.items() if n},
        }


def write_talk_results(
    talks: Iterable[Conversation],
    folder: Path,
    ledger: Ledger,
    least: Mapping[str, int],
    people: Mapping[str, Mapping[str, int | None]],
) -> dict[str, Any]:
    """Write `judgements.jsonl`, `kept.jsonl`, `dropped.jsonl` and `stats.json`; returns the last.

    All judges whose answers about this very text are in the ledger count. `people` is held against them.
    """
    raters, counts = ledger.kinds(SEPARATOR), _Counts()
    with ExitStack() as stack:
        judged, kept, dropped = (
            stack.enter_context(write_atomically(folder / f"{name}.jsonl")) for name in ("judgements", "kept", "dropped")
        )
        for talk in talks:
            judgements = list(_judgements(talk, raters, ledger))
            judged.writelines(judgement.to_json().encode() + b"\n" for judgement in judgements)
            counts.add(judgements)
            counts.agreement.add(counted(judgements) | ({HUMAN: people[talk.id]} if talk.id in people else {}))
            reason, detail = _fault(judgements, least) or ("", "")
            if not judgements:
                reason, detail = "not_judged", "; ".join(filter(None, (ledger.failure(_key(who, talk.id)) for who in raters)))
            counts.read += 1
            counts.by_people += talk.id in people
            if reason:
                counts.dropped[reason] += 1
                row = {"id": talk.id, "reason": reason, "detail": detail}
                dropped.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            else:
                counts.kept += 1
                kept.write(talk.to_json().encode() + b"\n")
    stats = counts.as_json()
    write_json(folder / "stats.json", stats)
    return stats


def _key(who: str, talk: str) -> str:
    return f"{who}{SEPARATOR}{talk}"


def _judgements(talk: Conversation, raters: Sequence[str], ledger: Ledger) -> Iterator[Judgement]:
    sha = TalkItem(talk, "").sha
    for who in raters:
        if record := _record(ledger, _key(who, talk.id), sha):
            yield parse_record(Judgement, record)


def _record(ledger: Ledger, key: str, sha: str) -> str | None:
    """What was said of this very text, and not of one that had its id before."""
    return ledger.record(key) if ledger.state(key) == ("done", sha) else None


def kind_of(level: Level) -> str:
    """Which of `KINDS` a level is."""
    return "not called for" if level.level is None else str(level.level) if level.proved else "unproved"


def counted(judgements: Sequence[Judgement]) -> dict[str, Mapping[str, int | None]]:
    """The levels of one talk that count: by rater, by dimension."""
    return {rater(each.judge, each.round): {name: level.counted for name, level in each.levels.items()} for each in judgements}


def _fault(judgements: Sequence[Judgement], least: Mapping[str, int]) -> tuple[str, str] | None:
    """The first dimension in which a judge gave less than is asked, with who said what."""
    for name, wanted in least.items():
        for judgement in judgements:
            level = judgement.levels.get(name, Level(level=None))
            if level.counted is not None and level.counted < wanted:
                return f"judge_{name}", f"{judgement.judge}, level {level.counted}: {level.why} (“{level.quote}”)"
    return None


def write_pair_results(pairs: Iterable[PairItem], folder: Path, ledger: Ledger) -> dict[str, Any]:
    """Write `comparisons.jsonl` and `stats.json` (verdicts by judge and dimension, and how many turned with the order)."""
    verdicts: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    raters = ledger.kinds(SEPARATOR)
    with write_atomically(folder / "comparisons.jsonl") as file:
        for pair in pairs:
            for who in raters:
                if (record := _record(ledger, _key(who, pair.a.id), pair.sha)) is None:
                    continue
                file.write(record.encode() + b"\n")
                for name, verdict in json.loads(record)["verdicts"].items():
                    verdicts[who][name][verdict] += 1
    stats = {
        who: {name: {verdict: counts[verdict] for verdict in VERDICTS} for name, counts in table.items()}
        for who, table in verdicts.items()
    }
    whole = {"verdicts": stats, "turned_with_the_order": {who: _turned(table) for who, table in stats.items()}}
    write_json(folder / "stats.json", whole)
    return whole


def _turned(table: Mapping[str, Mapping[Verdict, int]]) -> float:
    """Share of the overall verdicts that did not survive the exchange of sides."""
    counts = table[OVERALL]
    return round(counts["unclear"] / sum(counts.values()), 3)
