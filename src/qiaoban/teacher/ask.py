"""A teacher: ask it something, get something that can be read.

`Teacher` builds the request, reads the answer and asks afresh when it cannot be read. Where answers come from is a `Source`:
`LiveSource` sends requests now; `qiaoban.collect.rounds` hands them in by the batch. Both look into the ledger first.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from qiaoban.conversation import Turn
from qiaoban.errors import DataError, EngineError, QiaobanError
from qiaoban.teacher.answers import BadReplyError, content_of
from qiaoban.teacher.breaker import Breaker
from qiaoban.teacher.budget import Budget, BudgetSpentError
from qiaoban.teacher.client import CallError, Fault, Reply
from qiaoban.teacher.ledger import Call, Ledger, Usage, passes
from qiaoban.teacher.throttle import ClosedError, Permit, Throttle

T = TypeVar("T")
JsonMode = Literal["object", "none"]
_LONGEST_BACKOFF = 30.0  # seconds
_STOPS = frozenset({Fault.KEY, Fault.MODEL, Fault.QUOTA})
_SPEAKS = frozenset({Fault.TOO_MANY, Fault.BUSY, Fault.TIMEOUT})
_ALONE = 4  # times as often a call may fail while nobody else is answered, before its card is put off
_REFUSALS = 3  # cards refused before anything was answered: then it is the request and not a card


class CardFailedError(Exception):
    """This card has no dialogue: its answers cannot be read, or the endpoint will not answer it."""


class CardPutOffError(Exception):
    """This card cannot be settled now, for no fault of its own; it stays open for the next run."""


class Source(Protocol):
    """Where answers come from."""

    async def answer(self, call: Call) -> str:
        """The raw body of the answer to `call`."""
        ...


class Asking(Protocol):
    """One endpoint: `qiaoban.teacher.client.Client`, or an engine on this machine."""

    async def ask(self, body: Mapping[str, Any], key: str) -> Reply:
        """Send one chat completion under an Idempotency-Key. Raises `CallError`."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question. `again` is added to a fresh second try; `$fault` in it is what was wrong with the first."""

    card: str
    slot: str
    messages: Sequence[Turn]
    max_tokens: int
    temperature: float
    json: bool = False
    again: str = ""


@dataclass(kw_only=True)
class Teacher:
    """See the module. `extra_body` goes into every request, and None in it takes a parameter out."""

    source: Source
    ledger: Ledger
    model: str
    tries: int = 3
    json_mode: JsonMode = "object"
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    async def ask(self, ask: Ask, read: Callable[[str], T]) -> T:
        """Ask until `read` makes something of the answer. `CardFailedError` when it cannot after `tries` fresh tries."""
        fault, tries = BadReplyError("", ""), self.tries * self.ledger.rounds(ask.card)
        for attempt in range(tries):
            call = self._call(ask, attempt, fault)
            raw = await self.source.answer(call)
            try:
                return read(content_of(raw))
            except BadReplyError as error:
                fault = error
                with suppress(sqlite3.OperationalError):  # a note for `status`; a full disk shows elsewhere
                    self.ledger.unreadable(call.key, error.fault)
        raise CardFailedError(f"{ask.slot}: {fault} ({tries} tries)")

    def _call(self, ask: Ask, attempt: int, fault: BadReplyError) -> Call:
        messages = [{"role": turn.role, "content": turn.content} for turn in ask.messages]
        if attempt and ask.again:
            messages[-1]["content"] += "\n\n" + ask.again.replace("$fault", str(fault))
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
        }
        if ask.json and self.json_mode == "object":
            body["response_format"] = {"type": "json_object"}
        body |= self.extra_body
        text = sum(len(message["content"].encode()) for message in messages)
        longest = max(int(body.get(name) or 0) for name in ("max_tokens", "max_completion_tokens"))
        return Call(
            card=ask.card,
            slot=f"{ask.slot}#{attempt}",
            body={key: value for key, value in body.items() if value is not None},
            tokens=text // 2 + 8 * len(messages) + longest,
        )


