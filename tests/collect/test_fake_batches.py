"""The fake teacher's batch API, asked with the SDK that collectors use."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion

from tests.collect.ask_fake import CHILD_ZH, ask, logged, teacher, until


def rows(count: int) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": CHILD_ZH}]}
    row = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return b"".join(json.dumps({"custom_id": f"row-{n}", **row}).encode() + b"\n" for n in range(count))


async def submit(client: AsyncOpenAI, content: bytes, **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    assert (file.bytes, file.purpose, file.filename) == (len(content), "batch", "in.jsonl")
    assert (await client.files.content(file.id)).content == content
    return await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


async def finished(client: AsyncOpenAI, batch: Batch) -> Batch:
    async def over() -> bool:
        return (await client.batches.retrieve(batch.id)).status not in {"validating", "in_progress", "cancelling"}

    await until(over)
    return await client.batches.retrieve(batch.id)


async def lines(client: AsyncOpenAI, file: str | None) -> dict[str, Any]:
    content = b"" if file is None else (await client.files.content(file)).content
    found = [json.loads(line) for line in content.splitlines()]
    return {row["custom_id"]: row for row in found}


async def test_a_batch_runs_for_a_while_and_answers_in_another_order(tmp_path: Path) -> None:
    async with teacher(tmp_path / "log", batch_delay=0.3) as client:
        batch = await submit(client, rows(30), metadata={"run": "a"})
        assert (batch.status, batch.metadata) == ("validating", {"run": "a"})
        batch = await client.batches.retrieve(batch.id)
        assert batch.status == "in_progress"
        batch = await finished(client, batch)
        assert batch.status == "completed"
        assert batch.error_file_id is None
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed) == (30, 30)
        output = await lines(client, batch.output_file_id)
        direct = await ask(client, CHILD_ZH)
    assert set(output) == {f"row-{n}" for n in range(30)}
    assert list(output) != [f"row-{n}" for n in range(30)]
    answer = ChatCompletion.model_validate(output["row-0"]["response"]["body"])
    assert output["row-0"]["response"]["status_code"] == 200
    assert output["row-0"]["error"] is None
    assert answer.choices == direct.choices
    assert batch.usage is not None
    assert answer.usage is not None
    assert batch.usage.total_tokens == 30 * answer.usage.total_tokens
    assert {row["key"] for row in logged(tmp_path / "log") if row.get("batch") == batch.id} == set(output)


async def test_rows_of_a_batch_fail_and_expire() -> None:
    told: dict[str, Any] = {"too_many": 0.2, "server_error": 0.1, "hang": 0.1, "html": 0.1, "cut": 0.1, "batch_expires": 0.2}
    async with teacher(batch_delay=0, **told) as client:
        batch = await finished(client, await submit(client, rows(200)))
        output, errors = await lines(client, batch.output_file_id), await lines(client, batch.error_file_id)
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(errors))
    assert len(output) + len(errors) == 200
    reasons = [row["response"]["body"]["error"]["code"] if row["response"] else row["error"]["code"] for row in errors.values()]
    assert set(reasons) == {"rate_limit_exceeded", None, "request_timeout", "batch_expired"}
    assert 20 <= reasons.count("batch_expired") <= 60
    assert {row["response"]["status_code"] for row in errors.values() if row["response"]} == {429, 500, 502, 503}
    assert "length" in {row["response"]["body"]["choices"][0]["finish_reason"] for row in output.values()}


async def test_a_cancelled_batch_keeps_what_was_done() -> None:
    async with teacher(batch_delay=1.0) as client:
        batch = await submit(client, rows(100))
        await asyncio.sleep(0.3)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await finished(client, batch)
        output, errors = await lines(client, batch.output_file_id), await lines(client, batch.error_file_id)
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert 20 <= len(output) <= 95
    assert {row["error"]["code"] for row in errors.values()} == {"batch_cancelled"}
    assert len(output) + len(errors) == 100


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{\n", "invalid_json_line"),
        (rows(1) * 2, "duplicate_custom_id"),
        (b"{}\n", "missing_required_parameter"),
        (rows(1).replace(b"chat/completions", b"embeddings"), "invalid_url"),
        (b"\n", "empty_file"),
    ],
)
async def test_a_bad_file_fails_its_batch(content: bytes, code: str) -> None:
    async with teacher() as client:
        batch = await submit(client, content)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [fault.code for fault in batch.errors.data or []] == [code]


async def test_batches_are_listed_page_by_page_the_newest_first() -> None:
    async with teacher(batch_delay=0) as client:
        made = [(await submit(client, rows(1), metadata={"n": str(n)})).id for n in range(5)]
        page = await client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == made[:2:-1]
        assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
        assert [batch.id async for batch in client.batches.list(after=made[1])] == made[:1]


async def test_what_is_not_there_is_not_found() -> None:
    async with teacher() as client:
        file = await client.files.create(file=("in.jsonl", rows(1)), purpose="batch")
        assert (await client.files.retrieve(file.id)).id == file.id
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_x")
        with pytest.raises(openai.BadRequestError):
            await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(openai.BadRequestError):
            await client.files.create(file=("in.jsonl", rows(1)), purpose="user_data")
