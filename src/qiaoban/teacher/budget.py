"""What a run may spend, in tokens and in money, across all its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from qiaoban.errors import PolicyError
from qiaoban.teacher.ledger import Totals, Usage


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, in whatever currency the user counts. `cached` is for prompt tokens seen before."""

    prompt: float
    completion: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """What some usage costs."""
        cached = usage.cached if self.cached is not None else 0
        fresh = usage.prompt - cached
        return (fresh * self.prompt + cached * (self.cached or 0) + usage.completion * self.completion) / 1e6

    def at_most(self, tokens: int) -> float:
        """What so many tokens can cost, whichever they are."""
        return tokens * max(self.prompt, self.completion) / 1e6


class BudgetSpentError(PolicyError):
    """The next call could go over the budget, so it is not sent."""


class Budget:
    """Counts what is spent and what is on its way. A call that could go over the limit is not sent."""

    def __init__(self, *, tokens: int | None = None, money: float | None = None, price: Price | None = None) -> None:
        self.price = price
        self.usage = Usage()
        self._doubtful = 0
        self._limit_tokens, self._limit_money = tokens, money
        self._reserved = 0
        self._freed = asyncio.Event()

    def carry_over(self, totals: Totals) -> None:
        """Count what earlier runs have spent; a call that may have been paid counts as paid."""
        self.usage, self._doubtful = totals.usage, totals.doubtful_tokens

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self._limit_tokens is not None or self._limit_money is not None

    @property
    def money(self) -> float | None:
        """What is spent so far, or None where no price is known."""
        return None if self.price is None else self.price.of(self.usage) + self.price.at_most(self._doubtful)

    @asynccontextmanager
    async def reserved(self, tokens: int) -> AsyncIterator[None]:
        """Set `tokens` aside while a call is made. Waits while only calls on their way stand against it.

        Raises `BudgetSpentError` when the call could go over the limit.
        """
        while self.limited and not self.fits(self._reserved + tokens):
            if self._reserved == 0 or not self.fits(tokens):
                raise BudgetSpentError(self._spent_message(), hint="raise the budget and run again: nothing is paid twice")
            self._freed.clear()
            await self._freed.wait()
        self._reserved += tokens
        try:
            yield
        finally:
            self._reserved -= tokens
            self._freed.set()

    def spend(self, usage: Usage) -> None:
        """An answer came with its bill."""
        self.usage += usage

    def doubt(self, tokens: int) -> None:
        """A call may have been paid: count it as if it was."""
        self._doubtful += tokens

    def fits(self, more: int) -> bool:
        """Whether so many tokens beyond what is spent stay inside the limits."""
        if self._limit_tokens is not None and self.usage.total + self._doubtful + more > self._limit_tokens:
            return False
        if self._limit_money is None or self.price is None:
            return True
        return self.price.of(self.usage) + self.price.at_most(self._doubtful + more) <= self._limit_money

    def _spent_message(self) -> str:
        spent = f"{self.usage.total:,} tokens" + ("" if self.money is None else f" ({self.money:.4g})")
        doubt = f", up to {self._doubtful:,} more in calls whose end is unknown" if self._doubtful else ""
        return f"the budget is spent: {spent} so far{doubt}, and the next call could go over it"
