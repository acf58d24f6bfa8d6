"""How many requests may be on their way, and how fast: limits that the user sets and limits that the endpoint shows.

Concurrency is adaptive: the first 429 of a burst cuts it by a quarter and all dispatch rests for `Retry-After`; each round of
successes adds one (additive increase, multiplicative decrease, Chiu & Jain 1989). A slot is held only while a request is on its
way, never while one waits. Requests and tokens a minute are paced evenly and not in bursts, so that no minute, wherever it
begins, holds more than the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

_CUT = 0.75
_REST = 2.0  # seconds without a request after a 429 that names no time
_SHORTEST_REST = 0.1  # after one that names none at all
_USED = 0.985  # of a limit a minute: the rest allows for the way to the endpoint, where requests bunch
_CATCH_UP = 0.02  # seconds by which a late wake-up may be made good


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`concurrency` requests at once at most; `rpm` requests and `tpm` tokens a minute, where the provider has such limits."""

    concurrency: int = 64
    rpm: float | None = None
    tpm: float | None = None


class ClosedError(Exception):
    """The run is stopping: nothing more is sent."""


class _Pace:
    """Spends an allowance a minute evenly: after n units nothing may go for n times the spacing."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 60 / (per_minute * _USED) if per_minute else 0.0
        self._free_at = 0.0

    def wait(self, now: float) -> float:
        return self._free_at - now if self._spacing else 0.0

    def spend(self, now: float, units: float) -> None:
        if self._spacing:
            self._free_at = max(self._free_at, now - _CATCH_UP) + units * self._spacing


@dataclass(frozen=True)
class Permit:
    """Leave to send one request; give it back with `release`."""

    tokens: int
    at: float


class Throttle:
    """See the module. First come, first served."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.in_flight = 0
        self.highest = 0
        self._allowed = float(limits.concurrency)
        self._requests = _Pace(limits.rpm)
        self._tokens = _Pace(limits.tpm)
        self._waiting: deque[tuple[asyncio.Future[Permit], int]] = deque()
        self._rest_until = self._cut_at = 0.0
        self._streak = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def allowed(self) -> int:
        """How many requests may be on their way now."""
        return max(1, int(self._allowed))

    @property
    def resting(self) -> float:
        """Seconds until the next request may go, where the endpoint or the breaker asked for a rest."""
        return max(0.0, self._rest_until - time.monotonic())

    async def acquire(self, tokens: int = 0) -> Permit:
        """Wait for leave to send a request of at most `tokens` tokens. `ClosedError` after `close`."""
        if self._closed:
            raise ClosedError
        wish: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        self._waiting.append((wish, tokens))
        self._pump()
        try:
            return await wish
        except asyncio.CancelledError:
            if wish.done() and not wish.cancelled() and wish.exception() is None:
                self.release(wish.result(), used=0)
            raise

    def release(self, permit: Permit, *, used: int | None = None) -> None:
        """The request is over. `used` corrects the tokens that were set aside for it."""
        self.in_flight -= 1
        if used is not None:
            self._tokens.spend(time.monotonic(), used - permit.tokens)
        self._pump()

    def succeeded(self) -> None:
        """An answer came: after as many as are allowed at once, one more is."""
        self._streak += 1
        if self._streak >= self._allowed and self._allowed < self.limits.concurrency:
            self._allowed = min(self._allowed + 1, float(self.limits.concurrency))
            self._streak = 0

    def too_many(self, permit: Permit, retry_after: float | None) -> None:
        """A 429 came. Only the first of those that were on their way together cuts."""
        now = time.monotonic()
        if permit.at >= self._cut_at:
            self._allowed = max(1.0, self._allowed * _CUT)
            self._cut_at, self._streak = now, 0
        self.rest(_REST if retry_after is None else max(retry_after, _SHORTEST_REST))

    def rest(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._rest_until = max(self._rest_until, time.monotonic() + seconds)

    def close(self) -> None:
        """Give no more leave; whoever waits gets `ClosedError`. Requests on their way go on."""
        self._closed = True
        while self._waiting:
            wish, _ = self._waiting.popleft()
            if not wish.done():
                wish.set_exception(ClosedError())

    def _pump(self) -> None:
        """Let those go who may."""
        while self._waiting and self.in_flight < self.allowed:
            now = time.monotonic()
            wait = max(self._rest_until - now, self._requests.wait(now), self._tokens.wait(now))
            if wait > 0:
                self._wake_in(wait)
                return
            wish, tokens = self._waiting.popleft()
            if wish.done():
                continue
            self._requests.spend(now, 1)
            self._tokens.spend(now, tokens)
            self.in_flight += 1
            self.highest = max(self.highest, self.in_flight)
            wish.set_result(Permit(tokens, now))

    def _wake_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pump)
