"""Everything that a run needs beside its folder, in a form that can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qiaoban.teacher.ask import Asking, JsonMode, LiveSource, Source, Teacher
from qiaoban.teacher.budget import Budget, Price
from qiaoban.teacher.client import Client, Endpoint
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.throttle import Limits, Throttle


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which teacher or judge, how fast, how dear. Budgets are in tokens and in the currency of `price`."""

    endpoint: Endpoint
    limits: Limits = field(default_factory=Limits)
    budget_tokens: int | None = None
    budget_money: float | None = None
    price: Price | None = None
    tries: int = 3
    json_mode: JsonMode = "object"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None

    def budget(self) -> Budget:
        """A fresh count against the limits."""
        return Budget(tokens=self.budget_tokens, money=self.budget_money, price=self.price)

    def client(self) -> Client:
        """Connections to the teacher; must be made inside the event loop that uses them."""
        return Client(self.endpoint, connections=self.limits.concurrency)

    def live(self, ledger: Ledger, client: Asking) -> LiveSource:
        """A source that sends requests now."""
        return LiveSource(ledger=ledger, client=client, throttle=Throttle(self.limits), budget=self.budget())

    def teacher(self, ledger: Ledger, source: Source) -> Teacher:
        """Who asks, over a source of answers."""
        return Teacher(
            source=source,
            ledger=ledger,
            model=self.endpoint.model,
            tries=self.tries,
            json_mode=self.json_mode,
            extra_body=self.extra_body,
        )

    def share(self, workers: int) -> Job:
        """The part of limits and budget that one of several workers gets."""

        def part(value: float | None) -> float | None:
            return None if value is None else value / workers

        limits = Limits(
            concurrency=max(1, self.limits.concurrency // workers), rpm=part(self.limits.rpm), tpm=part(self.limits.tpm)
        )
        tokens = None if self.budget_tokens is None else self.budget_tokens // workers
        return replace(self, limits=limits, budget_tokens=tokens, budget_money=part(self.budget_money))
