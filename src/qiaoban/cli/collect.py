"""`qiaoban collect`: plan cards, run them against a teacher, look at a run, and a fake teacher for trying it all out."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from filelock import FileLock, Timeout

from qiaoban import settings
from qiaoban.cli.batch import emit
from qiaoban.cli.collect_fake import serve_fake
from qiaoban.cli.collect_options import price_option
from qiaoban.cli.collect_plan import plan
from qiaoban.cli.collect_watch import LiveLines, lines
from qiaoban.cli.options import JsonObject
from qiaoban.cli.voice import note
from qiaoban.collect.batches import BatchPost
from qiaoban.collect.budget import Price
from qiaoban.collect.client import Endpoint
from qiaoban.collect.job import Job
from qiaoban.collect.ledger import Ledger
from qiaoban.collect.local import EngineClient
from qiaoban.collect.rounds import RoundSource, collect_in_rounds
from qiaoban.collect.run import InterruptedRunError, Run, RunFolder, count_cards, open_cards, write_results
from qiaoban.collect.scale import Crew, adopt, collect_with_ray
from qiaoban.collect.teacher import LiveSource
from qiaoban.collect.throttle import Limits
from qiaoban.engine.choose import EngineChoice, open_engine
from qiaoban.engine.openai import check_url
from qiaoban.errors import DataError, QiaobanError, UsageError

_OPENAI = "https://api.openai.com/v1"
_INTERRUPTED = 130


@click.group()
def command() -> None:
    """Collect dialogues from any strong model: plan cards, run them, look at a run."""


@dataclass(frozen=True, kw_only=True)
class _How:
    """How a run goes about it."""

    engine: str
    workers: int
    ray_address: str | None
    batch: bool
    poll: float
    embedded: bool
    context: int | None


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", required=True, help="The endpoint's name for the teacher, or with --embedded a model of ours.")
@click.option("--base-url", metavar="URL", help=f"An OpenAI-compatible endpoint.  [default: OPENAI_BASE_URL, else {_OPENAI}]")
@click.option("--embedded", is_flag=True, help="The teacher is a model of `qiaoban models list`, on this machine.")
@click.option("--context", type=click.IntRange(1024), metavar="TOKENS", help="Context of the embedded model.")
@click.option("--concurrency", type=click.IntRange(1, 4096), default=64, show_default=True, help="Requests at once at most.")
@click.option("--rpm", type=click.FloatRange(1), help="Requests a minute that the provider allows.")
@click.option("--tpm", type=click.FloatRange(1), help="Tokens a minute that the provider allows.")
@click.option("--budget-tokens", type=click.IntRange(1), metavar="N", help="Stop before a call could go over so many tokens.")
@click.option("--budget", "budget_money", type=click.FloatRange(0), metavar="MONEY", help="As above in money; needs --price.")
@price_option
@click.option("--timeout", type=click.FloatRange(0.1), default=600.0, show_default=True, help="Seconds for one answer.")
@click.option("--tries", type=click.IntRange(1, 10), default=3, show_default=True, help="For an answer that cannot be read.")
@click.option("--json-mode", type=click.Choice(["object", "none"]), default="object", show_default=True, help="Ask for JSON.")
@click.option("--extra-body", type=JsonObject(), default="{}", metavar="JSON", help="Into every request; null takes a key out.")
@click.option("--licence", help="What the teacher's words may be used under; goes into every record.")
@click.option("--engine", type=click.Choice(["asyncio", "ray"]), default="asyncio", show_default=True, help="What runs it.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Of --engine ray.")
@click.option("--ray-address", metavar="ADDRESS", help="A Ray cluster to join; without it one is started here.")
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
    how = _How(**{key: given.pop(key) for key in _How.__dataclass_fields__})
    job = _job(how, **given)
    total = count_cards(place.plan)
    with _alone(place), _reported(place, as_json=as_json, total=total, began=began) as outcome:
        _room_for_files(job.limits.concurrency)
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
        elif how.engine == "ray":
            crew = Crew(workers=how.workers, address=how.ray_address)
            outcome.stopped = _with_ray(place, job, crew)
        else:
            outcome.stopped = asyncio.run(_live(place, job, how))
    return outcome.code


def _job(how: _How, *, model: str, base_url: str | None, price: tuple[float, ...] | None, **given: Any) -> Job:
    """The job that the options ask for. `UsageError` where they contradict each other."""
    env = settings.load()
    url = base_url or env.openai_base_url or _OPENAI
    if given["budget_money"] is not None and price is None:
        raise UsageError("a budget in money needs a price", hint="give --price IN,OUT for a million tokens")
    if how.embedded and (how.batch or how.engine == "ray" or base_url):
        raise UsageError("the embedded model runs in this process", hint="leave out --batch, --engine and --base-url")
    body = given["extra_body"]
    capped = {"max_tokens": 1, **body}
    if (given["budget_tokens"] or given["budget_money"]) and not (capped["max_tokens"] or body.get("max_completion_tokens")):
        raise UsageError("a budget needs a longest answer", hint='give --extra-body a "max_completion_tokens"')
    if body.get("n", 1) != 1:
        raise UsageError("one answer is read for each question", hint='take "n" out of --extra-body')
    if how.batch and how.engine == "ray":
        raise UsageError("a batch needs no workers", hint="leave out --engine ray")
    if not how.embedded and not env.openai_api_key and urlsplit(url).scheme == "https":
        raise UsageError(f"no key for {url}", hint="set OPENAI_API_KEY, or give --base-url for another endpoint")
    limits = Limits(concurrency=given.pop("concurrency"), rpm=given.pop("rpm"), tpm=given.pop("tpm"))
    endpoint = Endpoint(base_url=check_url(url), model=model, api_key=env.openai_api_key or "", timeout=given.pop("timeout"))
    if how.embedded:
        limits, given["json_mode"] = replace(limits, concurrency=1), "none"
    return Job(endpoint=endpoint, limits=limits, price=Price(*price) if price else None, **given)


async def _live(place: RunFolder, job: Job, how: _How) -> QiaobanError | None:
    """Send requests from this process. The first Ctrl-C lets what is on its way arrive; the second stops at once."""
    with Ledger(place.ledger) as ledger, LiveLines() as watch:
        client = await _embedded(job, how) if how.embedded else job.client()
        try:
            source = job.live(ledger, client)
            studio = job.studio(ledger, source, place.topics)
            work = Run(folder=place, ledger=ledger, studio=studio, source=source)
            task = asyncio.current_task()
            with _signals(source, task.cancel if task else sys.exit):
                await work.work(workers=job.limits.concurrency * 5 // 4 + 1, watch=watch)
        except asyncio.CancelledError:  # Ctrl-C for the second time
            return source.stopped or InterruptedRunError("stopped")
        finally:
            await client.close()
        if work.may_have_been_paid:
            note(
                f"{work.may_have_been_paid} calls were on their way when the last run was killed: they may have been paid for, "
                "and are sent again with the same Idempotency-Key"
            )
        return source.stopped


async def _embedded(job: Job, how: _How) -> EngineClient:
    choice = EngineChoice(model=job.endpoint.model, context_tokens=how.context or 4096, slots=2)
    return EngineClient(await open_engine(choice, settings.load()))


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
                job.studio(ledger, source, place.topics),
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


@contextmanager
def _signals(source: LiveSource, at_once: Callable[[], object]) -> Iterator[None]:
    loop, pressed = asyncio.get_running_loop(), 0

    def stop() -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            at_once()
            return
        note("stopping: waiting for the answers that are on their way; once more to leave at once")
        source.stop(InterruptedRunError("stopped", hint="run again to go on: nothing is paid twice"))

    if sys.platform == "win32":  # no loop handlers there: Ctrl-C ends the run, and the ledger has what arrived
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal is gone, as with a lost ssh
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _room_for_files(concurrency: int) -> None:
    """Each request on its way holds an open file; ask the system for as many as that takes."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = concurrency * 2 + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard not in (resource.RLIM_INFINITY, -1) and hard < wanted:
            raise UsageError(
                f"this system allows {hard} open files", hint=f"give --concurrency {max(1, (hard - 100) // 2)} or less"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _alone(place: RunFolder) -> Iterator[None]:
    lock = FileLock(place.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another run works in {place.path}", hint="look at it with `qiaoban collect status`") from None
    except OSError as error:
        raise UsageError(f"{place.path} cannot be written in: {error.strerror}", hint="give another folder") from None
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"cannot be used: {error}", path=place.ledger, hint="is the disk full, or the file held?") from None
    finally:
        lock.release()


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
        outcome.code = _INTERRUPTED
    elif outcome.stopped is not None:
        raise outcome.stopped
    else:
        outcome.code = 1 if left or totals.failed else 0


def _is_held(place: RunFolder) -> bool:
    """Whether a run works in the folder now: only that, and no clock, tells a run from the traces of one."""
    lock = FileLock(place.lock)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def status(folder: Path, as_json: bool) -> None:
    """Tell how a collection stands, also while a run goes on."""
    place = RunFolder(folder)
    total = count_cards(place.plan)
    with Ledger(place.ledger, read_only=True) as ledger:
        totals, last = ledger.totals(), ledger.last_run()
    going = last is not None and last["ended"] is None and _is_held(place)
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
