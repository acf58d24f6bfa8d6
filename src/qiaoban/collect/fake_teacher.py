"""The fake teacher itself: what may go wrong, what does for a request, and the log of it. Knows nothing of HTTP.

It never asks a model: `fake_words` makes up the lines. Which request goes wrong is decided by a hash of the seed, the request's
body and how often that body was seen, so a run can be repeated whatever the order in which its requests arrive.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import IO, Any

from qiaoban.collect.fake_words import prompt_tokens, say, tokens
from qiaoban.errors import UsageError

_SHARES = ("hang", "too_many", "server_error", "html", "cut", "empty", "filtered", "bad_json", "fenced", "leak")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How the teacher misbehaves. A share is of requests, from 0 to 1, and all shares sum to 1 at most.

    `bad_json` and `fenced` touch only answers in JSON, `leak` only single turns; the others touch any. `rpm` allows
    rpm·window/60 requests in any `window` seconds, and a refused request counts as well. `UsageError` for numbers that
    make no sense.
    """

    seed: int = 0
    latency: float = 0.0  # seconds
    jitter: float = 0.0  # up to so many seconds more
    too_many: float = 0.0  # share answered 429
    retry_after: float = 1.0  # seconds that such an answer asks for
    rpm: float | None = None
    window: float = 60.0
    server_error: float = 0.0  # share answered 500, 502 or 503
    hang: float = 0.0  # share never answered
    cut: float = 0.0  # share that ends too soon, finish_reason length
    bad_json: float = 0.0
    fenced: float = 0.0  # share of JSON in a Markdown fence
    empty: float = 0.0
    filtered: float = 0.0  # share with finish_reason content_filter
    leak: float = 0.0  # share that goes on in the other's role
    html: float = 0.0  # share answered 200 with a page of HTML
    api_key: str | None = None  # any other key is refused
    model: str | None = None  # any other model is unknown
    quota_after: int | None = None  # requests until the account is empty
    idempotent: bool = True  # an Idempotency-Key that was answered is answered the same
    batch_delay: float = 1.0  # seconds that a batch takes
    batch_expires: float = 0.0  # share of a batch's rows that expire

    def __post_init__(self) -> None:
        told = vars(self)
        for name in (*_SHARES, "batch_expires"):
            if not 0 <= told[name] <= 1:
                raise UsageError(f"{name} is {told[name]}, and a share lies between 0 and 1")
        if sum(self.shares.values()) > 1 + 1e-9:
            raise UsageError("the shares of the fake teacher's faults sum to more than 1")
        for name in ("latency", "jitter", "retry_after", "batch_delay"):
            if not 0 <= told[name] < math.inf:
                raise UsageError(f"{name} is {told[name]}, and seconds are a number from 0 on")
        if not self.window > 0 or (self.rpm is not None and not self.rpm * self.window >= 60):
            raise UsageError(f"rpm {self.rpm} in a window of {self.window} s allows no request at all")

    @property
    def shares(self) -> dict[str, float]:
        """The shares by name, in the order in which a drawn number is held against them."""
        return {name: vars(self)[name] for name in _SHARES}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer that is ready, and what the log says of it. `status` 0 means that none will be given."""

    status: int
    body: bytes = b""
    fault: str | None = None
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    wait: float = 0.0  # seconds before it is sent
    prompt_tokens: int = 0
    completion_tokens: int = 0
    replayed: bool = False


def refuse(status: int, message: str, *, kind: str = "invalid_request_error", code: str | None, **more: Any) -> Reply:
    """An error in OpenAI's form; `more` goes to `Reply`."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Reply(status=status, body=json.dumps({"error": error}).encode(), **more)


def _too_many(fault: str, seconds: float) -> Reply:
    shown = math.ceil(seconds * 1000) / 1000
    again = (("content-type", "application/json"), ("retry-after", f"{shown:g}"), ("retry-after-ms", f"{shown * 1000:g}"))
    message = f"Rate limit reached. Please try again in {shown:g}s."
    return refuse(429, message, kind="requests", code="rate_limit_exceeded", fault=fault, headers=again)


