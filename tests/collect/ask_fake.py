"""A fake teacher on a free port and the SDK that collectors ask it with: what the tests of the fake share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from qiaoban.collect.fake import Faults, build_app, serve

SCRIPT_ZH = '请写一段孩子和陪伴者的对话，只输出 JSON：{"turns": [...]}'
SCRIPT_EN = 'Write a talk as JSON: {"turns": [...]}'
OUTLINE_ZH = '请给出五个大纲，只输出 JSON：{"outlines": [...]}'
TAGGED_ZH = "请用一行回答，先写动作，可选 [ACCEPT, LABEL, EXPLORE]。"
TAGGED_EN = "Answer in one line, the acts first, out of [ACCEPT, LABEL, EXPLORE]."
LINES_ZH = "请逐行写，每行以“孩子：”或“智能助手：”开头。"
LINES_EN = "Write line by line, each beginning with Child: or Assistant:"
CHILD_ZH = "你是小满，九岁。请说一句话。"
CHILD_EN = "You are Robin, nine years old. Say one thing."


@asynccontextmanager
async def teacher(log: Path | None = None, **told: Any) -> AsyncIterator[AsyncOpenAI]:
    """A teacher on a free port, and a client of it that never retries."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(build_app(Faults(**told), log), "127.0.0.1", 0, ready=ready.set_result))
    try:
        async with AsyncOpenAI(base_url=await ready, api_key="key", max_retries=0, timeout=20) as client:
            yield client
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def ask(client: AsyncOpenAI, prompt: str, key: str | None = None, **more: Any) -> ChatCompletion:
    answer: ChatCompletion = await client.chat.completions.create(
        model="fake-teacher",
        messages=[{"role": "user", "content": prompt}],
        extra_headers={} if key is None else {"Idempotency-Key": key},
        **more,
    )
    return answer


async def text(client: AsyncOpenAI, prompt: str) -> str:
    return (await ask(client, prompt)).choices[0].message.content or ""


async def stats(client: AsyncOpenAI) -> dict[str, Any]:
    async with httpx2.AsyncClient() as plain:
        answer = await plain.get(str(client.base_url.join("/fake/stats")))
    found: dict[str, Any] = answer.json()
    return found


async def counted(client: AsyncOpenAI, name: str) -> int:
    return int((await stats(client))[name])


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait for what nobody announces."""
    while not await condition():  # noqa: ASYNC110 - it happens on the other side of a connection
        await asyncio.sleep(0.01)


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
