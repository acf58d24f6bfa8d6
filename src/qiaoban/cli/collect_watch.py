"""How a collection tells of itself: a live line on a terminal, a line every half minute elsewhere, and `status`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.text import Text

from qiaoban.cli.voice import note, stderr

_EVERY = 30.0  # seconds between lines where no terminal listens


class LiveLines:
    """A `Watcher` for people."""

    def __init__(self) -> None:
        self._console = stderr()
        self._live = Live(console=self._console, transient=True, refresh_per_second=4)
        self._said = time.monotonic()

    def __enter__(self) -> LiveLines:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, live: Mapping[str, Any]) -> None:
        """Show what a run is doing."""
        if self._console.is_terminal:
            self._live.update(Text("\n".join(lines(live))))
        elif time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            note("; ".join(lines(live)))


def lines(live: Mapping[str, Any]) -> list[str]:
    """One line of figures, and one of trouble where there is some."""
    parts = [f"{live['done']:,} of {live['total']:,} done"]
    if live.get("failed"):
        parts.append(f"{live['failed']:,} failed")
    if "in_flight" in live:
        parts.append(f"{live['in_flight']} of {live['allowed']} in flight")
        parts.append(f"{live['calls_per_second']:.1f} calls/s")
        parts.append(f"{live['faults'].get('too_many', 0)} times 429")
        parts.append(f"{live['tokens']:,} tokens")
    if live.get("money") is not None:
        parts.append(f"cost {live['money']:.4g}")
    if live.get("eta_seconds") is not None and live["done"] + live["failed"] < live["total"]:
        parts.append(f"about {timedelta(seconds=live['eta_seconds'])} left")
    found = [" · ".join(parts)]
    if live.get("trouble"):
        found.append(f"waiting: {live['trouble']}")
    return found
