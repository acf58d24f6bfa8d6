"""A Hugging Face folder, or a GGUF file loaded for training, as an engine (extra `[train]`).

Slower than the embedded engine on a CPU; it exists to talk to a model as it comes out of training, and to use a GPU without
a server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qiaoban.conversation import Turn
from qiaoban.engine.choose import EngineChoice
from qiaoban.engine.protocol import Delta, Engine, EngineInfo, Finish, Options, Usage
from qiaoban.errors import EngineError, UsageError
from qiaoban.models.registry import Sampling
from qiaoban.render import CHATML, ChatTemplate, Renderer
from qiaoban.settings import Settings


@dataclass(frozen=True, kw_only=True)
class TransformersConfig:
    """What to load. `device` and `dtype` as in transformers; "auto" takes a GPU where there is one."""

    path: Path
    device: str = "auto"
    dtype: str = "auto"
    context_tokens: int = 4096
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class _HubTokenizer:
    """A transformers tokenizer behind our protocol."""

    inner: Any
    control: tuple[str, ...]
    exact: bool = True

    def encode(self, text: str) -> list[int]:
        return list(self.inner(text, add_special_tokens=False)["input_ids"])


class TransformersEngine:
    """See the module. Make one with `await TransformersEngine.load(config)`."""

    def __init__(self, model: Any, tokenizer: Any, config: TransformersConfig) -> None:
        import transformers

        control = tuple(str(token) for token in tokenizer.all_special_tokens)
        template = ChatTemplate(
            source=tokenizer.chat_template or CHATML,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
        )
        self._model: Any | None = model
        self._tokenizer = tokenizer
        self._renderer = Renderer(template, _HubTokenizer(tokenizer, control))
        self._busy = asyncio.Lock()
        self.info = EngineInfo(
            engine="transformers",
            model=config.path.name,
            context_tokens=config.context_tokens,
            sampling=config.sampling,
            versions={"transformers": transformers.__version__},
        )

    @classmethod
    async def load(cls, config: TransformersConfig) -> TransformersEngine:
        """Open a folder or a `.gguf` file. `UsageError` when the extra or the file is missing."""
        if not config.path.exists():
            raise UsageError(f"no model at {config.path}")
        model, tokenizer = await asyncio.to_thread(_load, config)
        return cls(model, tokenizer, config)

    def count(self, messages: Sequence[Turn]) -> int:
        """Exact tokens of the prompt."""
        return self._renderer.count(messages)

    async def stream(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        """See `Engine.stream`. One reply at a time: others wait for their turn."""
        if self._model is None:
            raise EngineError("the engine is closed")
        if options.max_tokens == 0:
            yield Delta("", "length")
            return
        prompt = self._renderer.ids(messages)
        if len(prompt) + options.max_tokens > self.info.context_tokens:
            raise EngineError(f"the talk does not fit {self.info.context_tokens} tokens", hint="trim the history")
        async with self._busy:
            left = threading.Event()
            streamer = _streamer(self._tokenizer)
            work = asyncio.ensure_future(asyncio.to_thread(_generate, self._model, streamer, prompt, options, left))
            try:
                async for text in _text(streamer):
                    if text:
                        yield Delta(text)
                count, finish = await work
                usage = Usage(prompt_tokens=len(prompt), cached_tokens=0, completion_tokens=count)
                yield Delta("", finish, usage)
            finally:
                left.set()
                await asyncio.shield(asyncio.wait([work]))

    async def close(self) -> None:
        """Drop the model."""
        self._model = None


def _load(config: TransformersConfig) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise UsageError(
            f"the transformers engine needs a package that is missing: {error.name}",
            hint="pip install 'qiaoban[train]'",
        ) from None
    folder, extra, loaded = config.path, {}, {}
    if config.path.suffix == ".gguf":
        folder = config.path.parent
        extra = {"gguf_file": config.path.name}
        loaded = {"quantization_config": GgufConfig(dequantize=True)}  # without it nothing can be trained or saved
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **extra)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=config.dtype, **extra, **loaded)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"transformers cannot open {config.path}: {error}") from None
    return model.to(_device(config.device)).eval(), tokenizer


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _streamer(tokenizer: Any) -> Any:
    from transformers import AsyncTextIteratorStreamer

    return AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


async def _text(streamer: Any) -> AsyncGenerator[str]:
    async for piece in streamer:
        if isinstance(piece, _Failure):
            raise EngineError(f"generation failed: {piece}")
        yield piece


class _Failure(str):
    """What went wrong, on its way through the streamer."""


def _generate(model: Any, streamer: Any, prompt: list[int], options: Options, left: threading.Event) -> tuple[int, Finish]:
    """Run in a thread: generate until the end, the limit, or until nobody listens. Returns tokens and why it ended."""
    import torch
    from transformers import StoppingCriteriaList

    taste = options.sampling
    if options.seed is not None:
        torch.manual_seed(options.seed)
    chance = {"temperature": taste.temperature, "top_p": taste.top_p, "top_k": taste.top_k or None}
    ids = torch.tensor([prompt], device=model.device)
    try:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=options.max_tokens,
                repetition_penalty=taste.repeat_penalty,
                do_sample=taste.temperature > 0,
                **(chance if taste.temperature > 0 else {}),
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([lambda *_: torch.tensor([left.is_set()], device=model.device)]),
            )
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        streamer.on_finalized_text(_Failure(str(error)), stream_end=True)
        return 0, "stop"
    count = out.shape[1] - len(prompt)
    return count, "length" if count >= options.max_tokens else "stop"


async def open_engine(choice: EngineChoice, settings: Settings) -> Engine:
    """The entry point `engine.transformers`."""
    choice.refuse(adapter=choice.adapter, threads=choice.threads, extra_body=choice.extra_body)
    return await TransformersEngine.load(
        TransformersConfig(
            path=choice.local_path(settings),
            context_tokens=choice.context_tokens or TransformersConfig.context_tokens,
            sampling=choice.sampling,
        )
    )
