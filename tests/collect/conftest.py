"""What the tests of asking share: a server that sends whatever bytes a test wants, a ledger, a source of live answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qiaoban.teacher.ask import LiveSource
from qiaoban.teacher.client import Client, Endpoint
from qiaoban.teacher.ledger import Call, Ledger
from qiaoban.teacher.throttle import Limits, Throttle

from .ask_fake import CHILD_ZH, teacher

KEY = "sk-very-secret"


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]


Answer = Callable[[Asked], AsyncIterator[bytes]]


@dataclass
class Wire:
    """A server that says what `answer` yields, and then hangs up; what yields nothing breaks the connection off."""

    answer: Answer
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    busy: set[asyncio.Task[Any]] = field(default_factory=set)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.busy.add(task)
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(lines[0].split()[1], headers, json.loads(body))
            self.asked.append(asked)
            async for part in self.answer(asked):
                writer.write(part)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the other side went, or the test is over
        finally:
            self.busy.discard(task)
            writer.close()


@asynccontextmanager
async def wire(answer: Answer) -> AsyncIterator[Wire]:
    """A `Wire` on a free port."""
    running = Wire(answer)
    server = await asyncio.start_server(running.connected, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield running
    finally:
        server.close()
        for task in list(running.busy):
            task.cancel()
        await asyncio.sleep(0.01)


def http(status: int, body: str, **headers: str) -> bytes:
    """A whole response; underscores in header names stand for hyphens."""
    given = {"content-type": "application/json", "content-length": str(len(body.encode())), "connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n{body}".encode()


def completion(text: str, **usage: Any) -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    given = {"prompt_tokens": 10, "completion_tokens": 5, **usage}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": given}, ensure_ascii=False)


def says(status: int, body: str, **headers: str) -> Answer:
    """Always the same response."""

    async def answer(_: Asked) -> AsyncIterator[bytes]:
        yield http(status, body, **headers)

    return answer


def error(message: str, code: str | None = None) -> str:
    """An error in OpenAI's form."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})


def call_for(text: str = CHILD_ZH, *, card: str = "c1", slot: str = "child/1#0", tokens: int = 500) -> Call:
    """A call to `fake-teacher`."""
    body = {"model": "fake-teacher", "messages": [{"role": "user", "content": text}], "max_tokens": 100}
    return Call(card=card, slot=slot, body=body, tokens=tokens)


@asynccontextmanager
async def live(
    ledger: Ledger, url: str, *, concurrency: int = 32, within: float = 20.0, **more: Any
) -> AsyncIterator[LiveSource]:
    """A source that sends to `url` and gives an answer `within` seconds; `more` goes to `LiveSource`."""
    endpoint = Endpoint(base_url=url, model="fake-teacher", api_key=KEY, timeout=within)
    client = Client(endpoint, connections=concurrency)
    try:
        yield LiveSource(ledger=ledger, client=client, throttle=Throttle(Limits(concurrency=concurrency)), **more)
    finally:
        await client.close()


@asynccontextmanager
async def fake(log: Path | None = None, **told: Any) -> AsyncIterator[str]:
    """A fake teacher on a free port; `told` goes to `Faults`."""
    async with teacher(log, **told) as client:
        yield str(client.base_url)


def calls(count: int, first: int = 0) -> list[Call]:
    """Calls of as many cards."""
    return [call_for(f"{CHILD_ZH} ({n})", card=f"c{n}") for n in range(first, first + count)]


async def ask_all(source: LiveSource, asked: Iterable[Call]) -> list[str]:
    """Ask for all at once."""
    return list(await asyncio.gather(*(source.answer(call) for call in asked)))


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened
