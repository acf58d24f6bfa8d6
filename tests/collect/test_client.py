"""One request over a real connection: what comes of it, and what a failure is taken for."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from qiaoban.errors import QiaobanError
from qiaoban.teacher.client import CallError, Client, Endpoint, Fault, Reply
from qiaoban.teacher.ledger import Usage

from .ask_fake import CHILD_ZH
from .conftest import KEY, Answer, Asked, completion, error, fake, http, says, wire

BODY = {"model": "fake-teacher", "messages": [{"role": "user", "content": CHILD_ZH}]}


@asynccontextmanager
async def client_of(url: str, **more: Any) -> AsyncIterator[Client]:
    endpoint = Endpoint(**{"base_url": url, "model": "fake-teacher", "api_key": KEY, "timeout": 10.0, **more})
    client = Client(endpoint, connections=4)
    try:
        yield client
    finally:
        await client.close()


async def ask(url: str, body: dict[str, Any] | None = None, **more: Any) -> Reply:
    async with client_of(url, **more) as client:
        return await client.ask(BODY if body is None else body, "key-1")


async def fails(url: str, body: dict[str, Any] | None = None, **more: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await ask(url, body, **more)
    assert KEY not in f"{caught.value!r} {caught.value.message} {caught.value.hint} {caught.value.raw}"
    return caught.value


async def fails_with(answer: Answer, **more: Any) -> CallError:
    async with wire(answer) as server:
        found = await fails(server.url, **more)
    assert len(server.asked) == 1, "the client itself sends nothing twice"
    return found


# ---- answers


async def test_an_answer_comes_as_it_was_sent_with_its_bill() -> None:
    raw = completion("好呀", prompt_tokens=20, completion_tokens=7, prompt_tokens_details={"cached_tokens": 16})
    async with wire(says(200, raw)) as server:
        assert await ask(server.url) == Reply(raw, Usage(20, 7, 16))
    [asked] = server.asked
    assert (asked.path, asked.key, asked.body) == ("/v1/chat/completions", "key-1", BODY)
    assert asked.headers["authorization"] == f"Bearer {KEY}"


async def test_the_fake_teacher_is_understood() -> None:
    async with fake(api_key=KEY, model="fake-teacher") as url:
        reply = await ask(url)
    assert reply.usage.prompt > 0
    assert reply.usage.completion > 0


@pytest.mark.parametrize("usage", ["null", "{}", '{"prompt_tokens": null, "prompt_tokens_details": null}'])
async def test_an_endpoint_need_not_bill(usage: str) -> None:
    raw = f'{{"choices": [{{"message": {{"role": "assistant", "content": "好"}}}}], "usage": {usage}}}'
    async with wire(says(200, raw)) as server:
        assert await ask(server.url) == Reply(raw, Usage())


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "[]",
        "null",
        '"好"',
        "{}",
        '{"error": {"message": "no"}}',
        "{",
    ],
)
async def test_what_is_no_chat_completion_is_kept_to_be_read(raw: str) -> None:
    found = await fails_with(says(200, raw))
    assert (found.fault, found.raw) == (Fault.NOT_CHAT, raw)
    assert not found.fault.passing
    assert not found.fault.doubtful


async def test_a_page_instead_of_an_answer_is_shown_and_hinted_at() -> None:
    async with fake(html=1.0) as url:
        found = await fails(url)
    assert found.fault is Fault.NOT_CHAT
    assert "<title>Welcome" in found.message
    assert "Please sign in" in str(found.raw)
    assert "/v1" in found.hint


# ---- refusals


async def test_a_wrong_key() -> None:
    async with fake(api_key="another") as url:
        found = await fails(url)
    assert found.fault is Fault.KEY
    assert "Incorrect API key provided." in found.message
    assert "OPENAI_API_KEY" in found.hint


async def test_a_server_that_repeats_the_key_does_not_give_it_away() -> None:
    async def answer(asked: Asked) -> AsyncIterator[bytes]:
        yield http(401, error(f"Incorrect API key provided: {asked.headers['authorization']}"))

    assert (await fails_with(answer)).fault is Fault.KEY


async def test_the_key_is_in_no_repr() -> None:
    async with client_of("http://127.0.0.1:9/v1") as client:
        assert KEY not in repr(client.endpoint) + repr(client) + str(client.endpoint)


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nx: y", "sk-密钥"])
async def test_a_key_that_cannot_be_sent_is_named_and_nothing_is_thought_paid(key: str) -> None:
    async with wire(says(200, completion("好"))) as server:
        with pytest.raises(QiaobanError, match="key") as caught:
            await ask(server.url, api_key=key)
    assert not (isinstance(caught.value, CallError) and caught.value.fault.passing)


async def test_an_unknown_model() -> None:
    async with fake(model="another") as url:
        found = await fails(url)
    assert found.fault is Fault.MODEL
    assert "`fake-teacher` does not exist" in found.message


async def test_a_wrong_path() -> None:
    async with fake() as url:
        found = await fails(url.rstrip("/").removesuffix("/v1"))
    assert found.fault is Fault.MODEL
    assert "/v1" in found.hint


async def test_no_money_left() -> None:
    async with fake(quota_after=0) as url:
        found = await fails(url)
    assert found.fault is Fault.QUOTA
    assert not found.fault.passing
    assert "exceeded your current quota" in found.message
    assert "nothing is paid twice" in found.hint
    assert (await fails_with(says(402, error("Insufficient Balance")))).fault is Fault.QUOTA


async def test_a_bad_request_is_told_in_the_servers_words() -> None:
    async with fake() as url:
        found = await fails(url, {**BODY, "n": 3})
    assert found.fault is Fault.REQUEST
    assert "400: This teacher gives one answer, not streamed." in found.message
    assert not found.retryable


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 529])
async def test_a_busy_server_may_answer_later(status: int) -> None:
    found = await fails_with(says(status, error("overloaded"), retry_after="7"))
    assert (found.fault, found.wait, found.retryable) == (Fault.BUSY, 7, True)
    assert f"{status}: overloaded" in found.message


async def test_a_page_from_a_gateway_is_cut_short() -> None:
    found = await fails_with(says(502, "<html>" + "bad gateway " * 500, content_type="text/html"))
    assert found.fault is Fault.BUSY
    assert len(found.message) < 400


# ---- too many


async def test_too_many_from_the_fake_teacher_says_for_how_long() -> None:
    async with fake(too_many=1.0, retry_after=0.25) as url:
        found = await fails(url)
    assert (found.fault, found.wait, found.retryable) == (Fault.TOO_MANY, 0.25, True)


def clock(seconds: float) -> str:
    """A date of a server whose clock is years off."""
    return format_datetime(datetime(2019, 5, 1, tzinfo=UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry_after": "3"}, 3),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after": "3", "retry_after_ms": "150"}, 0.15),
        ({"retry_after": "-3"}, 0),
        ({"retry_after": clock(90), "date": clock(0)}, 90),
        ({"retry_after": clock(0), "date": clock(90)}, 0),
        ({"retry_after": "soon", "date": clock(0)}, None),
    ],
)
async def test_how_long_to_wait(headers: dict[str, str], wait: float | None) -> None:
    assert (await fails_with(says(429, error("slow down"), **headers))).wait == wait


# ---- nobody knows


async def test_a_time_out_may_have_been_paid() -> None:
    began = time.monotonic()
    async with fake(hang=1.0) as url:
        found = await fails(url, timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert found.fault is Fault.TIMEOUT
    assert found.fault.doubtful
    assert found.retryable
    assert "no answer in 0.2 s" in found.message


async def test_an_answer_that_trickles_in_runs_out_of_time_as_well() -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        for _count in range(40):
            await asyncio.sleep(0.05)
            yield b" "  # as some providers do to keep a connection alive

    began = time.monotonic()
    found = await fails_with(answer, timeout=0.3)
    assert found.fault is Fault.TIMEOUT
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("parts", [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"], [b"GARBAGE\r\n\r\n"]])
async def test_a_connection_that_breaks_may_have_been_paid(parts: list[bytes]) -> None:
    async def answer(_: Asked) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    found = await fails_with(answer)
    assert found.fault is Fault.BROKEN
    assert found.fault.doubtful
    assert found.retryable


async def test_a_refused_connection_was_not_paid() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        found = await fails(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
    assert found.fault is Fault.UNREACHABLE
    assert not found.fault.doubtful
    assert found.retryable
    assert "cannot be reached" in found.message


@pytest.mark.parametrize("url", ["nowhere", "ftp://127.0.0.1/v1", "http://"])
async def test_what_is_no_address_cannot_be_reached(url: str) -> None:
    found = await fails(url)
    assert (found.fault, found.fault.doubtful) == (Fault.UNREACHABLE, False)


async def test_a_client_goes_on_after_failures() -> None:
    async with fake(server_error=0.5) as url, client_of(url) as client:
        outcomes = await asyncio.gather(*(client.ask({**BODY, "seed": n}, str(n)) for n in range(40)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Reply, CallError}
