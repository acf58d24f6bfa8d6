"""Any OpenAI-compatible chat endpoint as an engine: vLLM, SGLang, llama-server, a cloud.

One owner of retries (this file; the SDK's are off): a call is tried again only while nothing of the reply has arrived.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qiaoban.conversation import Turn
from qiaoban.engine.choose import EngineChoice
from qiaoban.engine.protocol import Delta, Engine, EngineInfo, Options, Usage
from qiaoban.errors import EngineError, UsageError
from qiaoban.models.registry import Sampling
from qiaoban.render import EstimatingTokenizer, defuse
from qiaoban.settings import Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionChunk

_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 20.0  # seconds; a child does not wait longer for a busy endpoint


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """Which endpoint. Times are in seconds; `silence` is the longest gap between two pieces of a reply.

    `extra_body` goes into every request: for Qwen3 on vLLM, `{"chat_template_kwargs": {"enable_thinking": False}}`.
    """

    model: str
    base_url: str
    api_key: str = field(default="", repr=False)
    context_tokens: int = 8192
    connect: float = 10.0
    silence: float = 30.0
    retries: int = 2
    sampling: Sampling = field(default_factory=Sampling)
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class OpenAIEngine:
    """See the module. The connection is opened on first use."""

    def __init__(self, config: OpenAIConfig) -> None:
        self._config = config
        self._client: AsyncOpenAI | None = None
        self._tokenizer = EstimatingTokenizer()
        self.info = EngineInfo(
            engine="openai", model=config.model, context_tokens=config.context_tokens, sampling=config.sampling
        )

    def count(self, messages: Sequence[Turn]) -> int:
        """An estimate on the high side; the endpoint's tokenizer is unknown."""
        return sum(len(self._tokenizer.encode(m.content)) + 6 for m in messages) + 6

    async def stream(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        """See `Engine.stream`. `EngineError.retryable` is false for a wrong key, model or request."""
        if options.max_tokens == 0:  # nothing to warm: the endpoint keeps its own cache
            yield Delta("", "length")
            return
        for attempt in range(self._config.retries + 1):
            try:
                async with aclosing(self._once(messages, options)) as deltas:
                    async for delta in deltas:
                        yield delta
                return
            except _UnansweredError as failure:
                if attempt == self._config.retries or not failure.error.retryable:
                    raise failure.error from None
                await asyncio.sleep(min(failure.wait or 0.5 * 2**attempt, _LONGEST_WAIT))

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _once(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        import openai

        started = finished = False
        try:
            stream = await self._connected().chat.completions.create(**self._request(messages, options))
            async with stream:
                whole = _WholeCharacters()
                async for chunk in stream:
                    started = True
                    if (delta := _delta(chunk, whole)) is not None:
                        finished = finished or delta.finish is not None
                        yield delta
        except json.JSONDecodeError:
            raise EngineError(f"{self._config.base_url} sent something that is not a chat stream") from None
        except openai.APIError as error:
            failure = _explain(error, self._config)
            if started:
                raise failure from None
            raise _UnansweredError(failure, _retry_after(error)) from None
        if not started:
            raise EngineError(f"{self._config.base_url} answers, but not as a chat endpoint", hint="most base URLs end in /v1")
        if not finished:
            raise EngineError(f"{self._config.base_url} broke off in mid-reply", retryable=True)

    def _connected(self) -> AsyncOpenAI:
        if self._client is None:
            import httpx2
            from openai import AsyncOpenAI

            limits = httpx2.Timeout(self._config.silence, connect=self._config.connect)
            self._client = AsyncOpenAI(
                base_url=self._config.base_url,
                api_key=self._config.api_key or "none",
                max_retries=0,
                timeout=limits,
            )
        return self._client

    def _request(self, messages: Sequence[Turn], options: Options) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": m.role, "content": defuse(m.content)} for m in messages],
            "max_tokens": options.max_tokens,
            "temperature": options.sampling.temperature,
            "top_p": options.sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.seed is not None:
            request["seed"] = options.seed
        if self._config.extra_body:
            request["extra_body"] = dict(self._config.extra_body)
        return request


class _UnansweredError(Exception):
    """The call failed before a piece of the reply came, so it may be tried again."""

    def __init__(self, error: EngineError, wait: float | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait


class _WholeCharacters:
    """Joins surrogate pairs that an endpoint cut in two between JSON chunks."""

    def __init__(self) -> None:
        self._half = ""

    def __call__(self, text: str) -> str:
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _delta(chunk: ChatCompletionChunk, whole: _WholeCharacters) -> Delta | None:
    usage = None
    if chunk.usage is not None:
        details = chunk.usage.prompt_tokens_details
        usage = Usage(
            prompt_tokens=chunk.usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            completion_tokens=chunk.usage.completion_tokens,
        )
    if not chunk.choices:
        return Delta("", usage=usage) if usage else None
    choice = chunk.choices[0]
    if choice.finish_reason == "content_filter":
        raise EngineError("the endpoint's content filter ended the reply")
    text = whole(choice.delta.content or "")
    if choice.finish_reason is None:
        return Delta(text) if text else None
    return Delta(text, "length" if choice.finish_reason == "length" else "stop", usage)


def _explain(error: Any, config: OpenAIConfig) -> EngineError:
    """What a person can do about an SDK error. The key is never part of the message."""
    import openai

    where = f"{config.base_url} ({config.model})"
    if isinstance(error, openai.APITimeoutError):
        return EngineError(f"{where} was silent for {config.silence:g} s", hint="check its load", retryable=True)
    if isinstance(error, openai.APIConnectionError):
        return EngineError(f"{where} cannot be reached", hint="check the URL and the network", retryable=True)
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return EngineError(f"{where} refused the key", hint="set OPENAI_API_KEY to a key that this endpoint accepts")
    if isinstance(error, openai.NotFoundError):
        return EngineError(f"{where} does not know this model or path", hint="most base URLs end in /v1")
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    return EngineError(f"{where} answered {status or error.message}", retryable=status in _RETRIED)


def _retry_after(error: Any) -> float | None:
    import openai

    if not isinstance(error, openai.APIStatusError):
        return None
    try:
        return float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None


def check_url(base_url: str) -> str:
    """`base_url` if it is an HTTP URL; `UsageError` otherwise."""
    try:
        parts = urlsplit(base_url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        fine = False
    if not fine:
        raise UsageError(f"{base_url!r} is not a URL", hint="give one such as http://localhost:8000/v1")
    return base_url.rstrip("/")


async def open_engine(choice: EngineChoice, settings: Settings) -> Engine:
    """The entry point `engine.openai`. The URL comes from the call, else from `OPENAI_BASE_URL`."""
    choice.refuse(adapter=choice.adapter, threads=choice.threads)
    url = choice.base_url or settings.openai_base_url
    if not url:
        raise UsageError("the openai engine needs a URL", hint="give --base-url, or set OPENAI_BASE_URL")
    if not choice.model:
        raise UsageError("the openai engine needs the endpoint's name for its model", hint="give --model")
    return OpenAIEngine(
        OpenAIConfig(
            model=choice.model,
            base_url=check_url(url),
            api_key=settings.openai_api_key or "",
            context_tokens=choice.context_tokens or OpenAIConfig.context_tokens,
            sampling=choice.sampling,
            extra_body=choice.extra_body,
        )
    )
