"""One run over a plan: as many dialogues at once as requests may be on their way, a beat a second, and the files at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qiaoban.collect.card import Card, read_plan
from qiaoban.collect.ledger import Ledger
from qiaoban.collect.rollouts import ROLLOUTS
from qiaoban.collect.rollouts.studio import Studio
from qiaoban.collect.teacher import CardFailedError, CardPutOffError, LiveSource
from qiaoban.collect.throttle import ClosedError
from qiaoban.conversation import Conversation, parse_conversation
from qiaoban.errors import DataError, EngineError, QiaobanError
from qiaoban.files import write_atomically

_BEAT = 1.0  # seconds


class InterruptedRunError(QiaobanError):
    """The user asked the run to stop."""


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one collection lie."""

    path: Path

    @property
    def plan(self) -> Path:
        """The cards."""
        return self.path / "plan.jsonl"

    @property
    def ledger(self) -> Path:
        """Every paid call and every finished dialogue."""
        return self.path / "ledger.sqlite"

    @property
    def dialogues(self) -> Path:
        """The finished dialogues, in the order of the plan."""
        return self.path / "dialogues.jsonl"

    @property
    def failed(self) -> Path:
        """Cards without a dialogue, with the reason."""
        return self.path / "failed.jsonl"

    @property
    def pairs(self) -> Path:
        """Preference pairs of `branch` cards."""
        return self.path / "pairs.jsonl"

    @property
    def topics(self) -> Path:
        """Copies of the user's own topic files."""
        return self.path / "topics"

    @property
    def lock(self) -> Path:
        """Held while a run writes."""
        return self.path / ".run.lock"


class Watcher(Protocol):
    """Is told once a second what a run is doing."""

    def __call__(self, live: Mapping[str, Any]) -> None:
        """`live` is what `status` shows."""
        ...


@dataclass(kw_only=True)
class Run:
    """A run that is going on. `total` counts the cards of the plan, `done` and `failed` those settled, now or before."""

    folder: RunFolder
    ledger: Ledger
    studio: Studio
    source: LiveSource
    total: int = 0
    done: int = 0
    failed: int = 0
    settled: int = 0
    may_have_been_paid: int = 0
    _began: float = field(default_factory=time.monotonic)

    async def work(self, *, workers: int, watch: Watcher) -> None:
        """Settle every open card. Stops early, with `source.stopped` saying why, when the source stops."""
        self.total = count_cards(self.folder.plan)
        self.may_have_been_paid = self.ledger.recover()
        totals = self.ledger.totals()
        self.done, self.failed = totals.done, totals.failed
        self.source.budget.carry_over(totals)
        number, cards = self.ledger.begin_run(os.getpid()), open_cards(self.folder.plan, self.ledger)
        beat = asyncio.create_task(self._beat(number, watch))
        ended = "killed"
        try:
            crew = [asyncio.create_task(self._worker(cards)) for _ in range(max(1, min(workers, self.total)))]
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

    async def _worker(self, cards: Iterator[Card]) -> None:
        try:
            for card in cards:
                await self._settle(card)
        except ClosedError:
            return
        except Exception as error:  # the outermost edge of a worker: let the others finish what is paid
            self.source.stop(error if isinstance(error, QiaobanError) else EngineError(f"a defect: {error!r}"))
            if not isinstance(error, QiaobanError):
                raise

    async def _settle(self, card: Card) -> None:
        try:
            talk = await ROLLOUTS[card.mode](card, self.studio)
        except CardPutOffError:
            return
        except CardFailedError as error:
            reason = str(error)
            await self.source.keep(lambda: self.ledger.failed(card.id, card.sha, reason))
            self.failed += 1
        else:
            await self.source.keep(lambda: self.ledger.done(card.id, card.sha, talk.to_json()))
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


def count_cards(plan: Path) -> int:
    """Non-blank lines of a plan. `DataError` where there is no plan or nothing in it."""
    if not plan.exists():
        raise DataError("there is no plan", path=plan, hint="make one with `qiaoban collect plan`")
    with plan.open("rb") as file:
        count = sum(1 for line in file if line.strip())
    if count == 0:
        raise DataError("the plan is empty", path=plan, hint="make one with `qiaoban collect plan`")
    return count


def open_cards(plan: Path, ledger: Ledger) -> Iterator[Card]:
    """The cards that are neither done nor failed. `DataError` where a settled card has changed, or an id stands twice."""
    seen: set[int] = set()
    for card in read_plan(plan):
        if (mark := hash(card.id)) in seen:
            raise DataError(f"two cards are called {card.id!r}", path=plan, hint="give each card an id of its own")
        seen.add(mark)
        state = ledger.state(card.id)
        if state is None:
            yield card
        elif state[1] != card.sha:
            raise DataError(
                f"card {card.id!r} is not the one that was collected: the plan was changed",
                path=plan,
                hint="collect a new plan in a folder of its own",
            )


def write_results(folder: RunFolder, ledger: Ledger) -> dict[str, int]:
    """Write `dialogues.jsonl`, `failed.jsonl` and, for `branch` cards alone, `pairs.jsonl`; returns how many each holds."""
    counts = {"dialogues": 0, "pairs": 0, "failed": 0}
    with write_atomically(folder.dialogues) as file, write_atomically(folder.pairs) as pairs:
        for card in read_plan(folder.plan):
            if (record := ledger.record(card.id)) is None:
                continue
            if card.mode == "branch":  # a reply that fails on purpose must never stand among dialogues
                pairs.write(json.dumps(pair(card, parse_conversation(record)), ensure_ascii=False).encode() + b"\n")
                counts["pairs"] += 1
            else:
                file.write(record.encode() + b"\n")
                counts["dialogues"] += 1
    if not counts["pairs"]:
        folder.pairs.unlink()
    with write_atomically(folder.failed) as file:
        for card_id, reason in ledger.failures():
            file.write(json.dumps({"id": card_id, "reason": reason}, ensure_ascii=False).encode() + b"\n")
            counts["failed"] += 1
    if not counts["failed"]:
        folder.failed.unlink()
    return counts


def pair(card: Card, talk: Conversation) -> dict[str, Any]:
    """A preference pair as TRL reads it: the reply that was there is chosen, the one that failed on purpose rejected."""
    if card.given is None or card.at is None:
        raise DataError(f"card {card.id!r} is no branch")

    def said(turn: Any) -> dict[str, str]:
        return {"role": turn.role, "content": turn.content}

    return {
        "id": card.id,
        "prompt": [said(turn) for turn in talk.turns[:-1]],
        "chosen": [said(card.given.turns[card.at])],
        "rejected": [said(talk.turns[-1])],
        "pair_type": card.factor,
        "lang": card.lang,
    }
