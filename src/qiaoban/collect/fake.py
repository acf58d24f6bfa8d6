"""A local teacher over the OpenAI protocol that says harmless things and misbehaves as told, for testing collectors.

`build_app` gives the ASGI app, `serve` runs it until it is cancelled or the process is told to stop. It speaks
`/v1/chat/completions`, `/v1/models`, the batch API (`/v1/files`, `/v1/batches`), `/health` and `/fake/stats`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qiaoban.collect.fake_batches import Batches, guarded
from qiaoban.collect.fake_teacher import Faults, Reply, Teacher
from qiaoban.errors import UsageError

__all__ = ["Faults", "build_app", "serve"]


def build_app(faults: Faults | None = None, log: Path | None = None) -> ASGIApp:
    """The teacher as an ASGI app. `log` is a JSONL file to which a line is added for every request.

    A line is written before its answer is sent: `t` (seconds since the start), `key` (the Idempotency-Key), `status` (null
    where no answer was given), `fault`, `prompt_tokens`, `completion_tokens`, `replayed`; `left` where the client did not
    wait, and `batch` for a row of a batch, whose `key` is its custom_id. `UsageError` if the log cannot be opened.
    """
    faults = faults or Faults()
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        file = None if log is None else log.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"the log {log} cannot be opened: {error.strerror}") from None
    teacher = Teacher(faults, file)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            teacher.close()

    async def models(_: Request) -> Response:
        model = {"id": faults.model or "fake-teacher", "object": "model", "created": 0, "owned_by": "qiaoban"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def stats(_: Request) -> Response:
        return JSONResponse(teacher.stats())

    routes = [
        Route("/v1/chat/completions", _Chat(teacher), methods=["POST"]),
        Route("/v1/models", guarded(teacher, models)),
        *Batches(teacher).routes(),
        Route("/health", health),
        Route("/fake/stats", stats),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def serve(app: ASGIApp, host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Serve until cancelled, SIGINT or SIGTERM; requests that hang then are dropped after a second.

    Port 0 takes a free one. `ready` is called once with the base URL, which ends in /v1. `UsageError` if the address is taken.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than clients keep a connection, so that none is closed in their face
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, lambda: ready(_base_url(host, listener)))
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.should_exit = True
        await running
        raise
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Tells when it listens, and ends in peace at a signal where uvicorn would raise the signal once more."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.should_exit = True


class _Chat:
    """The chat route as a bare ASGI app: a benchmark's client shares the machine, so a request costs little here."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        teacher = self._teacher
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        key = headers.get(b"idempotency-key")
        teacher.in_flight += 1
        teacher.most_in_flight = max(teacher.most_in_flight, teacher.in_flight)
        try:
            raw = await _body(receive)
            if raw is None:
                return
            reply = teacher.answer(raw, key=key, credential=headers.get(b"authorization"))
            if not reply.status:
                teacher.sent(reply, key=key)
            if await _client_leaves(receive, reply):
                teacher.left(reply, key=key)
                return
            teacher.sent(reply, key=key)
        finally:
            teacher.in_flight -= 1
        await _send(reply, send)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client went while it sent it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _client_leaves(receive: Receive, reply: Reply) -> bool:
    """Wait until the reply is due, or without end for one that never is; whether the client went meanwhile."""
    if reply.status and not reply.wait:
        return False
    try:
        async with asyncio.timeout(reply.wait if reply.status else None):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _send(reply: Reply, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in reply.headers]
    headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. The protocol is named, since asyncio sends without delay only where it reads TCP there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        hint = "choose another port, or 0 for a free one"
        raise UsageError(f"cannot listen on {host}:{port}: {error}", hint=hint) from None
    return listener


def _base_url(host: str, listener: socket.socket) -> str:
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{listener.getsockname()[1]}/v1"
