"""When an endpoint is down: how long to rest, and when to give up. Nothing that was collected is ever discarded."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Breaker:
    """Counts distinct failing requests over a whole `window` (seconds): five time-outs within two seconds prove nothing.

    When at least `least` fail in a window, and more than are answered, or `least` fail over `burst` seconds and nothing is
    answered in between, dispatch rests: 10 s, then doubled up to 10 minutes.
    After `patience` seconds without a single answer the run stops; where nothing was ever heard of the endpoint, after
    `first_patience`: then the address is wrong.
    """

    window: float = 60.0
    least: int = 10
    burst: float = 5.0
    rest: float = 10.0
    longest_rest: float = 600.0
    patience: float = 3600.0
    first_patience: float = 5.0
    answered: int = 0
    _last_answer: float = 0.0
    _failing_since: float | None = None
    _since: float = field(default_factory=time.monotonic)
    _answered_since: int = 0
    _failing: set[str] = field(default_factory=set)
    _streak: set[str] = field(default_factory=set)
    _streak_since: float = 0.0
    _next_rest: float = 0.0

    def succeeded(self) -> None:
        """An answer came."""
        now = time.monotonic()
        self.answered += 1
        self._answered_since += 1
        self._last_answer, self._next_rest, self._failing_since = now, 0.0, None
        self._streak.clear()
        if now - self._since >= self.window:
            self._open_window(now)

    def failed(self, key: str) -> float:
        """A request failed in a way that may pass; returns how many seconds to rest (0: go on)."""
        now = time.monotonic()
        self._failing.add(key)
        if not self._streak:
            self._streak_since = now
        self._streak.add(key)
        down = len(self._streak) >= self.least and now - self._streak_since >= min(self.burst, self.window)
        if now - self._since >= self.window:
            down = down or (len(self._failing) >= self.least and len(self._failing) > self._answered_since)
            self._open_window(now)
        if not down:
            return 0.0
        self._streak.clear()
        self._next_rest = min(self._next_rest * 2 or self.rest, self.longest_rest)
        return self._next_rest

    def answered_since(self, moment: float) -> bool:
        """Whether the endpoint has answered anything since `moment` (monotonic seconds)."""
        return self.answered > 0 and self._last_answer >= moment

    def hopeless(self, *, there: bool) -> bool:
        """Asked at each failure: whether they have gone on for so long that the run should stop.

        `there` says that the endpoint spoke, if only to say no.
        """
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since > (self.patience if self.answered or there else self.first_patience)

    def _open_window(self, now: float) -> None:
        self._since, self._answered_since = now, 0
        self._failing.clear()
