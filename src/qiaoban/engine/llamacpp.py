"""The embedded engine: a GGUF model (and optionally a GGUF LoRA) run in this process by llama.cpp, through xllamacpp.

What it takes care of, because llama.cpp alone does not: prompts go in as token ids from our own renderer, every talk keeps to
one slot so that its history is never read twice, a caller who leaves stops the work within a token (within one small batch
while the prompt is still being read), and the HTTP port that the server opens on loopback answers nobody.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qiaoban.conversation import Turn
from qiaoban.engine.choose import EngineChoice
from qiaoban.engine.protocol import Delta, Engine, EngineInfo, Options, Usage
from qiaoban.errors import EngineError, UsageError
from qiaoban.models.registry import Sampling
from qiaoban.render import Renderer, load_gguf_renderer
from qiaoban.settings import Settings

# How long an OpenMP thread spins before it sleeps. Unset, it spins for ever, and two busy neighbours take decoding from 46 to
# 3 tokens/s; at 0 an idle machine loses a third. See docs/decisions/0005-threads.md.
SPIN_COUNT = "3000"


@dataclass(frozen=True, kw_only=True)
class LlamaCppConfig:
    """What to load. `context_tokens` is per talk; `slots` talks keep their history in memory at once."""

    path: Path
    model: str = ""
    adapter: Path | None = None
    adapter_scale: float = 1.0
    context_tokens: int = 4096
    slots: int = 2
    threads: int | None = None
    prefill_batch: int = 64
    sampling: Sampling = field(default_factory=Sampling)


class LlamaCppEngine:
    """See the module. Make one with `await LlamaCppEngine.load(config)`; loading takes seconds and happens in a thread."""

    def __init__(self, server: Any, renderer: Renderer, config: LlamaCppConfig, version: str) -> None:
        self._server = server
        self._renderer = renderer
        self._slots = _SlotTable(config.slots)
        self.info = EngineInfo(
            engine="llamacpp",
            model=config.model or config.path.stem,
            context_tokens=config.context_tokens,
            sampling=config.sampling,
            prefix_slots=config.slots,
            versions={"xllamacpp": version} | ({"adapter": config.adapter.name} if config.adapter else {}),
        )

    @classmethod
    async def load(cls, config: LlamaCppConfig) -> LlamaCppEngine:
        """Open the model. Raises `UsageError` for a missing file and `EngineError` when llama.cpp refuses it."""
        for path in (config.path, config.adapter):
            if path is not None and not path.is_file():
                raise UsageError(f"no model file at {path}", hint="run `qiaoban models list` to see what is installed")
        renderer = await asyncio.to_thread(load_gguf_renderer, config.path)
        server, version = await asyncio.to_thread(_open_server, config)
        return cls(server, renderer, config, version)

    @property
    def listening_address(self) -> str:
        """The loopback URL that llama.cpp opens by itself; every route that answers wants a key nobody has."""
        return str(self._opened().listening_address)

    def count(self, messages: Sequence[Turn]) -> int:
        """Tokens of the prompt, exact where the vocabulary could be read."""
        return self._renderer.count(messages)

    async def stream(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        """See `Engine.stream`. Raises `EngineError` when the prompt does not fit the context."""
        request = _request(self._prompt(messages, options), self._slots.of(options.talk), options)
        call = _Call(self._opened(), request)
        try:
            async for chunk in call.chunks():
                if delta := _delta(chunk, silent=options.max_tokens == 0):
                    yield delta
        finally:
            await call.stop()

    async def close(self) -> None:
        """Free the model. Replies still being decoded end first."""
        await asyncio.sleep(0)  # a load that has just ended still holds the server in its future
        self._server = None  # its destructor ends the threads

    def _opened(self) -> Any:
        if self._server is None:
            raise EngineError("the engine is closed")
        return self._server

    def _prompt(self, messages: Sequence[Turn], options: Options) -> list[int] | str:
        prompt: list[int] | str = self._renderer.ids(messages)
        needed, room = len(prompt) + options.max_tokens, self.info.context_tokens
        if needed > room:
            raise EngineError(
                f"the talk needs {needed} tokens and the context holds {room}",
                hint="trim the history by whole turns, or load the model with a larger context",
            )
        return prompt if self._renderer.tokenizer.exact else self._renderer.text(messages)


class _SlotTable:
    """Which slot each talk has: a talk keeps its slot; a new one takes the slot that was silent longest."""

    def __init__(self, slots: int) -> None:
        self._by_talk: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(slots))

    def of(self, talk: str) -> int:
        slot = self._by_talk.pop(talk, None)
        if slot is None:
            slot = self._free.pop(0) if self._free else self._by_talk.popitem(last=False)[1]
        self._by_talk[talk] = slot
        return slot


class _Call:
    """One request: llama.cpp works in a thread and hands chunks to the event loop."""

    def __init__(self, server: Any, request: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._left = threading.Event()
        self._work = asyncio.ensure_future(asyncio.to_thread(self._run, server, request))

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        while (chunk := await self._queue.get()) is not None:
            if "error" in chunk:
                raise EngineError(f"llama.cpp refused the prompt: {chunk['error'].get('message', chunk['error'])}")
            yield chunk
        await self._work

    async def stop(self) -> None:
        """Tell llama.cpp that nobody listens, and wait until it has let go of the slot."""
        self._left.set()
        await asyncio.shield(asyncio.wait([self._work]))

    def _run(self, server: Any, request: dict[str, Any]) -> None:
        try:
            server.handle_completions(request, self._receive)
        except RuntimeError as error:
            self._put({"error": {"message": str(error)}})
        finally:
            self._put(None)

    def _receive(self, chunk: dict[str, Any]) -> bool:
        """Called by llama.cpp for each batch of the prompt and each token; true stops it."""
        self._put(chunk)
        return self._left.is_set()

    def _put(self, chunk: dict[str, Any] | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, chunk)
        except RuntimeError:  # the loop was closed while a reply was being decoded: stop it
            self._left.set()


def _request(prompt: list[int] | str, slot: int, options: Options) -> dict[str, Any]:
    taste = options.sampling
    request: dict[str, Any] = {
        "prompt": prompt,
        "n_predict": options.max_tokens,
        "stream": True,
        "return_progress": True,
        "cache_prompt": True,
        "id_slot": slot,
        "temperature": taste.temperature,
        "top_p": taste.top_p,
        "top_k": taste.top_k,
        "min_p": taste.min_p,
        "repeat_penalty": taste.repeat_penalty,
    }
    if options.seed is not None:
        request["seed"] = options.seed
    return request


def _delta(chunk: dict[str, Any], *, silent: bool) -> Delta | None:
    """The chunk as a delta: one when the prompt has been read, then text, then the end.

    `silent`: llama.cpp decodes one token even where none is asked for; it is left out.
    """
    choice = chunk["choices"][0]
    finish = choice.get("finish_reason")
    if progress := chunk.get("prompt_progress"):
        if progress["processed"] < progress["total"]:
            return None
        usage = Usage(prompt_tokens=progress["total"], cached_tokens=progress["cache"], completion_tokens=0)
        return Delta("", usage=usage)
    if finish is None:
        return None if silent else Delta(choice["text"])
    timings = chunk.get("timings", {})
    cached, read = int(timings.get("cache_n", 0)), int(timings.get("prompt_n", 0))
    said = 0 if silent else int(timings.get("predicted_n", 0))
    usage = Usage(prompt_tokens=cached + read, cached_tokens=cached, completion_tokens=said)
    return Delta("" if silent else choice["text"], "length" if finish == "length" else "stop", usage)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _open_server(config: LlamaCppConfig) -> tuple[Any, str]:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read once, when the library is loaded
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineError(
            f"the embedded engine cannot be loaded: {error}",
            hint="reinstall with `pip install --force-reinstall xllamacpp`, or point --engine at an OpenAI-compatible URL",
        ) from None
    try:
        return xllamacpp.Server(_params(xllamacpp, config)), xllamacpp.__version__
    except RuntimeError as error:
        raise EngineError(
            f"llama.cpp cannot open {config.path}: {error}",
            hint="check the file with `qiaoban models verify`, and that enough memory is free",
        ) from None


def _params(xllamacpp: Any, config: LlamaCppConfig) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(config.path)
    params.n_parallel = config.slots
    params.n_ctx = config.context_tokens * config.slots
    params.n_batch = params.n_ubatch = config.prefill_batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads or min(available_cores(), 8)
    params.cache_ram_mib = 0  # a second cache of whole prompts, up to 8 GiB by default
    params.api_keys = [secrets.token_urlsafe(32)]  # calls from inside need no key; everyone else gets 401
    params.ui = params.endpoint_props = params.endpoint_slots = params.endpoint_metrics = False
    params.verbosity = -1
    if config.adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(config.adapter), config.adapter_scale)]
    return params


async def open_engine(choice: EngineChoice, settings: Settings) -> Engine:
    """The entry point `engine.llamacpp`."""
    choice.refuse(extra_body=choice.extra_body)
    return await LlamaCppEngine.load(
        LlamaCppConfig(
            path=choice.local_path(settings),
            model=choice.spec.id if choice.spec else "",
            adapter=choice.adapter,
            threads=choice.threads or settings.threads,
            context_tokens=choice.context_tokens or LlamaCppConfig.context_tokens,
            slots=choice.slots,
            sampling=choice.sampling,
        )
    )
