"""A teacher over real connections: nothing is lost, nothing is paid twice, and what cannot be read is asked for afresh."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from qiaoban.collect.reading import script_of
from qiaoban.conversation import Turn
from qiaoban.teacher.answers import BadReplyError, content_of
from qiaoban.teacher.ask import Ask, CardFailedError, LiveSource, Teacher
from qiaoban.teacher.client import Fault
from qiaoban.teacher.ledger import Ledger

from .ask_fake import CHILD_ZH, SCRIPT_ZH, logged
from .conftest import Asked, ask_all, call_for, calls, completion, error, fake, http, live, wire

# ---- nothing is lost, nothing is paid twice


async def test_a_storm_loses_nothing_and_a_second_run_sends_nothing(tmp_path: Path, ledger: Ledger) -> None:
    log, asked = tmp_path / "log.jsonl", calls(150)
    told: dict[str, Any] = {"too_many": 0.2, "retry_after": 0.02, "server_error": 0.03, "latency": 0.005}
    async with fake(log, **told) as url, live(ledger, url) as source:
        answers = await ask_all(source, asked)
        sent = source.sent
        before = len(logged(log))
        async with live(ledger, url) as again:
            assert await ask_all(again, asked) == answers
            assert (again.sent, again.replayed) == (0, 150)
        assert len(logged(log)) == before == sent
    rows = logged(log)
    answered = Counter(row["key"] for row in rows if row["status"] == 200)
    assert answered == {call.key: 1 for call in asked}
    assert all(content_of(raw) for raw in answers)
    assert source.faults[Fault.TOO_MANY] > 10
    assert ledger.totals().answered == 150
    assert ledger.totals().usage.total == sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert source.budget.usage == ledger.totals().usage
    assert (source.throttle.in_flight, source.throttle.highest <= 32) == (0, True)


async def test_what_hangs_is_sent_again_under_the_same_key_and_reported_as_doubtful(tmp_path: Path, ledger: Ledger) -> None:
    log, asked = tmp_path / "log.jsonl", calls(40)
    async with fake(log, hang=0.15) as url, live(ledger, url, within=0.5) as source:
        await ask_all(source, asked)
    hung = {row["key"] for row in logged(log) if row["fault"] == "hang"}
    answered = Counter(row["key"] for row in logged(log) if row["status"] == 200)
    assert hung
    assert answered == {call.key: 1 for call in asked}
    totals = ledger.totals()
    assert totals.doubtful == source.faults[Fault.TIMEOUT] >= len(hung)
    assert totals.doubtful_tokens == 500 * totals.doubtful
    assert totals.faults == {}, "all were answered in the end"


async def test_each_answer_is_in_the_ledger_before_it_is_handed_on(ledger: Ledger) -> None:
    async with fake() as url, live(ledger, url) as source:
        with Ledger(ledger.path, read_only=True) as other:
            for call in calls(5):
                raw = await source.answer(call)
                assert other.answer(call.key) == raw


async def test_a_broken_connection_is_doubtful_and_a_refusal_is_not(ledger: Ledger) -> None:
    async def answer(asked: Asked) -> AsyncIterator[bytes]:
        seen[asked.key] += 1
        if seen[asked.key] > 1:
            yield http(200, completion("好"))
        elif asked.text == "refuse":
            yield http(503, error("busy"))

    seen = Counter[str]()
    async with wire(answer) as server, live(ledger, server.url) as source:
        await ask_all(source, [call_for("break", card="a"), call_for("refuse", card="b")])
    assert source.faults == {Fault.BROKEN: 1, Fault.BUSY: 1}
    assert (ledger.totals().doubtful, ledger.totals().answered) == (1, 2)
    assert set(seen.values()) == {2}


# ---- reading


def asking(ledger: Ledger, source: LiveSource, **more: Any) -> Teacher:
    return Teacher(source=source, ledger=ledger, model="fake-teacher", **more)


def question(prompt: str = CHILD_ZH, **more: Any) -> Ask:
    given: dict[str, Any] = {"card": "c", "slot": "child/1", "max_tokens": 100, "temperature": 0.7, **more}
    return Ask(messages=[Turn(role="user", content=prompt)], **given)


async def test_what_cannot_be_read_is_asked_for_afresh_under_a_new_key(tmp_path: Path, ledger: Ledger) -> None:
    log = tmp_path / "log.jsonl"
    async with fake(log, empty=1.0) as url, live(ledger, url) as source:
        with pytest.raises(CardFailedError, match=r"child/1: it was empty \(3 tries\)"):
            await asking(ledger, source).ask(question(), str)
        keys = [row["key"] for row in logged(log)]
        assert len(set(keys)) == len(keys) == 3
        assert ledger.totals().faults == {"empty": 3}
        assert all(ledger.answer(key) for key in keys)
        with pytest.raises(CardFailedError):
            await asking(ledger, source).ask(question(), str)
        assert len(logged(log)) == 3, "bad answers are paid for as well: they are read again, not bought again"


async def test_a_second_try_says_what_was_wrong(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield http(200, completion(f"word {len(server.asked)}"))

    def read(text: str) -> str:
        if text == "word 3":
            return text
        raise BadReplyError("odd", f"{text!r} is odd")

    async with wire(answer) as server, live(ledger, server.url) as source:
        assert await asking(ledger, source).ask(question("Say.", again="Wrong: $fault."), read) == "word 3"
    assert [asked.text for asked in server.asked] == [
        "Say.",
        "Say.\n\nWrong: 'word 1' is odd.",
        "Say.\n\nWrong: 'word 2' is odd.",
    ]


@pytest.mark.parametrize("fault", ["cut", "filtered", "bad_json", "empty"])
async def test_bad_answers_now_and_then_end_in_good_ones(ledger: Ledger, fault: str) -> None:
    told: dict[str, Any] = {fault: 0.3}
    async with fake(**told) as url, live(ledger, url) as source:
        tutor = asking(ledger, source, tries=8)
        talks = await asyncio.gather(
            *(tutor.ask(question(f"{SCRIPT_ZH} {n}", card=f"c{n}", json=True), script_of) for n in range(20))
        )
    assert all(len(talk) >= 4 for talk in talks)
    assert ledger.totals().answered > 20
    assert ledger.totals().answered - sum(ledger.totals().faults.values()) == 20


async def test_extra_body_adds_replaces_and_takes_out(ledger: Ledger) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield http(200, completion("好"))

    extra = {"temperature": None, "max_tokens": None, "max_completion_tokens": 900, "thinking": {"type": "disabled"}}
    async with wire(answer) as server, live(ledger, server.url) as source:
        await asking(ledger, source).ask(question(json=True), str)
        await asking(ledger, source, extra_body=extra).ask(question(json=True), str)
        await asking(ledger, source, json_mode="none").ask(question(json=True), str)
    plain, changed, no_json = (asked.body for asked in server.asked)
    message = {"model": "fake-teacher", "messages": [{"role": "user", "content": CHILD_ZH}]}
    form = {"response_format": {"type": "json_object"}}
    assert plain == {**message, **form, "max_tokens": 100, "temperature": 0.7}
    assert changed == {**message, **form, "max_completion_tokens": 900, "thinking": {"type": "disabled"}}
    assert no_json == {**message, "max_tokens": 100, "temperature": 0.7}
    assert len({asked.key for asked in server.asked}) == 3


async def test_the_most_that_a_call_can_take_is_never_less_than_its_bill(ledger: Ledger) -> None:
    async with fake() as url, live(ledger, url) as source:
        await asking(ledger, source).ask(question(SCRIPT_ZH, max_tokens=2000), str)
    most = ledger._db.execute("SELECT tokens FROM calls").fetchone()[0]
    assert ledger.totals().usage.total <= most


async def test_a_longest_answer_that_extra_body_names_is_counted(ledger: Ledger) -> None:
    async with fake() as url, live(ledger, url) as source:
        extra = {"max_tokens": None, "max_completion_tokens": 5000}
        await asking(ledger, source, extra_body=extra).ask(question(), str)
    assert ledger._db.execute("SELECT tokens FROM calls").fetchone()[0] > 5000


async def test_a_retry_of_failed_cards_is_not_given_the_same_bad_answer(tmp_path: Path, ledger: Ledger) -> None:
    """An endpoint that honours Idempotency-Key would give it again."""
    log = tmp_path / "log.jsonl"
    async with fake(log, empty=1.0) as url, live(ledger, url) as source:
        with pytest.raises(CardFailedError):
            await asking(ledger, source).ask(question(), str)
        ledger.failed("c", "sha", "empty")
        ledger.retry_failed()
        with pytest.raises(CardFailedError):
            await asking(ledger, source).ask(question(), str)
    keys = [row["key"] for row in logged(log)]
    assert len(set(keys)) == len(keys) == 6
