"""The batch API that OpenAI and others offer: hand in a file of requests, wait for hours, fetch a file of answers, pay half.

A job is remembered in the ledger from the moment it exists, so a run that is stopped while it waits picks it up again; a job
that was made just before a crash is found again by its `metadata`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import openai
from openai.types import Batch

from qiaoban.errors import EngineError
from qiaoban.teacher.budget import Budget
from qiaoban.teacher.client import Client, bill
from qiaoban.teacher.ledger import Call, Ledger, Usage

_LARGEST_FILE = 90_000_000  # bytes; OpenAI takes 200 MB, others 100
_MOST_REQUESTS = 50_000
_MARK = "qiaoban"
_WAITS = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


@dataclass(kw_only=True)
class BatchPost:
    """A `Post` that answers calls through the provider's batch API. `poll` is in seconds; `say` is told what goes on."""

    ledger: Ledger
    client: Client
    budget: Budget = field(default_factory=Budget)
    poll: float = 30.0
    say: Callable[[str], None] = lambda _: None

    async def __call__(self, calls: Mapping[str, Call]) -> None:
        """Fetch what is still out, and hand in the rest."""
        if jobs := self.ledger.open_batches():
            for job in jobs:
                await self._fetch(await self._wait(job), calls)
            return
        calls = self._affordable(calls)
        async with self.budget.reserved(sum(call.tokens for call in calls.values())):
            jobs = [await self._hand_in(part) for part in _parts(calls)]
            for job in jobs:
                await self._fetch(await self._wait(job), calls)

    def _affordable(self, calls: Mapping[str, Call]) -> Mapping[str, Call]:
        """As many calls as the budget has room for, at least one."""
        chosen: dict[str, Call] = {}
        total = 0
        for key, call in calls.items():
            total += call.tokens
            if chosen and not self.budget.fits(total):
                break
            chosen[key] = call
        return chosen

    async def _hand_in(self, calls: Mapping[str, Call]) -> str:
        mark = hashlib.sha256("".join(calls).encode()).hexdigest()[:32]
        async with self._explained():
            async for job in self.client.sdk.batches.list(limit=100):
                mine = (job.metadata or {}).get(_MARK) == mark and job.status in _WAITS | {"completed"}
                if mine and not self.ledger.knows_batch(job.id):
                    self.ledger.batch(job.id, "submitted", len(calls))
                    return job.id
            upload = await self.client.sdk.files.create(file=("calls.jsonl", _file(calls)), purpose="batch")
            job = await self.client.sdk.batches.create(
                input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={_MARK: mark}
            )
        self.ledger.batch(job.id, "submitted", len(calls))
        self.say(f"batch {job.id}: {len(calls)} requests handed in")
        return job.id

    async def _wait(self, identifier: str) -> Batch:
        said = ""
        while True:
            async with self._explained():
                job = await self.client.sdk.batches.retrieve(identifier)
            if job.status not in _WAITS:
                return job
            counts = job.request_counts
            now = f"batch {identifier}: {job.status}" + (f", {counts.completed} of {counts.total}" if counts else "")
            if now != said:
                self.say(said := now)
            await asyncio.sleep(self.poll)

    async def _fetch(self, job: Batch, calls: Mapping[str, Call]) -> None:
        """Store every answer of a job, whatever else became of it: an expired job bills what it finished."""
        for identifier in filter(None, (job.output_file_id, job.error_file_id)):
            async with self._explained():
                content = await self.client.sdk.files.content(identifier)
            for line in filter(str.strip, content.text.split("\n")):  # other line breaks may stand inside a string
                self._store(line, calls)
        self.ledger.batch(job.id, job.status, job.request_counts.total if job.request_counts else 0)
        if job.status == "failed":
            errors = job.errors.data if job.errors and job.errors.data else []
            said = "; ".join(str(error.message) for error in errors[:3]) or "no reason given"
            raise EngineError(f"the provider refused batch {job.id}: {said}")

    def _store(self, line: str, calls: Mapping[str, Call]) -> None:
        """Store a row. One that makes no sense is told of and passed over: those after it were paid for as well."""
        try:
            row = json.loads(line)
            key, response = str(row["custom_id"]), row.get("response")
        except (ValueError, LookupError, TypeError, AttributeError):
            self.say(f"a row of the provider's file cannot be read: {line[:80]!r}")
            return
        call = calls.get(key) or Call(card="", slot="", body={}, tokens=0)
        if self.ledger.answer(key) is not None:
            return
        self.ledger.sent(call, key)
        if isinstance(response, dict) and response.get("status_code") == 200:
            raw = json.dumps(response.get("body"), ensure_ascii=False)
            try:
                usage = bill(raw)
            except ValueError:
                self.ledger.unanswered(key, "not_chat", doubtful=True, raw=raw)
                self.budget.doubt(call.tokens)
                return
            usage = usage if usage.total else Usage(call.tokens)
            self.ledger.answered(key, raw, usage)
            self.budget.spend(usage)
            return
        error = row.get("error")
        said = error.get("code") if isinstance(error, dict) else None
        status = response.get("status_code") if isinstance(response, dict) else None
        self.ledger.unanswered(key, str(said or status or "no answer"), doubtful=False, raw=json.dumps(row, ensure_ascii=False))

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            yield
        except openai.OpenAIError as error:
            failure = self.client.explain(error)
            hint = failure.hint or "the jobs are remembered: run again to go on waiting for them"
            raise EngineError(failure.message, hint=hint, retryable=failure.retryable) from None


def _parts(calls: Mapping[str, Call]) -> Iterator[dict[str, Call]]:
    """Calls in parts that one job takes."""
    part: dict[str, Call] = {}
    size = 0
    for key, call in calls.items():
        length = len(_line(key, call))
        if part and (size + length > _LARGEST_FILE or len(part) >= _MOST_REQUESTS):
            yield part
            part, size = {}, 0
        part[key] = call
        size += length
    if part:
        yield part


def _file(calls: Mapping[str, Call]) -> bytes:
    return b"".join(_line(key, call) for key, call in calls.items())


def _line(key: str, call: Call) -> bytes:
    request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": call.body}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"
