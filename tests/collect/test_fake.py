"""The fake teacher's faults, its clock, its log and its process, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from qiaoban.collect.fake import Faults, build_app, serve
from qiaoban.errors import UsageError
from tests.collect.ask_fake import (
    CHILD_EN,
    CHILD_ZH,
    OUTLINE_ZH,
    SCRIPT_EN,
    SCRIPT_ZH,
    TAGGED_EN,
    TAGGED_ZH,
    ask,
    counted,
    logged,
    stats,
    teacher,
    text,
    until,
)

# ---- faults


async def test_too_many_says_when_to_come_back(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", too_many=1.0, retry_after=0.25) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client, CHILD_ZH)
    assert caught.value.code == "rate_limit_exceeded"
    assert float(caught.value.response.headers["retry-after"]) == 0.25
    assert [(row["status"], row["fault"]) for row in logged(tmp_path / "log")] == [(429, "too_many")]


async def test_server_errors_are_of_three_kinds() -> None:
    seen = set()
    async with teacher(server_error=1.0) as client:
        for n in range(20):
            with pytest.raises(openai.InternalServerError) as caught:
                await ask(client, f"{CHILD_ZH}{n}")
            seen.add(caught.value.status_code)
        assert (await stats(client))["by_fault"] == {"server_error": 20}
    assert seen == {500, 502, 503}


async def test_a_hang_never_answers_and_is_logged_when_it_begins(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", hang=1.0) as client:
        call = asyncio.create_task(ask(client, CHILD_ZH, key="a"))
        await until(lambda: asyncio.to_thread((tmp_path / "log").read_bytes))
        [row] = logged(tmp_path / "log")
        assert (row["key"], row["status"], row["fault"]) == ("a", None, "hang")
        assert (await stats(client))["in_flight"] == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: counted(client, "left"))
        assert (await stats(client))["in_flight"] == 0
    assert len(logged(tmp_path / "log")) == 1


@pytest.mark.parametrize("prompt", [SCRIPT_ZH, CHILD_ZH])
async def test_a_cut_answer_ends_too_soon(prompt: str) -> None:
    async with teacher() as client:
        whole = await text(client, prompt)
    async with teacher(cut=1.0) as client:
        [choice] = (await ask(client, prompt)).choices
    assert choice.finish_reason == "length"
    assert choice.message.content
    assert whole.startswith(choice.message.content)
    assert choice.message.content != whole


async def test_bad_json_does_not_parse_and_other_answers_are_spared() -> None:
    async with teacher(bad_json=1.0) as client:
        for prompt in (SCRIPT_ZH, SCRIPT_EN, OUTLINE_ZH, *(f"{SCRIPT_ZH}{n}" for n in range(9))):
            [choice] = (await ask(client, prompt)).choices
            assert choice.finish_reason == "stop"
            with pytest.raises(ValueError, match=r"."):
                json.loads(choice.message.content or "")
        assert await text(client, CHILD_ZH)
        assert (await stats(client))["by_fault"] == {"bad_json": 12}


async def test_fenced_json_is_json_in_a_fence() -> None:
    async with teacher(fenced=1.0) as client:
        fenced = await text(client, SCRIPT_ZH)
        assert "turns" in json.loads(fenced.removeprefix("```json\n").removesuffix("\n```"))
        assert not (await text(client, CHILD_ZH)).startswith("`")


async def test_an_empty_answer_and_a_filtered_one() -> None:
    async with teacher(empty=1.0) as client:
        [choice] = (await ask(client, CHILD_ZH)).choices
        assert (choice.finish_reason, choice.message.content) == ("stop", "")
    async with teacher(filtered=1.0) as client:
        [choice] = (await ask(client, CHILD_ZH)).choices
        assert choice.finish_reason == "content_filter"


@pytest.mark.parametrize(
    ("prompt", "other"),
    [(TAGGED_ZH, "\n孩子："), (TAGGED_EN, "\nChild: "), (CHILD_ZH, "\n智能助手："), (CHILD_EN, "\nAssistant: ")],
)
async def test_a_leak_goes_on_in_the_others_role(prompt: str, other: str) -> None:
    async with teacher(leak=1.0) as client:
        own, _, leaked = (await text(client, prompt)).partition(other)
    assert own
    assert leaked


async def test_html_instead_of_json() -> None:
    async with teacher(html=1.0) as client:
        answer = await client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": CHILD_ZH}]
        )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html"
    assert answer.text.startswith("<!doctype html>")


async def test_a_wrong_key_and_an_unknown_model() -> None:
    async with teacher(api_key="other") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await ask(client, CHILD_ZH)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        with pytest.raises(openai.AuthenticationError):
            await client.batches.list()
        right = client.with_options(api_key="other")
        assert await text(right, CHILD_ZH)
    assert refused.value.code == "invalid_api_key"
    async with teacher(model="another") as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(client, CHILD_ZH)
        assert [model.id async for model in client.models.list()] == ["another"]
    assert unknown.value.code == "model_not_found"


async def test_the_quota_ends() -> None:
    async with teacher(quota_after=2) as client:
        await ask(client, CHILD_ZH)
        await ask(client, CHILD_EN)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client, SCRIPT_ZH)
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model": "m"}', b'{"model": "m", "messages": []}', b'{"messages": [{"role": "user"}]}']
)
async def test_a_request_that_is_no_request(body: bytes) -> None:
    async with teacher() as client, httpx2.AsyncClient() as plain:
        answer = await plain.post(str(client.base_url.join("chat/completions")), content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_streaming_is_refused() -> None:
    async with teacher() as client:
        with pytest.raises(openai.BadRequestError):
            await ask(client, CHILD_ZH, stream=True)


async def outcomes(client: AsyncOpenAI, prompts: list[str]) -> dict[str, list[str]]:
    """What each prompt got, asked twice in the given order."""
    found: dict[str, list[str]] = {}
    for prompt in prompts * 2:
        try:
            [choice] = (await ask(client, prompt)).choices
            outcome = f"{choice.finish_reason} {choice.message.content}"
        except openai.APIStatusError as error:
            outcome = str(error.status_code)
        found.setdefault(prompt, []).append(outcome)
    return found


async def test_faults_follow_the_seed_and_not_the_order() -> None:
    told: dict[str, Any] = {"too_many": 0.2, "server_error": 0.2, "cut": 0.2}
    prompts = [f"{CHILD_ZH}{n}" for n in range(60)]
    async with teacher(seed=1, **told) as client:
        one = await outcomes(client, prompts)
    async with teacher(seed=1, **told) as client:
        again = await outcomes(client, prompts[::-1])
    async with teacher(seed=2, **told) as client:
        other = await outcomes(client, prompts)
    assert one == again != other
    assert any(first != second for first, second in one.values())  # a second try draws anew
    refused = sum(outcome == "429" for pair in one.values() for outcome in pair)
    assert 10 <= refused <= 40  # of 120, at a share of a fifth


@pytest.mark.parametrize(
    "told",
    [
        {"too_many": 1.2},
        {"hang": -0.1},
        {"cut": 0.6, "empty": 0.6},
        {"latency": -1},
        {"rpm": 0},
        {"rpm": 5, "window": 1},
        {"rpm": 60, "window": 0},
        {"batch_expires": 2},
        {"leak": float("nan")},
        {"retry_after": float("inf")},
    ],
)
def test_numbers_that_make_no_sense(told: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Faults(**told)


# ---- time


async def test_latency_is_kept_beside_others_in_flight() -> None:
    async with teacher(latency=0.3) as client:
        start = time.monotonic()
        await asyncio.gather(*(ask(client, f"{CHILD_ZH}{n}") for n in range(40)))
        took = time.monotonic() - start
        assert (await stats(client))["highest_in_flight"] == 40
    assert 0.3 <= took < 3


async def test_the_limit_slides(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", rpm=300, window=1.0) as client:  # five in any second
        for n in range(5):
            await ask(client, f"{CHILD_ZH}{n}")
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(client, CHILD_ZH)
        seconds = float(caught.value.response.headers["retry-after"])
        assert 0 < seconds <= 1
        await asyncio.sleep(seconds)
        await ask(client, CHILD_ZH)
        with pytest.raises(openai.RateLimitError):  # what was refused counted as well
            await asyncio.gather(*(ask(client, f"{CHILD_EN}{n}") for n in range(5)))
    passed = [row["t"] for row in logged(tmp_path / "log") if row["status"] == 200]
    assert all(later - earlier > 0.95 for earlier, later in zip(passed, passed[5:], strict=False))


# ---- keys and the log


async def test_a_key_that_was_answered_is_answered_the_same(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", latency=0.3) as client:
        first = await ask(client, CHILD_ZH, key="a")
        start = time.monotonic()
        raw = await client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": CHILD_EN}], extra_headers={"Idempotency-Key": "a"}
        )
        assert time.monotonic() - start < 0.25
        assert raw.headers["idempotent-replayed"] == "true"
        assert raw.parse() == first
        found = await stats(client)
    one, two = logged(tmp_path / "log")
    assert (one["key"], one["status"], one["replayed"]) == ("a", 200, False)
    assert (two["key"], two["status"], two["replayed"]) == ("a", 200, True)
    assert (found["requests"], found["replayed"]) == (2, 1)
    assert found["prompt_tokens"] == one["prompt_tokens"] > 0


async def test_an_error_is_not_remembered_by_its_key() -> None:
    async with teacher(too_many=0.5) as client:
        statuses: list[str] = []
        for _ in range(20):
            try:
                statuses.append((await ask(client, CHILD_ZH, key="a")).object)
            except openai.RateLimitError:
                statuses.append("refused")
    first = statuses.index("chat.completion")
    assert set(statuses[first:]) == {"chat.completion"}


async def test_replays_can_be_switched_off(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", idempotent=False) as client:
        await ask(client, CHILD_ZH, key="a")
        await ask(client, CHILD_ZH, key="a")
    assert [row["replayed"] for row in logged(tmp_path / "log")] == [False, False]


async def test_the_line_is_there_before_the_answer(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log") as client:
        for n in range(20):
            answer = await ask(client, f"{SCRIPT_ZH}{n}", key=str(n))
            assert answer.usage is not None
            row = logged(tmp_path / "log")[-1]
            assert row.pop("t") >= 0
            assert row == {
                "key": str(n),
                "status": 200,
                "fault": None,
                "prompt_tokens": answer.usage.prompt_tokens,
                "completion_tokens": answer.usage.completion_tokens,
                "replayed": False,
            }


async def test_a_client_that_leaves_is_logged_and_not_answered(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", latency=5) as client:
        with pytest.raises(openai.APITimeoutError):
            await ask(client.with_options(timeout=0.2), CHILD_ZH, key="a")
        await until(lambda: counted(client, "left"))
    [row] = logged(tmp_path / "log")
    assert (row["key"], row["status"], row["left"], row["completion_tokens"]) == ("a", None, True, 0)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        build_app(Faults(), tmp_path)


# ---- the process


async def test_a_taken_port_is_named() -> None:
    async with teacher() as client:
        port = client.base_url.port
        assert port is not None
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}"):
            await serve(build_app(), "127.0.0.1", port, ready=print)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_process_though_a_request_hangs(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import asyncio, functools, pathlib, sys\n"
        "from qiaoban.collect.fake import Faults, build_app, serve\n"
        "app = build_app(Faults(hang=1.0), pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(serve(app, '127.0.0.1', 0, ready=functools.partial(print, flush=True)))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        base = (await asyncio.to_thread(process.stdout.readline)).strip()
        assert base.endswith("/v1")
        async with AsyncOpenAI(base_url=base, api_key="key", max_retries=0) as client:
            call = asyncio.create_task(ask(client, CHILD_ZH))
            await until(lambda: asyncio.to_thread((tmp_path / "log").read_bytes))
            start = time.monotonic()
            process.send_signal(number)
            _, errors = await asyncio.to_thread(process.communicate)
            assert time.monotonic() - start < 5
            with pytest.raises(openai.APIError):
                await call
    assert process.returncode == 0
    assert errors == ""
