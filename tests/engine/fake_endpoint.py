"""A real HTTP server on loopback that speaks streamed chat completions, well or badly, as told.

Each request takes the next answer of `answers`; an answer is a coroutine that writes to the connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request and the way back to whoever sent it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def piece(self, raw: bytes) -> None:
        """One chunk of a body whose length is not known beforehand."""
        await self.send(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")

    async def start_events(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")


@dataclass
class FakeEndpoint:
    """What was asked, and what is to be answered next."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the caller closed the connection in mid-answer

    @property
    def last(self) -> dict[str, Any]:
        return self.exchanges[-1].body


@asynccontextmanager
async def fake_endpoint() -> AsyncGenerator[FakeEndpoint]:
    """Listens on a free port while the context is open."""
    endpoint = FakeEndpoint("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            exchange = await _read_request(reader, writer)
            endpoint.exchanges.append(exchange)
            endpoint.asked.set()
            answer = endpoint.answers.pop(0) if endpoint.answers else refuses(418, "no answer is left")
            gone = asyncio.ensure_future(reader.read())
            work = asyncio.ensure_future(answer(exchange))
            await asyncio.wait([gone, work], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                endpoint.left.set()
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    endpoint.url = f"http://{host}:{port}/v1"
    try:
        yield endpoint
    finally:
        server.close()
        await server.wait_closed()
        for exchange in endpoint.exchanges:
            exchange.writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    headers = {key.lower(): value for key, value in pairs}
    body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
    return Exchange(head[0].split(" ")[1], headers, body, reader, writer)


# -- events ---------------------------------------------------------------------------------------------------------------


def chunk(text: str | None = None, *, finish: str | None = None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """One `chat.completion.chunk`; with `usage` and nothing else, the last one, which has no choices."""
    delta = {} if text is None else {"content": text}
    choices = [] if usage and text is None and finish is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    found = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": choices}
    return found | ({"usage": usage} if usage else {})


def usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def events(chunks: Iterable[dict[str, Any]], *, escaped: bool = True) -> bytes:
    """The chunks as server-sent events. Half a surrogate pair needs `escaped`."""
    return b"".join(f"data: {json.dumps(one, ensure_ascii=escaped)}\n\n".encode() for one in chunks)


def says(*chunks: dict[str, Any], piece: int = 0, escaped: bool = True, done: bool = True) -> Answer:
    """A good answer, in network pieces of `piece` bytes (0: one for each chunk)."""

    async def answer(to: Exchange) -> None:
        await to.start_events()
        raw = events(chunks, escaped=escaped) + (b"data: [DONE]\n\n" if done else b"")
        cuts = range(0, len(raw), piece) if piece else []
        for part in [raw[at : at + piece] for at in cuts] or [event + b"\n\n" for event in raw.split(b"\n\n")[:-1]]:
            await to.piece(part)
            await asyncio.sleep(0)
        await to.send(b"0\r\n\r\n")

    return answer


def refuses(status: int, message: str = "no", **headers: str) -> Answer:
    """An error in OpenAI's form."""

    async def answer(to: Exchange) -> None:
        body = json.dumps({"error": {"message": message, "type": "x", "code": None}}).encode()
        more = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await to.send(head.encode() + body)

    return answer


def hangs(*chunks: dict[str, Any], headers: bool = True) -> Answer:
    """Sends what it is given and then nothing, for ever; without `headers` not even that."""

    async def answer(to: Exchange) -> None:
        if headers:
            await to.start_events()
            for one in chunks:
                await to.piece(events([one]))
        await asyncio.sleep(3600)

    return answer


def breaks_off(*chunks: dict[str, Any], headers: bool = True) -> Answer:
    """Closes the connection in the middle of the body, or before there is one."""

    async def answer(to: Exchange) -> None:
        if headers:
            await to.start_events()
            for one in chunks:
                await to.piece(events([one]))
            await asyncio.sleep(0.05)
        to.writer.close()

    return answer


def goes_on(text: str, *, pause: float) -> Answer:
    """Says `text` again and again until the caller leaves."""

    async def answer(to: Exchange) -> None:
        await to.start_events()
        while True:
            await to.piece(events([chunk(text)]))
            await asyncio.sleep(pause)

    return answer
