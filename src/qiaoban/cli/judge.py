"""`qiaoban judge`: levels for talks, and which of two is better, by any strong model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from qiaoban.cli.asking import INTERRUPTED, alone, job_of, room_for_files, teacher_options, work_live
from qiaoban.cli.batch import emit
from qiaoban.cli.collect_options import Shares
from qiaoban.cli.voice import note
from qiaoban.engine.choose import EngineChoice
from qiaoban.errors import DataError, QiaobanError, UsageError
from qiaoban.formats import read_talks
from qiaoban.judge.pairs import PairItem, judge_pair, matched
from qiaoban.judge.results import HUMAN, LEAST, least_levels, read_people, write_pair_results, write_talk_results
from qiaoban.judge.rubric import AGAIN, OVERALL, SEPARATOR, rater
from qiaoban.judge.talks import TalkItem, judge_talk
from qiaoban.teacher.ask import LiveSource
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.work import InterruptedRunError, Item, open_items

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_LEAST = ",".join(f"{name}={level}" for name, level in LEAST.items())
_retry_option = click.option("--retry-failed", is_flag=True, help="Ask again about talks that failed; it is paid again.")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object with the outcome on standard output.")


@click.group()
def command() -> None:
    """Judge talks with a strong model: anchored levels with quoted evidence, or which of two is better."""


@command.command()
@click.argument("file", type=_FILE)
@click.argument("folder", type=_FOLDER)
@teacher_options
@click.option("--rounds", type=click.IntRange(1, 9), default=1, show_default=True, help="How often each talk is judged.")
@click.option("--least", type=Shares(), default=_LEAST, show_default=True, metavar="NAME=N,…", help="What a talk must reach.")
@click.option("--people", type=_FILE, help='Levels by people, {"id","levels":{…}} a line: how far the judge agrees with them.')
@_retry_option
@_json_option
def talks(file: Path, folder: Path, rounds: int, least: dict[str, float], people: Path | None, **given: Any) -> int:
    """Give every talk of FILE a level from 0 to 2 in each dimension of emotion coaching and safety.

    Evidence is quoted, and a quotation that does not stand in the talk counts for nothing. Run again with another --model into
    the same FOLDER and both count: stats.json says how far they agree. Every answer is kept in FOLDER/levels.sqlite, so that
    nothing is paid twice. Writes judgements.jsonl, kept.jsonl, dropped.jsonl and stats.json.
    """
    wanted, levels = least_levels(least), read_people(people) if people else {}
    session = _Session(folder, "levels.sqlite", rounds, **given)

    def items() -> Iterator[TalkItem]:
        return (TalkItem(talk, session.judge, n) for talk in read_talks(file) for n in range(rounds))

    with session.judged(file, items, judge_talk) as ledger:
        stats = write_talk_results(read_talks(file), folder, ledger, wanted, levels)
    if session.as_json:
        emit({**stats, **session.outcome})
    else:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in stats["dropped"].items())
        click.echo(f"{stats['read']:,} talks → {stats['kept']:,} pass  {reasons}".rstrip())
    return session.code()


@command.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.argument("folder", type=_FOLDER)
@teacher_options
@_retry_option
@_json_option
def pairs(a: Path, b: Path, folder: Path, **given: Any) -> int:
    """Say which of two systems does better by the child: talks of A and B with the same id, each pair asked about twice.

    The second time the sides are exchanged, and a verdict that does not survive it is `unclear`. Writes comparisons.jsonl and
    stats.json.
    """
    session = _Session(folder, "comparisons.sqlite", 1, **given)

    def items() -> Iterator[PairItem]:
        return matched(read_talks(a), read_talks(b), session.judge)

    with session.judged(b, items, judge_pair) as ledger:
        stats = write_pair_results(items(), folder, ledger)
    if session.as_json:
        emit({**stats, **session.outcome})
    else:
        for who, table in stats["verdicts"].items():
            counts = table[OVERALL]
            told = ", ".join(f"{verdict} {number:,}" for verdict, number in counts.items())
            click.echo(f"{who}: {told}; {stats['turned_with_the_order'][who]:.0%} turned with the order")
    return session.code()


@dataclass(init=False)
class _Session:
    """One judging in one folder, and how it ended."""

    folder: Path
    job: Job
    engine: EngineChoice | None
    as_json: bool
    outcome: dict[str, Any]

    def __init__(self, folder: Path, ledger: str, rounds: int, *, retry_failed: bool, as_json: bool, **given: Any) -> None:
        self.folder, self.as_json, self._retry = folder, as_json, retry_failed
        self._place, self._rounds = folder / ledger, rounds
        self.job, self.engine = job_of(**given)
        if self.judge == HUMAN or SEPARATOR in self.judge or AGAIN in self.judge:
            raise UsageError(
                f"a judge cannot be called {self.judge!r} here", hint="give the model another name at the endpoint"
            )
        self.outcome = {}
        self._stopped: QiaobanError | None = None

    @property
    def judge(self) -> str:
        """The model that judges."""
        return self.job.endpoint.model

    @contextmanager
    def judged(
        self, file: Path, items: Callable[[], Iterator[Item]], settle: Callable[..., Awaitable[str]]
    ) -> Iterator[Ledger]:
        """Ask about all open items, then hand over the ledger for the results, whatever stopped it."""
        place = self._place
        if not place.exists() and (self.folder / "kept.jsonl").exists():
            raise UsageError(
                f"{self.folder} holds something else", hint=f"give a folder of its own, such as {self.folder / 'judge'}"
            )
        total = sum(1 for _ in items())
        if not total:
            raise DataError("there is no talk in it", path=file)
        with alone(self.folder / ".run.lock", place), Ledger(place) as ledger:
            room_for_files(self.job.limits.concurrency)
            if self._retry:
                mine = (rater(self.judge, n) + SEPARATOR for n in range(self._rounds))
                note(f"{sum(map(ledger.retry_failed, mine))} that failed are open again")

            def start(source: LiveSource) -> tuple[Callable[[Any], Awaitable[str]], Iterator[Item]]:
                return partial(settle, teacher=self.job.teacher(ledger, source)), open_items(items(), ledger, file)

            self._stopped = asyncio.run(work_live(ledger, self.job, self.engine, total, start))
            if isinstance(self._stopped, DataError):  # the file is not the one that was judged
                raise self._stopped
            yield ledger
            totals, settled = ledger.totals(), Counter((ledger.state(item.id) or ("open",))[0] for item in items())
        self.outcome = {
            "failed": settled["failed"],
            "open": settled["open"],
            "answered": totals.answered,
            "possibly_paid": totals.doubtful,
            "prompt_tokens": totals.usage.prompt,
            "completion_tokens": totals.usage.completion,
            "stopped": self._stopped.message if self._stopped else None,
        }

    def code(self) -> int:
        """The exit code; raises what stopped the judging, if anything but Ctrl-C did."""
        if self.outcome["failed"]:
            note(f"{self.outcome['failed']:,} could not be judged; --retry-failed asks again")
        if self.outcome["open"]:
            note(f"{self.outcome['open']:,} are open: run again to go on")
        if isinstance(self._stopped, InterruptedRunError):
            return INTERRUPTED
        if self._stopped is not None:
            raise self._stopped
        return 1 if self.outcome["failed"] or self.outcome["open"] else 0