class _Window:
    """A sliding window: no stretch of `seconds` sees more than `allowed` requests that pass."""

    def __init__(self, allowed: int, seconds: float) -> None:
        self._allowed, self._seconds = allowed, seconds
        self._seen: deque[float] = deque()

    def enter(self, now: float) -> float:
        """Count a request. 0 where it passes, else the seconds until one would."""
        while self._seen and self._seen[0] <= now - self._seconds:
            self._seen.popleft()
        self._seen.append(now)
        return 0.0 if len(self._seen) <= self._allowed else self._seen[-self._allowed] + self._seconds - now


class Teacher:
    """The one who answers: decides faults, remembers keys, counts and logs. Makes replies and knows nothing of HTTP."""

    def __init__(self, faults: Faults, log: IO[bytes] | None = None) -> None:
        self.faults = faults
        self.by_status: Counter[str] = Counter()
        self.by_fault: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self._log = log
        self._start = time.monotonic()
        self._window = None if faults.rpm is None else _Window(int(faults.rpm * faults.window / 60), faults.window)
        self._shares = [(name, share) for name, share in faults.shares.items() if share]
        self._seen: Counter[bytes] = Counter()
        self._answered: dict[str, Reply] = {}
        self._admitted = 0

    def answer(self, raw: bytes, *, key: str | None, credential: str | None) -> Reply:
        """What a chat request gets. `raw` is its body, `key` its Idempotency-Key, `credential` its Authorization header."""
        refusal = self.refuse_key(credential)
        if refusal:
            return refusal
        if self._window and (seconds := self._window.enter(time.monotonic())):
            return _too_many("rpm", seconds)
        if self.faults.idempotent and key is not None and key in self._answered:
            return self._answered[key]
        try:
            ask = json.loads(raw)
        except ValueError:
            return refuse(400, "The body is not JSON.", code=None, fault="bad_request")
        self._admitted += 1
        if self.faults.quota_after is not None and self._admitted > self.faults.quota_after:
            message = "You exceeded your current quota, please check your plan and billing details."
            return refuse(429, message, kind="insufficient_quota", code="insufficient_quota", fault="quota")
        return self.attempt(ask, raw)

    def refuse_key(self, credential: str | None) -> Reply | None:
        """401 for a key other than the one that is asked for."""
        if self.faults.api_key is None or credential == f"Bearer {self.faults.api_key}":
            return None
        return refuse(401, "Incorrect API key provided.", code="invalid_api_key", fault="api_key")

    def attempt(self, ask: Any, raw: bytes) -> Reply:
        """Answer a request that was let in: what is wrong with it, else the fault that it draws, else the words."""
        wrong = self._wrong(ask)
        if wrong:
            return wrong
        fault, second = self._draw(raw)
        wait = self.faults.latency + self.faults.jitter * second
        match fault:
            case "hang":
                return Reply(status=0, fault=fault)
            case "too_many":
                return _too_many(fault, self.faults.retry_after)
            case "server_error":
                status = (500, 502, 503)[int(second * 3)]
                return refuse(status, "The server had an error.", kind="server_error", code=None, fault=fault, wait=wait)
            case "html":
                page = b"<!doctype html><title>Welcome</title><p>Please sign in to the network.</p>"
                return Reply(status=200, body=page, fault=fault, wait=wait, headers=(("content-type", "text/html"),))
        return _completion(ask, fault, wait)

    def draw(self, what: bytes) -> tuple[float, float]:
        """Two numbers from 0 to 1 that depend on the seed and on `what` alone."""
        digest = blake2b(what + b"%d" % self.faults.seed, digest_size=16).digest()
        return int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:]) / 2**64

    def sent(self, reply: Reply, *, key: str | None, batch: str | None = None) -> None:
        """Log a reply that is about to be sent, and remember it by its key."""
        if self.faults.idempotent and key is not None and batch is None and reply.status == 200 and reply.fault != "html":
            again = (*reply.headers, ("idempotent-replayed", "true"))
            self._answered.setdefault(key, replace(reply, headers=again, wait=0.0, replayed=True))
        self.by_status[str(reply.status or "none")] += 1
        if reply.fault:
            self.by_fault[reply.fault] += 1
        paid = 0 if reply.replayed else 1
        self.totals.update(
            requests=1,
            replayed=1 - paid,
            prompt_tokens=paid * reply.prompt_tokens,
            completion_tokens=paid * reply.completion_tokens,
        )
        self._write(reply, key, {} if batch is None else {"batch": batch})

    def left(self, reply: Reply, *, key: str | None) -> None:
        """Log a client that went before `reply` was due; a hang was logged when it began."""
        self.totals["left"] += 1
        if reply.status:
            self.totals["requests"] += 1
            self._write(Reply(status=0, fault=reply.fault), key, {"left": True})

    def stats(self) -> dict[str, Any]:
        """Counts so far, by status and by fault."""
        sums = {name: self.totals[name] for name in ("requests", "replayed", "left", "prompt_tokens", "completion_tokens")}
        flight = {"in_flight": self.in_flight, "highest_in_flight": self.most_in_flight}
        return {**sums, **flight, "by_status": dict(self.by_status), "by_fault": dict(self.by_fault)}

    def close(self) -> None:
        """Close the log."""
        if self._log:
            self._log.close()

    def _wrong(self, ask: Any) -> Reply | None:
        if not isinstance(ask, dict):
            return refuse(400, "The body is not a JSON object.", code=None, fault="bad_request")
        messages = ask.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            return refuse(400, "messages must be a list of objects that is not empty.", code=None, fault="bad_request")
        if ask.get("stream") or ask.get("n") not in (None, 1):
            return refuse(400, "This teacher gives one answer, not streamed.", code="unsupported_value", fault="bad_request")
        if not isinstance(ask.get("model"), str) or not ask["model"]:
            return refuse(400, "You must provide a model parameter.", code=None, fault="bad_request")
        if self.faults.model not in {None, ask["model"]}:
            message = f"The model `{ask['model']}` does not exist or you do not have access to it."
            return refuse(404, message, code="model_not_found", fault="model")
        return None

    def _draw(self, raw: bytes) -> tuple[str | None, float]:
        """The fault that this body draws this time, and a second number for whatever the fault has to choose."""
        digest = blake2b(raw, digest_size=16).digest()
        first, second = self.draw(digest + b"%d:" % self._seen[digest])
        self._seen[digest] += 1
        for name, share in self._shares:
            if first < share:
                return name, second
            first -= share
        return None, second

    def _write(self, reply: Reply, key: str | None, more: dict[str, Any]) -> None:
        if self._log is None:
            return
        row = {
            "t": round(time.monotonic() - self._start, 6),
            "key": key,
            "status": reply.status or None,
            "fault": reply.fault,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "replayed": reply.replayed,
            **more,
        }
        self._log.write(json.dumps(row).encode() + b"\n")  # the file has no buffer


def _completion(ask: dict[str, Any], fault: str | None, wait: float) -> Reply:
    said = say(ask["messages"], ask.get("response_format"))
    spoilt = said.misspoken(fault) if fault else None
    text = said.text if spoilt is None else spoilt
    read, written = prompt_tokens(ask["messages"]), tokens(text)
    body = {
        "id": f"chatcmpl-{said.digest}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ask["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": {"cut": "length", "filtered": "content_filter"}.get(fault or "", "stop"),
            }
        ],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }
    return Reply(
        status=200,
        body=json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),
        fault=None if spoilt is None else fault,
        wait=wait,
        prompt_tokens=read,
        completion_tokens=written,
    )
