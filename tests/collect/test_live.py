"""Live answers over real connections: what stops a run, what fails a card, and what is waited for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from qiaoban.errors import DataError, EngineError, QiaobanError
from qiaoban.teacher.answers import content_of
from qiaoban.teacher.ask import CardFailedError, CardPutOffError, LiveSource
from qiaoban.teacher.breaker import Breaker
from qiaoban.teacher.budget import Budget, BudgetSpentError
from qiaoban.teacher.client import Fault
from qiaoban.teacher.ledger import Call, Ledger, Usage
from qiaoban.teacher.throttle import ClosedError
from qiaoban.teacher.work import InterruptedRunError

from .ask_fake import logged
from .conftest import KEY, Asked, ask_all, call_for, calls, completion, error, fake, http, live, until, wire


async def stops(source: LiveSource, call: Call) -> QiaobanError:
    """Ask in vain; returns why the run was stopped."""
    with pytest.raises(ClosedError):
        await asyncio.wait_for(source.answer(call), 5)
    assert source.stopped is not None
    return source.stopped


# ---- what stops a run, and what fails a card


@pytest.mark.parametrize(
    ("told", "message", "hint"),
    [
        ({"api_key": "another"}, "refused the key: Incorrect API key provided.", "OPENAI_API_KEY"),
        ({"model": "another"}, "`fake-teacher` does not exist", "/v1"),
        ({"quota_after": 0}, "exceeded your current quota", "top up the account"),
        ({"html": 1.0}, "not as a chat endpoint", "/v1"),
    ],
    ids=["key", "model", "quota", "page"],
)
async def test_what_no_other_request_can_mend_stops_the_run(
    tmp_path: Path, ledger: Ledger, told: dict[str, Any], message: str, hint: str
) -> None:
    log = tmp_path / "log.jsonl"
    async with fake(log, **told) as url, live(ledger, url) as source:
        why = await stops(source, call_for())
        assert message in why.message
        assert hint in why.hint
        assert KEY not in repr(why) + why.message + source.trouble
        assert await stops(source, call_for("another")) is why
    assert len(logged(log)) == 1
    assert sum(source.faults.values()) == 1


async def test_an_account_that_runs_empty_keeps_what_was_answered(ledger: Ledger) -> None:
    async with fake(quota_after=10) as url, live(ledger, url, concurrency=4) as source:
        outcomes = await asyncio.gather(*(source.answer(call) for call in calls(30)), return_exceptions=True)
    assert sum(isinstance(outcome, str) for outcome in outcomes) == ledger.totals().answered == 10
    assert sum(isinstance(outcome, ClosedError) for outcome in outcomes) == 20
    assert source.stopped is not None
    assert ledger.recover() == 0


async def refuses_bad(asked: Asked) -> AsyncIterator[bytes]:
    bad = asked.text == "bad"
    yield http(400, error("this prompt is not allowed")) if bad else http(200, completion("好"))


async def test_three_first_cards_that_are_refused_stop_the_run_and_stay_open(ledger: Ledger) -> None:
    async with wire(refuses_bad) as server, live(ledger, server.url) as source:
        for card in ("a", "b"):  # a filter answers sooner than a model
            with pytest.raises(CardPutOffError):
                await source.answer(call_for("bad", card=card))
        assert "400: this prompt is not allowed" in (await stops(source, call_for("bad", card="c"))).message
    assert len(server.asked) == 3


async def test_a_later_request_that_is_refused_fails_its_card_alone(ledger: Ledger) -> None:
    async with wire(refuses_bad) as server, live(ledger, server.url) as source:
        await source.answer(call_for("good", card="a"))
        with pytest.raises(CardFailedError, match="this prompt is not allowed"):
            await source.answer(call_for("bad", card="b"))
        await source.answer(call_for("good", card="c"))
        assert source.stopped is None
    assert len(server.asked) == 3
    assert ledger.totals().faults == {"bad_request": 1}


async def test_a_refused_request_does_not_stop_a_run_that_goes_on_from_answers(ledger: Ledger) -> None:
    async with wire(refuses_bad) as server:
        async with live(ledger, server.url) as source:
            await source.answer(call_for("good", card="a"))
        async with live(ledger, server.url) as resumed:
            with pytest.raises(CardFailedError):
                await resumed.answer(call_for("bad", card="b"))
            assert resumed.stopped is None


async def test_a_page_later_on_counts_against_its_call_and_is_kept(ledger: Ledger) -> None:
    async def answer(asked: Asked) -> AsyncIterator[bytes]:
        seen[asked.key] += 1
        if asked.text == "odd" and seen[asked.key] == 1:
            yield http(200, "<p>Please sign in</p>", content_type="text/html")
        yield http(200, completion("好"))

    seen = Counter[str]()
    async with wire(answer) as server, live(ledger, server.url) as source:
        await source.answer(call_for("good", card="a"))
        odd = call_for("odd", card="b")
        asked = asyncio.create_task(source.answer(odd))
        await until(lambda: source.faults[Fault.NOT_CHAT])
        assert ledger._db.execute("SELECT raw FROM calls WHERE key=?", (odd.key,)).fetchone() == ("<p>Please sign in</p>",)
        assert "好" in await asyncio.wait_for(asked, 3)


async def test_a_failure_counts_against_a_call_only_while_others_are_answered(ledger: Ledger) -> None:
    async def answer(asked: Asked) -> AsyncIterator[bytes]:
        bad = asked.text == "bad" or len(server.asked) <= 3
        yield http(500, error("broken")) if bad else http(200, completion("好"))

    async with wire(answer) as server, live(ledger, server.url, tries=2) as source:
        await asyncio.wait_for(source.answer(call_for("good")), 9)
        assert len(server.asked) == 4, "three failures are more than two tries, and nobody was answered"
        bad = asyncio.create_task(source.answer(call_for("bad", card="bad")))
        for number, other in enumerate(calls(3), 1):  # one is answered between any two failures
            least = 3 + number
            await asyncio.wait_for(until(lambda: bad.done() or source.faults[Fault.BUSY] >= least), 9)  # noqa: B023
            await source.answer(other)
        with pytest.raises(CardFailedError, match=r"500: broken \([23] times\)"):
            await asyncio.wait_for(bad, 0.2)
    assert 2 <= sum(asked.text == "bad" for asked in server.asked) <= 3
    assert source.stopped is None


async def test_an_address_where_nobody_listens_is_given_up(ledger: Ledger) -> None:
    async with fake() as url:
        pass
    began = time.monotonic()
    async with live(ledger, url, breaker=Breaker(first_patience=0.3)) as source:
        why = await stops(source, call_for())
    assert isinstance(why, EngineError)
    assert "cannot be reached" in why.message
    assert "URL" in why.hint
    assert time.monotonic() - began >= 0.3
    assert ledger.totals().doubtful == 0


async def test_a_first_answer_that_takes_too_long_is_no_wrong_address(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        if len(server.asked) == 1:
            await asyncio.sleep(2)
        yield http(200, completion("好"))

    breaker = Breaker(first_patience=0.1)
    async with wire(answer) as server, live(ledger, server.url, within=0.3, breaker=breaker) as source:
        assert content_of(await asyncio.wait_for(source.answer(call_for()), 3)) == "好"


async def test_an_endpoint_that_is_down_for_a_while_is_rested_and_waited_for(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield http(200, completion("好")) if up.is_set() else http(503, error("down"))

    up = asyncio.Event()
    breaker = Breaker(window=0.2, least=3, rest=0.4, first_patience=0.1)
    async with wire(answer) as server, live(ledger, server.url, concurrency=8, breaker=breaker) as source:
        asked = asyncio.create_task(ask_all(source, calls(8)))
        await asyncio.wait_for(until(lambda: source.throttle.resting), 3)
        up.set()
        assert len(await asyncio.wait_for(asked, 5)) == 8
    assert source.trouble == ""
    assert source.faults[Fault.BUSY] == len(server.asked) - 8


# ---- budget


async def test_a_spent_budget_stops_before_a_call_is_sent_and_keeps_what_is_on_its_way(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.05)
        yield http(200, completion("好", prompt_tokens=300, completion_tokens=100))

    async with wire(answer) as server, live(ledger, server.url, budget=Budget(tokens=2000)) as source:
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(source.answer(call) for call in calls(20)), return_exceptions=True), 5
        )
    answered = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert isinstance(source.stopped, BudgetSpentError)
    assert len(server.asked) == len(answered) == ledger.totals().answered == 4
    assert ledger.totals().usage.total == 1600
    assert all(isinstance(outcome, str | ClosedError) for outcome in outcomes)
    assert ledger.recover() == 0


async def test_a_time_out_counts_against_the_budget(ledger: Ledger) -> None:
    async with fake(hang=1.0) as url, live(ledger, url, within=0.1, budget=Budget(tokens=1200)) as source:
        assert isinstance(await stops(source, call_for()), BudgetSpentError)
    assert ledger.totals().doubtful_tokens == 1000


# ---- a full disk


async def test_a_full_disk_pauses_and_keeps_the_answer_until_there_is_room(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield http(200, completion("好" * 10_000))

    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")
    async with wire(answer) as server, live(ledger, server.url, concurrency=4) as source:
        first = asyncio.create_task(source.answer(call_for(card="a")))
        await asyncio.wait_for(until(lambda: source.faults["ledger_waits"]), 2)
        assert "make room" in source.trouble
        second = asyncio.create_task(source.answer(call_for(card="b")))
        await asyncio.sleep(0.3)
        assert len(server.asked) == 1, "nothing more is sent"
        assert ledger.totals().answered == 0
        ledger._db.execute(f"PRAGMA max_page_count={pages + 10_000}")
        raw = await asyncio.wait_for(first, 3)
        assert ledger.answer(call_for(card="a").key) == raw
        await asyncio.wait_for(second, 4)
    assert len(server.asked) == 2
    assert ledger.totals().answered == 2


async def test_a_ledger_that_cannot_be_written_for_another_reason_is_named(ledger: Ledger) -> None:
    with Ledger(ledger.path, read_only=True) as reader:
        async with fake() as url, live(reader, url) as source:
            with pytest.raises(DataError, match="cannot be written") as caught:
                await source.answer(call_for())
            assert caught.value.path == ledger.path
            assert source.throttle.in_flight == 0
            assert source.sent == 0


# ---- the end


async def test_stop_lets_what_is_on_its_way_come_home_and_sends_nothing_more(tmp_path: Path, ledger: Ledger) -> None:
    log = tmp_path / "log.jsonl"
    async with fake(log, latency=0.3) as url, live(ledger, url, concurrency=4) as source:
        asked = [asyncio.create_task(source.answer(call)) for call in calls(10)]
        await until(lambda: source.sent == 4)
        await asyncio.sleep(0.05)
        why = InterruptedRunError("interrupted")
        source.stop(why)
        source.stop(EngineError("too late to be the reason"))
        outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 3)
    assert source.stopped is why
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 4
    assert sum(isinstance(outcome, ClosedError) for outcome in outcomes) == 6
    assert ledger.totals().answered == len(logged(log)) == 4
    assert ledger.recover() == 0


async def test_stop_does_not_wait_for_a_call_that_waits_to_be_sent_again(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield http(503, error("come back in a minute"), retry_after="60")

    async with wire(answer) as server, live(ledger, server.url) as source:
        asked = asyncio.create_task(source.answer(call_for()))
        await until(lambda: source.faults[Fault.BUSY])
        source.stop(InterruptedRunError("interrupted"))
        with pytest.raises(ClosedError):
            await asyncio.wait_for(asked, 2)


async def test_a_killed_call_is_sent_again_under_the_same_key(tmp_path: Path, ledger: Ledger) -> None:
    log, call = tmp_path / "log.jsonl", call_for()
    async with fake(log, latency=0.5) as url:
        async with live(ledger, url) as source:
            asked = asyncio.create_task(source.answer(call))
            await until(lambda: source.sent)
            await asyncio.sleep(0.1)
            asked.cancel()  # as a kill would: nobody writes down what became of it
            await asyncio.gather(asked, return_exceptions=True)
        assert ledger.recover() == 1
        async with live(ledger, url) as resumed:
            resumed.budget.carry_over(ledger.totals())
            assert content_of(await resumed.answer(call))
            assert resumed.budget.usage != Usage()
    assert {row["key"] for row in logged(log)} == {call.key}
    assert (ledger.totals().doubtful, ledger.totals().answered) == (1, 1)
