"""What a run may spend: a call that could go over the limit is not sent."""

from __future__ import annotations

import asyncio
import random

import pytest

from qiaoban.teacher.budget import Budget, BudgetSpentError, Price
from qiaoban.teacher.ledger import Totals, Usage


def totals(usage: Usage, doubtful_tokens: int = 0) -> Totals:
    return Totals(
        answered=1, doubtful=int(doubtful_tokens > 0), doubtful_tokens=doubtful_tokens, usage=usage, done=0, failed=0, faults={}
    )


async def fits(budget: Budget, tokens: int) -> bool:
    try:
        async with budget.reserved(tokens):
            return True
    except BudgetSpentError:
        return False


async def test_a_call_that_could_go_over_is_not_sent() -> None:
    budget = Budget(tokens=100)
    async with budget.reserved(60):
        budget.spend(Usage(50, 9))
    assert await fits(budget, 41)
    with pytest.raises(BudgetSpentError, match="59 tokens so far") as caught:
        async with budget.reserved(42):
            pytest.fail("it was sent")
    assert "nothing is paid twice" in caught.value.hint


async def test_it_waits_while_only_calls_on_their_way_stand_against_it() -> None:
    budget, order = Budget(tokens=100), []

    async def second() -> None:
        async with budget.reserved(60):
            order.append("second")

    async with budget.reserved(60):
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        order.append("first")
        budget.spend(Usage(20, 20))
    await asyncio.wait_for(waiting, 1)
    assert order == ["first", "second"]


async def test_who_waited_is_told_when_it_was_all_spent() -> None:
    budget = Budget(tokens=100)
    async with budget.reserved(60):
        waiting = asyncio.create_task(fits(budget, 60))
        await asyncio.sleep(0)
        budget.spend(Usage(30, 30))
    assert not await asyncio.wait_for(waiting, 1)


async def test_what_is_too_much_alone_does_not_wait_for_others() -> None:
    budget = Budget(tokens=100)
    async with budget.reserved(60):
        assert not await asyncio.wait_for(fits(budget, 101), 1)


async def test_a_call_that_may_have_been_paid_counts_as_paid() -> None:
    budget = Budget(tokens=100, price=Price(1, 10))
    budget.doubt(70)
    assert not await fits(budget, 31)
    assert await fits(budget, 30)
    assert budget.money == pytest.approx(70 * 10 / 1e6)
    with pytest.raises(BudgetSpentError, match="up to 70 more"):
        async with budget.reserved(31):
            pass


async def test_earlier_runs_count() -> None:
    budget = Budget(tokens=100)
    budget.carry_over(totals(Usage(30, 20), doubtful_tokens=25))
    assert not await fits(budget, 26)
    assert await fits(budget, 25)


async def test_money_is_counted_at_the_dearest_before_and_as_billed_after() -> None:
    budget = Budget(money=1.0, price=Price(prompt=1.0, completion=4.0))
    assert not await fits(budget, 250_001)
    async with budget.reserved(250_000):
        budget.spend(Usage(200_000, 50_000))
    assert budget.money == pytest.approx(0.4)
    assert await fits(budget, 149_000)
    assert not await fits(budget, 151_000)


def test_cached_prompt_tokens_have_a_price_of_their_own_where_one_is_given() -> None:
    usage = Usage(prompt=1_000_000, completion=100_000, cached=400_000)
    assert Price(2, 8, 0.5).of(usage) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.1 * 8)
    assert Price(2, 8, 0).of(usage) == pytest.approx(0.6 * 2 + 0.1 * 8)
    assert Price(2, 8).of(usage) == pytest.approx(2 + 0.8)


async def test_without_a_limit_nothing_waits_and_without_a_price_no_money_is_known() -> None:
    budget = Budget()
    async with budget.reserved(10**12), budget.reserved(10**12):
        budget.spend(Usage(10**9, 10**9))
    assert not budget.limited
    assert budget.money is None


async def test_a_failed_call_and_a_cancelled_one_free_what_they_set_aside() -> None:
    budget = Budget(tokens=100)

    async def call(seconds: float) -> None:
        async with budget.reserved(100):
            await asyncio.sleep(seconds)
            raise ValueError("it broke")

    with pytest.raises(ValueError, match="broke"):
        await call(0)
    holding = asyncio.create_task(call(60))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(fits(budget, 100)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    holding.cancel()
    assert await asyncio.wait_for(asyncio.gather(*waiting[1:]), 1) == [True, True]


@pytest.mark.parametrize("seed", range(5))
async def test_all_that_go_at_once_never_exceed_the_limit(seed: int) -> None:
    chance, limit = random.Random(seed), 5_000
    budget = Budget(tokens=limit)
    on_their_way, sent = 0, 0

    async def call() -> None:
        nonlocal on_their_way, sent
        most = chance.randrange(50, 200)
        async with budget.reserved(most):
            sent += 1
            on_their_way += most
            assert budget.usage.total + on_their_way <= limit
            await asyncio.sleep(chance.random() / 100)
            budget.spend(Usage(most // 4, chance.randrange(most // 2)))
            on_their_way -= most

    outcomes = await asyncio.wait_for(asyncio.gather(*(call() for _ in range(150)), return_exceptions=True), 5)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(outcome, BudgetSpentError) for outcome in refused)
    assert len(refused) == 150 - sent > 0
    assert limit - 200 < budget.usage.total <= limit