@dataclass(kw_only=True)
class LiveSource:
    """Sends requests now, as fast as limits and budget allow. Every failure is named and counted in `faults`."""

    ledger: Ledger
    client: Asking
    throttle: Throttle
    budget: Budget = field(default_factory=Budget)
    breaker: Breaker = field(default_factory=Breaker)
    tries: int = 6
    faults: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    replayed: int = 0
    trouble: str = ""
    stopped: QiaobanError | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: set[str] = field(default_factory=set)

    def stop(self, why: QiaobanError) -> None:
        """Send nothing more. What is on its way is waited for and kept."""
        if self.stopped is None:
            self.stopped = why
            self.throttle.close()
            self._ended.set()

    async def answer(self, call: Call) -> str:
        """See `Source`. Raises `CardFailedError`, `CardPutOffError`, and `ClosedError` once the run stops."""
        key = call.key
        if (stored := self.ledger.answer(key)) is not None:
            self.replayed += 1
            return stored
        failures, sends, began = 0, 0, time.monotonic()
        while True:
            try:
                return (await self._send(call, key)).raw
            except BudgetSpentError as error:
                self.stop(error)
                raise ClosedError from None
            except CallError as error:
                self._weigh(error, call, key)
                if error.fault is Fault.TOO_MANY:  # the throttle has it
                    continue
                # A failure counts against the card only if the endpoint answers others meanwhile: else it may be down.
                sends, failures = sends + 1, failures + self.breaker.answered_since(began)
                began = time.monotonic()
                if failures >= self.tries:
                    raise CardFailedError(f"{call.slot}: {error.message} ({sends} times)") from None
                if sends >= _ALONE * self.tries:
                    raise CardPutOffError(error.message) from None
                backoff = min(_LONGEST_BACKOFF, 0.5 * 2 ** min(sends - 1, 6)) * random.uniform(0.5, 1)  # noqa: S311
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), max(error.wait or 0.0, backoff))

    def _weigh(self, error: CallError, call: Call, key: str) -> None:
        """What a failure means for the whole run: go on, rest, or stop."""
        self.trouble = error.message
        first = self.breaker.answered == 0 and not self.ledger.has_answers
        if error.fault is Fault.REQUEST or (error.fault is Fault.FORBIDDEN and not first):
            self._refused.add(call.card)
            if not first:
                raise CardFailedError(error.message)
            if len(self._refused) < _REFUSALS:  # a filter answers sooner than a model: one refusal says little
                raise CardPutOffError(error.message)
        if error.fault in _STOPS or (first and not error.fault.passing):
            self.stop(error)
            raise ClosedError
        if self.breaker.hopeless(there=error.fault in _SPEAKS):
            self.stop(EngineError(error.message, hint=error.hint or "run again later: nothing is lost or paid twice"))
            raise ClosedError
        if error.fault is not Fault.TOO_MANY and (rest := self.breaker.failed(key)):
            self.throttle.rest(rest)
            self.trouble = f"resting {rest:.0f} s: {error.message}"

    async def _send(self, call: Call, key: str) -> Reply:
        """One request with all that goes with it. The answer is stored before anything else happens."""
        async with self.budget.reserved(call.tokens):
            permit = await self.throttle.acquire(call.tokens)
            used: int | None = None
            try:
                await self.keep(lambda: self.ledger.sent(call, key), paid=False)
                self.sent += 1
                reply = await self._post(call, key, permit)
                used = reply.usage.total or None
                # An endpoint that sends no bill is counted at the most that the call can have taken.
                usage = reply.usage if used else Usage(call.tokens)
                await self.keep(lambda: self.ledger.answered(key, reply.raw, usage))
                self.budget.spend(usage)
            finally:
                self.throttle.release(permit, used=used)
        self.throttle.succeeded()
        self.breaker.succeeded()
        self.trouble = ""
        return reply

    async def _post(self, call: Call, key: str, permit: Permit) -> Reply:
        try:
            return await self.client.ask(call.body, key)
        except CallError as error:
            self.faults[error.fault] += 1
            if error.fault.doubtful:
                self.budget.doubt(call.tokens)
            if error.fault is Fault.TOO_MANY:
                self.throttle.too_many(permit, error.wait)
            await self.keep(partial(self.ledger.unanswered, key, error.fault, doubtful=error.fault.doubtful, raw=error.raw))
            raise

    async def keep(self, write: Callable[[], None], *, paid: bool = True) -> None:
        """Write to the ledger; where the disk is full or the file held, send nothing and wait rather than lose an answer."""
        while True:
            try:
                return write()
            except sqlite3.Error as error:
                if not passes(error):
                    raise DataError(f"cannot be written: {error}", path=self.ledger.path) from None
                self.faults["ledger_waits"] += 1
                self.trouble = f"{self.ledger.path}: {error}; make room, or close what holds it: answers wait in memory"
                self.throttle.rest(2)
                if self.stopped and not paid:
                    raise ClosedError from None
                await asyncio.sleep(1)
