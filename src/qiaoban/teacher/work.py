"""Work through items with a teacher: as many at once as requests may be on their way, and a beat a second for who looks on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qiaoban.errors import DataError, EngineError, QiaobanError
from qiaoban.teacher.ask import CardFailedError, CardPutOffError, LiveSource
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.throttle import ClosedError

_BEAT = 1.0  # seconds


class InterruptedRunError(QiaobanError):
    """The user asked the run to stop."""


class Item(Protocol):
    """Something to be settled: an id of its own, and a hash of all that it is."""

    @property
    def id(self) -> str:
        """Names it in the ledger."""
        ...

    @property
    def sha(self) -> str:
        """Tells whether it has changed since it was settled."""
        ...


class Watcher(Protocol):
    """Is told once a second what a run is doing."""

    def __call__(self, live: Mapping[str, Any]) -> None:
        """`live` is what `status` shows."""
        ...


@dataclass(kw_only=True)
class Work:
    """A run that is going on. `total` counts all items, `done` and `failed` those settled, now or before.

    `settle` makes the record of one item, a line of JSON, out of answers; what it raises says what becomes of the item.
    """

    ledger: Ledger
    source: LiveSource
    settle: Callable[[Any], Awaitable[str]]
    total: int
    done: int = 0
    failed: int = 0
    settled: int = 0
    may_have_been_paid: int = 0
    _began: float = field(default_factory=time.monotonic)

    async def run(self, items: Iterator[Item], *, workers: int, watch: Watcher) -> None:
        """Settle `items`, those still open. Stops early, with `source.stopped` saying why, when the source stops."""
        self.may_have_been_paid = self.ledger.recover()
        totals = self.ledger.totals()
        self.done, self.failed = totals.done, totals.failed
        self.source.budget.carry_over(totals)
        number = self.ledger.begin_run(os.getpid())
        beat = asyncio.create_task(self._beat(number, watch))
        ended = "killed"
        try:
            crew = [asyncio.create_task(self._worker(items)) for _ in range(max(1, min(workers, self.total)))]
            for outcome in await asyncio.gather(*crew, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
            ended = "stopped" if self.source.stopped else "finished"
        finally:
            beat.cancel()
            with suppress(asyncio.CancelledError):
                await beat
            with suppress(sqlite3.Error):  # a full disk: the run's own error says so
                self.ledger.beat(number, self.live(), ended)
        with suppress(OSError, SystemExit):
            watch(self.live())

    def live(self) -> dict[str, Any]:
        """What the run is doing, for people and for `status`."""
        elapsed = time.monotonic() - self._began
        pace, left = self.settled / elapsed if elapsed else 0.0, self.total - self.done - self.failed
        source = self.source
        return {
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "in_flight": source.throttle.in_flight,
            "allowed": source.throttle.allowed,
            "sent": source.sent,
            "replayed": source.replayed,
            "calls_per_second": round(source.breaker.answered / elapsed, 2) if elapsed else 0.0,
            "faults": dict(source.faults),
            "tokens": source.budget.usage.total,
            "money": source.budget.money,
            "resting": round(source.throttle.resting, 1),
            "eta_seconds": round(left / pace) if pace else None,
            "trouble": source.trouble,
        }

    async def _worker(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                await self._settle(item)
        except ClosedError:
            return
        except Exception as error:  # the outermost edge of a worker: let the others finish what is paid
            self.source.stop(error if isinstance(error, QiaobanError) else EngineError(f"a defect: {error!r}"))
            if not isinstance(error, QiaobanError):
                raise

    async def _settle(self, item: Item) -> None:
        try:
            record = await self.settle(item)
        except CardPutOffError:
            return
        except CardFailedError as error:
            reason = str(error)
            await self.source.keep(lambda: self.ledger.failed(item.id, item.sha, reason))
            self.failed += 1
        else:
            await self.source.keep(lambda: self.ledger.done(item.id, item.sha, record))
            self.done += 1
        self.settled += 1

    async def _beat(self, number: int, watch: Watcher) -> None:
        while True:
            live = self.live()
            with suppress(sqlite3.OperationalError):  # no room: `keep` says so
                self.ledger.beat(number, live)
            with suppress(OSError, SystemExit):  # whoever looked on has gone; the run goes on
                watch(live)
            await asyncio.sleep(_BEAT)


Thing = TypeVar("Thing", bound=Item)


def open_items(items: Iterable[Thing], ledger: Ledger, path: Path) -> Iterator[Thing]:
    """The items that are neither done nor failed. `DataError` where a settled one has changed, or an id stands twice.

    `path` is the file that they stand in.
    """
    seen: set[int] = set()
    for item in items:
        if (mark := hash(item.id)) in seen:
            raise DataError(f"two records are called {item.id!r}", path=path, hint="give each an id of its own")
        seen.add(mark)
        state = ledger.state(item.id)
        if state is None:
            yield item
        elif state[1] != item.sha:
            raise DataError(
                f"{item.id!r} is not what it was when it was settled: the file, or what is asked about it, was changed",
                path=path,
                hint="use a folder of its own for the new file",
            )
