"""`qiaoban collect`: plan cards, run them against a teacher, look at a run, and a fake teacher for trying it all out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from qiaoban.cli.asking import INTERRUPTED, alone, is_held, job_of, room_for_files, teacher_options, work_live
from qiaoban.cli.batch import emit
from qiaoban.cli.collect_fake import serve_fake
from qiaoban.cli.collect_options import crew_of, engine_options
from qiaoban.cli.collect_plan import plan
from qiaoban.cli.collect_watch import LiveLines, lines
from qiaoban.cli.voice import note
from qiaoban.cluster import Crew
from qiaoban.collect.batches import BatchPost
from qiaoban.collect.card import Card
from qiaoban.collect.rollouts.studio import open_studio
from qiaoban.collect.rounds import RoundSource, collect_in_rounds
from qiaoban.collect.run import RunFolder, count_cards, open_cards, settle, write_results
from qiaoban.collect.scale import adopt, collect_with_ray
from qiaoban.engine.choose import EngineChoice
from qiaoban.errors import QiaobanError, UsageError
from qiaoban.teacher.ask import LiveSource
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.work import InterruptedRunError


@click.group()
def command() -> None:
    """Collect dialogues from any strong model: plan cards, run them, look at a run."""


@dataclass(frozen=True, kw_only=True)
class _How:
    """How a run goes about it."""

    crew: Crew | None
    batch: bool
    poll: float


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@teacher_options
@click.option("--licence", help="What the teacher's words may be used under; goes into every record.")
@engine_options
@click.option("--batch", is_flag=True, help="Through the provider's batch API: about half the price, hours to wait.")
@click.option("--poll", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds between looks at a batch.")
@click.option("--retry-failed", is_flag=True, help="Ask again for cards that failed; what was unreadable is paid again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the outcome on standard output.")
def run(folder: Path, retry_failed: bool, as_json: bool, **given: Any) -> int:
    """Settle every open card of FOLDER/plan.jsonl.

    Everything paid for is kept in FOLDER/ledger.sqlite before it is read: run again after Ctrl-C, a crash or a spent budget,
    and it goes on without paying twice. Writes dialogues.jsonl, failed.jsonl and, for branch cards, pairs.jsonl.
    """
    place, began = RunFolder(folder), time.monotonic()
    crew = crew_of(**{key: given.pop(key) for key in ("engine", "workers", "ray_address")})
    how = _How(crew=crew, batch=given.pop("batch"), poll=given.pop("poll"))
    if given["embedded"] and (how.batch or how.crew):
        raise UsageError("the embedded model runs in this process", hint="leave out --batch and --engine")
    if how.batch and how.crew:
        raise UsageError("a batch needs no workers", hint="leave out --engine ray")
    job, engine = job_of(**given)
    total = count_cards(place.plan)
    with alone(place.lock, place.ledger), _reported(place, as_json=as_json, total=total, began=began) as outcome:
        room_for_files(job.limits.concurrency)
        with Ledger(place.ledger) as ledger:
            adopt(ledger, folder / "shards")
            if (jobs := ledger.open_batches()) and not how.batch:
                raise UsageError(
                    f"{len(jobs)} batch jobs are out and will be paid for", hint="run with --batch first to fetch them"
                )
            if retry_failed:
                note(f"{ledger.retry_failed()} failed cards are open again")
        if how.batch:
            outcome.stopped = asyncio.run(_in_batches(place, job, how))
        elif how.crew:
            outcome.stopped = _with_ray(place, job, how.crew)
        else:
            outcome.stopped = asyncio.run(_live(place, job, engine, total))
    return outcome.code


async def _live(place: RunFolder, job: Job, engine: EngineChoice | None, total: int) -> QiaobanError | None:
    """Send requests from this process."""

    def start(source: LiveSource) -> tuple[Callable[[Card], Awaitable[str]], Iterator[Card]]:
        studio = open_studio(job, ledger, source, place.topics)
        return partial(settle, studio=studio), open_cards(place.plan, ledger)

    with Ledger(place.ledger) as ledger:
        return await work_live(ledger, job, engine, total, start)


def _with_ray(place: RunFolder, job: Job, crew: Crew) -> QiaobanError | None:
    with LiveLines() as watch:
        try:
            collect_with_ray(place, job, crew, watch)
        except KeyboardInterrupt:
            return InterruptedRunError("stopped")
        except UsageError:
            raise
        except QiaobanError as error:
            return error
    return None


async def _in_batches(place: RunFolder, job: Job, how: _How) -> QiaobanError | None:
    with Ledger(place.ledger) as ledger:
        ledger.recover()
        number, ended = ledger.begin_run(os.getpid()), "killed"
        client, source = job.client(), RoundSource(ledger=ledger)
        budget = job.budget()
        budget.carry_over(ledger.totals())
        beats = asyncio.create_task(_beats(place, ledger, number))
        post = BatchPost(ledger=ledger, client=client, budget=budget, poll=how.poll, say=note)
        try:
            await collect_in_rounds(
                lambda: open_cards(place.plan, ledger),
                open_studio(job, ledger, source, place.topics),
                source,
                post,
                on_round=lambda missing: note(f"{missing} answers are missing"),
            )
            ended = "finished"
        except QiaobanError as error:
            ended = "stopped"
            return error
        finally:
            beats.cancel()
            ledger.beat(number, {}, ended)
            await client.close()
    return None


async def _beats(place: RunFolder, ledger: Ledger, number: int) -> None:
    """Tell `status` that the run goes on while it waits for the provider."""
    total = count_cards(place.plan)
    while True:
        totals = ledger.totals()
        ledger.beat(number, {"total": total, "done": totals.done, "failed": totals.failed})
        await asyncio.sleep(2)


@dataclass
class _Outcome:
    """How a run ended, and the exit code that says so."""

    stopped: QiaobanError | None = None
    code: int = 0


@contextmanager
def _reported(place: RunFolder, *, as_json: bool, total: int, began: float) -> Iterator[_Outcome]:
    """Write the results and tell what came of the run, whatever stopped it."""
    outcome = _Outcome()
    yield outcome
    with Ledger(place.ledger) as ledger:
        counts, totals = write_results(place, ledger), ledger.totals()
    left = total - totals.done - totals.failed
    note(f"{totals.done:,} dialogues in {place.dialogues}" + (f", {counts['pairs']:,} pairs" if counts["pairs"] else ""))
    if totals.failed:
        note(f"{totals.failed:,} cards failed, see {place.failed}; --retry-failed asks for them again")
    if left:
        note(f"{left:,} cards are open: run again to go on")
    if as_json:
        emit(
            {
                "done": totals.done,
                "failed": totals.failed,
                "open": left,
                "answered": totals.answered,
                "possibly_paid": totals.doubtful,
                "prompt_tokens": totals.usage.prompt,
                "completion_tokens": totals.usage.completion,
                "seconds": round(time.monotonic() - began, 2),
                "stopped": outcome.stopped.message if outcome.stopped else None,
            }
        )
    if isinstance(outcome.stopped, InterruptedRunError):
        outcome.code = INTERRUPTED
    elif outcome.stopped is not None:
        raise outcome.stopped
    else:
        outcome.code = 1 if left or totals.failed else 0


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def status(folder: Path, as_json: bool) -> None:
    """Tell how a collection stands, also while a run goes on."""
    place = RunFolder(folder)
    total = count_cards(place.plan)
    with Ledger(place.ledger, read_only=True) as ledger:
        totals, last = ledger.totals(), ledger.last_run()
    going = last is not None and last["ended"] is None and is_held(place.lock)
    state = "no run yet" if last is None else "running" if going else last["ended"] or "killed"
    found = {
        "state": state,
        "total": total,
        "done": totals.done,
        "failed": totals.failed,
        "open": total - totals.done - totals.failed,
        "answered": totals.answered,
        "possibly_paid": totals.doubtful,
        "prompt_tokens": totals.usage.prompt,
        "completion_tokens": totals.usage.completion,
        "cached_tokens": totals.usage.cached,
        "faults": dict(totals.faults),
        "live": last["live"] if last and going else None,
    }
    if as_json:
        emit(found)
        return
    click.echo(f"{state}: {totals.done:,} of {total:,} done, {totals.failed:,} failed, {found['open']:,} open")
    click.echo(f"{totals.answered:,} answers, {totals.usage.prompt:,} + {totals.usage.completion:,} tokens")
    if totals.doubtful:
        click.echo(f"{totals.doubtful:,} calls may have been paid for without an answer")
    for fault, count in totals.faults.items():
        click.echo(f"  {fault}: {count:,}")
    if going and last is not None:
        click.echo("\n".join(lines(last["live"])))


command.add_command(plan)
command.add_command(serve_fake)
