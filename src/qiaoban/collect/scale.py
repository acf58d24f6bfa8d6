"""The same rollouts under Ray Data, on one machine or a cluster.

Each worker keeps a ledger of its own (a shard) and reads, behind it, the answers that earlier runs left for open cards. Limits
and budget are shared out equally. The driver writes settled cards into the run's ledger as they come and takes over the shards
when the workers are gone, also those of a run that was killed. The folder must be one that all workers reach.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qiaoban.cluster import Crew, ray_data
from qiaoban.collect.card import Card
from qiaoban.collect.rollouts.studio import Studio, open_studio
from qiaoban.collect.run import RunFolder, count_cards, open_cards, settle
from qiaoban.conversation import parse_record
from qiaoban.errors import EngineError, QiaobanError
from qiaoban.teacher.ask import CardFailedError, CardPutOffError
from qiaoban.teacher.budget import BudgetSpentError
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.throttle import ClosedError
from qiaoban.teacher.work import Watcher

_ROUNDS = 4  # times as many cards as a worker has requests on their way: each batch waits for its slowest
_BEAT = 2.0  # seconds
_AGAIN = "run again: nothing is paid twice"


def collect_with_ray(folder: RunFolder, job: Job, crew: Crew, watch: Watcher) -> None:
    """Settle every open card of a plan. Raises what stopped the workers; all that was paid for is in the ledger then."""
    shards, crew = folder.path / "shards", replace(crew, workers=min(crew.workers, job.limits.concurrency))
    with Ledger(folder.ledger) as ledger:
        ledger.recover()
        adopt(ledger, shards)
        total, totals = count_cards(folder.plan), ledger.totals()
        live = {"total": total, "done": totals.done, "failed": totals.failed, "workers": crew.workers}
        cards, left = _open_file(folder, ledger, shards)
        number, ended, stopped = ledger.begin_run(os.getpid()), "killed", ""
        job = _remaining(job, ledger)
        try:
            with _beating(folder, number, live), ray_data(crew, hint=_AGAIN) as data:
                for row in _settled(data, cards, left, (folder, job, crew)):
                    stopped = stopped or row["stopped"]
                    _note(ledger, row, live)
                    watch(live)
                    if row["fatal"]:  # the others would be told the same
                        break
            ended = "stopped" if stopped else "finished"
        except EngineError:
            ended = "stopped"
            raise
        finally:
            adopt(ledger, shards)
            ledger.beat(number, live, ended)
    if stopped:
        raise EngineError(stopped, hint=_AGAIN)


def _settled(data: Any, cards: Path, left: int, task: tuple[RunFolder, Job, Crew]) -> Iterator[Mapping[str, Any]]:
    """A row for each card, as batches of them are settled."""
    folder, job, crew = task
    at_a_time = max(1, min(_ROUNDS * max(1, job.limits.concurrency // crew.workers), -(-left // crew.workers)))
    lines = data.read_text(str(cards)).repartition(target_num_rows_per_block=at_a_time)
    rows = lines.map_batches(
        _Worker,
        batch_size=at_a_time,
        num_cpus=0.25,
        compute=data.ActorPoolStrategy(size=crew.workers),
        fn_constructor_args=(str(folder.path.resolve()), job.share(crew.workers)),
        max_restarts=0,  # a worker that comes back would not know what it was answered, and pay again
        max_task_retries=0,
    )
    yield from rows.iter_rows()


@contextmanager
def _beating(folder: RunFolder, number: int, live: Mapping[str, Any]) -> Iterator[None]:
    """Tell `status` that the run goes on, also while no batch is finished."""
    over = threading.Event()

    def beat() -> None:
        with Ledger(folder.ledger) as ledger:
            while not over.wait(_BEAT):
                with suppress(sqlite3.OperationalError):  # held or full: the next beat will do
                    ledger.beat(number, dict(live))

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()


def adopt(ledger: Ledger, shards: Path) -> int:
    """Take over what workers left behind, also those of a run that was killed; returns how many shards there were."""
    found = sorted(shards.glob("*.sqlite"))
    for shard in found:
        if shard.name != "open.sqlite":
            ledger.merge(shard)
        shard.unlink()
    shutil.rmtree(shards, ignore_errors=True)
    return len(found)


def _open_file(folder: RunFolder, ledger: Ledger, shards: Path) -> tuple[Path, int]:
    """A file of the cards that are to do, and how many they are; beside it the answers that are stored for them."""
    shards.mkdir(parents=True)
    ledger.copy_unsettled(shards / "open.sqlite")
    path, count = shards / "open.jsonl", 0
    with path.open("w", encoding="utf-8") as file:
        for card in open_cards(folder.plan, ledger):
            file.write(card.to_json() + "\n")
            count += 1
    return path, count


def _remaining(job: Job, ledger: Ledger) -> Job:
    """The job with what is left of its budget."""
    budget = job.budget()
    budget.carry_over(totals := ledger.totals())
    tokens = None if job.budget_tokens is None else max(0, job.budget_tokens - totals.usage.total - totals.doubtful_tokens)
    money = None if job.budget_money is None or budget.money is None else max(0.0, job.budget_money - budget.money)
    return replace(job, budget_tokens=tokens, budget_money=money)


def _note(ledger: Ledger, row: Mapping[str, Any], live: dict[str, Any]) -> None:
    if row["record"]:
        ledger.done(row["id"], row["sha"], row["record"])
        live["done"] += 1
    elif row["reason"]:
        ledger.failed(row["id"], row["sha"], row["reason"])
        live["failed"] += 1


class _Worker:
    """Lives on a worker and settles batches of cards; its shard outlives it."""

    def __init__(self, folder: str, job: Job) -> None:
        self._folder, self._job = RunFolder(Path(folder)), job
        shards = self._folder.path / "shards"
        behind = Ledger(shards / "open.sqlite", read_only=True)
        self._ledger = Ledger(shards / f"{socket.gethostname()}-{os.getpid()}.sqlite", exclusive=True, behind=behind)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Rows of card lines to rows of what became of them; `stopped` says why a card was not settled."""
        rows = asyncio.run(self._settle([parse_record(Card, str(line)) for line in batch["text"]]))
        return {key: [row.get(key, "") for row in rows] for key in ("id", "sha", "record", "reason", "stopped", "fatal")}

    async def _settle(self, cards: list[Card]) -> list[dict[str, str]]:
        client = self._job.client()
        source = self._job.live(self._ledger, client)
        source.budget.carry_over(self._ledger.totals())
        studio = open_studio(self._job, self._ledger, source, self._folder.topics)
        gate = asyncio.Semaphore(self._job.limits.concurrency)

        async def one(card: Card) -> dict[str, str]:
            async with gate:
                row = {"id": card.id, "sha": card.sha} | await self._outcome(card, studio)
            if "stopped" in row and source.stopped is not None:
                row["stopped"] = source.stopped.message
                row["fatal"] = "" if isinstance(source.stopped, BudgetSpentError) else "yes"
            return row

        try:
            return list(await asyncio.gather(*(one(card) for card in cards)))
        finally:
            await client.close()

    async def _outcome(self, card: Card, studio: Studio) -> dict[str, str]:
        try:
            record = await settle(card, studio)
        except CardFailedError as error:
            return {"reason": str(error)}
        except CardPutOffError:
            return {}
        except ClosedError:
            return {"stopped": "stopped"}
        except QiaobanError as error:
            return {"stopped": error.message}
        return {"record": record}
