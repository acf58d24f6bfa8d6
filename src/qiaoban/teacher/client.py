"""One request to an OpenAI-compatible endpoint, and what came of it, by what the caller can do about it.

The SDK's own retries are off: the teacher alone decides what is sent again.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

import httpx2
import openai

from qiaoban.errors import EngineError
from qiaoban.teacher.ledger import Usage

_CONNECT = 10.0  # seconds
_POOL = 16  # connections
_MODERATED = re.compile(r"moderat|flagged|content|inspect|safety|policy|违规|敏感|审核", re.IGNORECASE)


class Fault(StrEnum):
    """Why a request has no answer."""

    TOO_MANY = "too_many"  # 429: wait and send again
    BUSY = "server_error"  # 408, 409, 5xx: send again
    UNREACHABLE = "unreachable"  # never got there: send again
    TIMEOUT = "timeout"  # nobody knows: send again with the same key
    BROKEN = "connection_broken"  # nobody knows: send again with the same key
    NOT_CHAT = "not_chat"  # answered, but not as a chat endpoint does
    KEY = "key_refused"
    FORBIDDEN = "forbidden"  # 403: a key without rights, or a card that the provider will not have
    MODEL = "unknown_model"
    QUOTA = "no_money_left"
    REQUEST = "bad_request"  # this request will never be answered

    @property
    def doubtful(self) -> bool:
        """Whether it may have been paid."""
        return self in (Fault.TIMEOUT, Fault.BROKEN)

    @property
    def passing(self) -> bool:
        """Whether the same request may be answered later."""
        return self in (Fault.TOO_MANY, Fault.BUSY, Fault.UNREACHABLE, Fault.TIMEOUT, Fault.BROKEN)


class CallError(EngineError):
    """A request failed. `wait` is the endpoint's Retry-After in seconds, where it gave one; `raw` a body of no use."""

    def __init__(
        self, fault: Fault, message: str, *, hint: str = "", wait: float | None = None, raw: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, retryable=fault.passing)
        self.fault = fault
        self.wait = wait
        self.raw = raw


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a teacher is. `timeout` is for a whole answer, in seconds."""

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    timeout: float = 600.0


@dataclass(frozen=True)
class Reply:
    """The body as it came, and its bill."""

    raw: str
    usage: Usage


class Client:
    """Connections to one endpoint, in pools of a few: what a request costs grows with the connections of its pool."""

    def __init__(self, endpoint: Endpoint, *, connections: int) -> None:
        if not (endpoint.api_key.isascii() and endpoint.api_key.isprintable()):
            raise CallError(Fault.KEY, "the key has characters that cannot be sent", hint="look at OPENAI_API_KEY")
        self.endpoint = endpoint
        trust = httpx2.create_ssl_context()  # 20 ms each
        self._pools = [_sdk(endpoint, trust) for _ in range(0, connections, _POOL)]
        self._busy = [0] * len(self._pools)

    @property
    def sdk(self) -> openai.AsyncOpenAI:
        """The SDK, for files and batches."""
        return self._pools[0]

    async def close(self) -> None:
        """Close the connections."""
        for sdk in self._pools:
            await sdk.close()

    async def ask(self, body: Mapping[str, Any], key: str) -> Reply:
        """Send one chat completion. Raises `CallError`."""
        at = self._busy.index(min(self._busy))
        self._busy[at] += 1
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                response = await self._pools[at].post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    body=dict(body),
                    options={"headers": {"Idempotency-Key": key}},
                )
        except TimeoutError:
            raise self._timeout() from None
        except openai.OpenAIError as error:
            raise self.explain(error) from None
        finally:
            self._busy[at] -= 1
        try:
            return Reply(response.text, bill(response.text))
        except ValueError:
            message = f"{self.endpoint.base_url} answers, but not as a chat endpoint: {response.text[:60]!r}"
            hint = "most base URLs end in /v1"
            raise CallError(Fault.NOT_CHAT, message, hint=hint, raw=response.text) from None

    def explain(self, error: openai.OpenAIError) -> CallError:
        """What an error of the SDK means."""
        where = f"{self.endpoint.base_url} ({self.endpoint.model})"
        if isinstance(error, openai.APITimeoutError):
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                return CallError(Fault.UNREACHABLE, f"{where} cannot be reached", hint="check the URL and the network")
            return self._timeout()
        if isinstance(error, openai.APIConnectionError):
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.UnsupportedProtocol):
                return CallError(Fault.UNREACHABLE, f"{where} cannot be reached", hint="check the URL and the network")
            return CallError(Fault.BROKEN, f"{where} broke off the connection")
        if isinstance(error, openai.APIStatusError):
            return self._explain_status(error, where)
        return CallError(Fault.BUSY, f"{where}: {error}")

    def _timeout(self) -> CallError:
        where = f"{self.endpoint.base_url} ({self.endpoint.model})"
        return CallError(Fault.TIMEOUT, f"{where} gave no answer in {self.endpoint.timeout:g} s")

    def _explain_status(self, error: openai.APIStatusError, where: str) -> CallError:
        status, said = error.status_code, _said(error).replace(self.endpoint.api_key or "\0", "…")
        if status in (401, 403):
            fault = Fault.KEY if status == 401 else Fault.REQUEST if _MODERATED.search(said) else Fault.FORBIDDEN
            return CallError(fault, f"{where} refused the key: {said}", hint="set OPENAI_API_KEY to a key that it accepts")
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            return CallError(Fault.QUOTA, f"{where}: {said}", hint="top up the account and run again: nothing is paid twice")
        if status == 429:
            return CallError(Fault.TOO_MANY, f"{where}: too many requests", wait=_retry_after(error))
        if status in (408, 409) or status >= 500:
            return CallError(Fault.BUSY, f"{where} answered {status}: {said}", wait=_retry_after(error))
        if status != 404:
            return CallError(Fault.REQUEST, f"{where} answered {status}: {said}")
        return CallError(Fault.MODEL, f"{where} does not know this model or path: {said}", hint="most base URLs end in /v1")


def _sdk(endpoint: Endpoint, trust: ssl.SSLContext) -> openai.AsyncOpenAI:
    times = httpx2.Timeout(endpoint.timeout, connect=_CONNECT, pool=None)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=2 * _POOL)
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",
        max_retries=0,
        timeout=times,
        http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=times, verify=trust),
    )


def bill(raw: str) -> Usage:
    """The usage in the body of a chat completion. `ValueError` where it is none."""
    try:
        found = json.loads(raw)
        found["choices"]
        usage = found.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return Usage(
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            int(details.get("cached_tokens") or 0),
        )
    except (AttributeError, LookupError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"no chat completion: {error}") from None


def _said(error: openai.APIStatusError) -> str:
    """The server's own words, short."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return str(said or error.response.text or error.message).strip()[:200]


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds. A date is measured against the server's own `Date`, so that a wrong clock here does no harm."""
    headers = error.response.headers
    given = headers.get("retry-after", "")
    try:
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    except ValueError:
        pass
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(given) - parsedate_to_datetime(headers["date"])).total_seconds())
    except (ValueError, TypeError, KeyError):
        return None
