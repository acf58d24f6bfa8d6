"""Everything that a run needs beside its folder, in a form that can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from qiaoban.collect.budget import Budget, Price
from qiaoban.collect.client import Client, Endpoint
from qiaoban.collect.ledger import Ledger
from qiaoban.collect.plan import read_topics
from qiaoban.collect.prompts import Prompts
from qiaoban.collect.rollouts.studio import Studio
from qiaoban.collect.teacher import Asking, JsonMode, LiveSource, Source, Teacher
from qiaoban.collect.throttle import Limits, Throttle
from qiaoban.conversation import Lang


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which teacher, how fast, how dear. Budgets are in tokens and in the currency of `price`."""

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

    def studio(self, ledger: Ledger, source: Source, topics: Path) -> Studio:
        """Teacher and prompts, with the user's own topics where the folder `topics` has some."""
        extra = [read_topics(path) for path in sorted(topics.glob("*.toml"))]
        teacher = Teacher(
            source=source,
            ledger=ledger,
            model=self.endpoint.model,
            tries=self.tries,
            json_mode=self.json_mode,
            extra_body=self.extra_body,
        )
        return Studio(teacher=teacher, prompts={lang: Prompts(lang, extra) for lang in get_args(Lang)}, licence=self.licence)

    def share(self, workers: int) -> Job:
        """The part of limits and budget that one of several workers gets."""

        def part(value: float | None) -> float | None:
            return None if value is None else value / workers

        limits = Limits(
            concurrency=max(1, self.limits.concurrency // workers), rpm=part(self.limits.rpm), tpm=part(self.limits.tpm)
        )
        tokens = None if self.budget_tokens is None else self.budget_tokens // workers
        return replace(self, limits=limits, budget_tokens=tokens, budget_money=part(self.budget_money))
