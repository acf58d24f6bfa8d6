"""What every command that asks a strong model has in common: its options, its lock, and how it is stopped."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from filelock import FileLock, Timeout

from qiaoban import settings
from qiaoban.cli.collect_options import Command, price_option
from qiaoban.cli.collect_watch import LiveLines
from qiaoban.cli.options import JsonObject
from qiaoban.cli.voice import note
from qiaoban.engine.choose import EngineChoice, open_engine
from qiaoban.engine.openai import check_url
from qiaoban.errors import DataError, QiaobanError, UsageError
from qiaoban.teacher.ask import LiveSource
from qiaoban.teacher.budget import Price
from qiaoban.teacher.client import Endpoint
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.local import EngineClient
from qiaoban.teacher.throttle import Limits
from qiaoban.teacher.work import InterruptedRunError, Item, Work

INTERRUPTED = 130  # exit code of a run that Ctrl-C ended
_OPENAI = "https://api.openai.com/v1"
Start = Callable[[LiveSource], tuple[Callable[[Any], Awaitable[str]], Iterator[Item]]]

_MANY, _JSON = click.IntRange(1, 4096), click.Choice(["object", "none"])
_OPTIONS = (
    click.option("--model", required=True, help="The endpoint's name for the model, or with --embedded a model of ours."),
    click.option("--base-url", metavar="URL", help=f"OpenAI-compatible endpoint.  [default: OPENAI_BASE_URL, else {_OPENAI}]"),
    click.option("--embedded", is_flag=True, help="Ask a model of `qiaoban models list`, on this machine."),
    click.option("--context", type=click.IntRange(1024), metavar="TOKENS", help="Context of the embedded model."),
    click.option(
        "--concurrency", type=click.IntRange(1, 4096), default=64, show_default=True, help="Requests at once, at most."
    ),
    click.option("--rpm", type=click.FloatRange(1), help="Requests a minute that the provider allows."),
    click.option("--tpm", type=click.FloatRange(1), help="Tokens a minute that the provider allows."),
    click.option(
        "--budget-tokens", type=click.IntRange(1), metavar="N", help="Stop before a call could go over so many tokens."
    ),
    click.option(
        "--budget", "budget_money", type=click.FloatRange(0), metavar="MONEY", help="As above in money; needs --price."
    ),
    price_option,
    click.option("--timeout", type=click.FloatRange(0.1), default=600.0, show_default=True, help="Seconds for one answer."),
    click.option(
        "--tries", type=click.IntRange(1, 10), default=3, show_default=True, help="For an answer that cannot be read."
    ),
    click.option(
        "--json-mode", type=click.Choice(["object", "none"]), default="object", show_default=True, help="Ask for JSON."
    ),
    click.option(
        "--extra-body", type=JsonObject(), default="{}", metavar="JSON", help="Into every request; null takes a key out."
    ),
)


def teacher_options(command: Command) -> Command:
    """The options of `job_of`, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def job_of(
    *, model: str, base_url: str | None, price: tuple[float, ...] | None, embedded: bool, context: int | None, **given: Any
) -> tuple[Job, EngineChoice | None]:
    """The job that the options ask for, and the engine where it is embedded. `UsageError` where they contradict each other."""
    env = settings.load()
    url = check_url(base_url or env.openai_base_url or _OPENAI)
    if given["budget_money"] is not None and price is None:
        raise UsageError("a budget in money needs a price", hint="give --price IN,OUT for a million tokens")
    if embedded and base_url:
        raise UsageError("the embedded model runs in this process", hint="leave out --base-url")
    body = given["extra_body"]
    capped = {"max_tokens": 1, **body}
    if (given["budget_tokens"] or given["budget_money"]) and not (capped["max_tokens"] or body.get("max_completion_tokens")):
        raise UsageError("a budget needs a longest answer", hint='give --extra-body a "max_completion_tokens"')
    if body.get("n", 1) != 1:
        raise UsageError("one answer is read for each question", hint='take "n" out of --extra-body')
    if not embedded and not env.openai_api_key and urlsplit(url).scheme == "https":
        raise UsageError(f"no key for {url}", hint="set OPENAI_API_KEY, or give --base-url for another endpoint")
    limits = Limits(concurrency=given.pop("concurrency"), rpm=given.pop("rpm"), tpm=given.pop("tpm"))
    endpoint = Endpoint(base_url=url, model=model, api_key=env.openai_api_key or "", timeout=given.pop("timeout"))
    if embedded:
        limits, given["json_mode"] = replace(limits, concurrency=1), "none"
    job = Job(endpoint=endpoint, limits=limits, price=Price(*price) if price else None, **given)
    return job, EngineChoice(model=model, context_tokens=context or 4096, slots=2) if embedded else None


async def work_live(ledger: Ledger, job: Job, engine: EngineChoice | None, total: int, start: Start) -> QiaobanError | None:
    """Send requests from this process until all is settled; what stopped it early, if anything did.

    `start` gives, for a source of answers, how an item is settled and which are open. The first Ctrl-C lets what is on its way
    arrive; the second stops at once.
    """
    with LiveLines() as watch:
        client = EngineClient(await open_engine(engine, settings.load())) if engine else job.client()
        source = job.live(ledger, client)
        try:
            settle, items = start(source)
            work = Work(ledger=ledger, source=source, settle=settle, total=total)
            task = asyncio.current_task()
            with _signals(source, task.cancel if task else sys.exit):
                await work.run(items, workers=job.limits.concurrency * 5 // 4 + 1, watch=watch)
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


def room_for_files(concurrency: int) -> None:
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
def alone(lock: Path, ledger: Path) -> Iterator[None]:
    """Hold `lock` while a run writes. `UsageError` where another run holds it, `DataError` where the ledger fails."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another run works in {lock.parent}", hint="wait for it, or stop it") from None
    except OSError as error:
        raise UsageError(f"{lock.parent} cannot be written in: {error.strerror}", hint="give another folder") from None
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"cannot be used: {error}", path=ledger, hint="is the disk full, or the file held?") from None
    finally:
        held.release()


def is_held(path: Path) -> bool:
    """Whether a run works in the folder now: only that, and no clock, tells a run from the traces of one."""
    lock = FileLock(path)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False
