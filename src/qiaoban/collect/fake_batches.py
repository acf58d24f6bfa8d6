"""The fake teacher's batch API: files, and batches that run for a while and fail in part, in the shapes of OpenAI's."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qiaoban.collect.fake_teacher import Reply, Teacher, refuse

Endpoint = Callable[[Request], Awaitable[Response]]
_ENDPOINT = "/v1/chat/completions"
_WENT_WRONG = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "The batch was cancelled before this request was executed.",
    "request_timeout": "The call to the model timed out.",
}


class _Refused(Exception):  # noqa: N818 - it carries an answer and is no fault of ours
    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


def guarded(teacher: Teacher, endpoint: Endpoint) -> Endpoint:
    """The endpoint behind the API key; what it refuses becomes a response."""

    async def asked(request: Request) -> Response:
        try:
            refusal = teacher.refuse_key(request.headers.get("authorization"))
            if refusal:
                raise _Refused(refusal)
            return await endpoint(request)
        except _Refused as refused:
            return Response(refused.reply.body, refused.reply.status, media_type="application/json")

    return asked


@dataclass(frozen=True)
class _File:
    record: dict[str, Any]
    content: bytes


@dataclass(frozen=True)
class _Row:
    custom_id: str
    body: Any


@dataclass
class _Batch:
    record: dict[str, Any]
    rows: list[_Row]
    started: float  # on the monotonic clock
    cancelled: float | None = None
    open: bool = True
    usage: dict[str, int] = field(default_factory=lambda: {"input_tokens": 0, "output_tokens": 0})


class Batches:
    """Files and batches, in memory. A batch moves on when somebody looks at it."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}
        self._numbers = count(1)

    def routes(self) -> list[Route]:
        """The routes under /v1/files and /v1/batches."""
        table: list[tuple[str, str, Endpoint]] = [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files/{id}", self._file),
            ("DELETE", "/v1/files/{id}", self._delete),
            ("GET", "/v1/files/{id}/content", self._content),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list),
            ("GET", "/v1/batches/{id}", self._retrieve),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]
        return [Route(path, guarded(self._teacher, endpoint), methods=[method]) for method, path, endpoint in table]

    async def _upload(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise _Refused(refuse(400, "A file is uploaded as multipart/form-data.", code=None))
        async with request.form() as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise _Refused(refuse(400, "The part `file` is missing.", code=None))
            if purpose != "batch":
                raise _Refused(refuse(400, f"The purpose must be batch, not {purpose}.", code=None))
            content = await upload.read()
        return JSONResponse(self._keep(content, upload.filename or "batch.jsonl", "batch"))

    async def _file(self, request: Request) -> Response:
        return JSONResponse(self._known_file(request).record)

    async def _content(self, request: Request) -> Response:
        return Response(self._known_file(request).content, media_type="application/octet-stream")

    async def _delete(self, request: Request) -> Response:
        record = self._known_file(request).record
        del self._files[record["id"]]
        return JSONResponse({"id": record["id"], "object": "file", "deleted": True})

    async def _create(self, request: Request) -> Response:
        try:
            asked = json.loads(await request.body())
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            raise _Refused(refuse(400, "The body is not a JSON object.", code=None))
        if asked.get("endpoint") != _ENDPOINT or asked.get("completion_window") != "24h":
            raise _Refused(refuse(400, f"This teacher runs {_ENDPOINT} in a window of 24h only.", code="invalid_value"))
        source = self._files.get(str(asked.get("input_file_id")))
        if source is None:
            raise _Refused(refuse(400, f"No such file: {asked.get('input_file_id')}.", code="invalid_value"))
        rows, errors = _read_rows(source.content)
        record = _new_record(f"batch_fake{next(self._numbers):06d}", asked)
        if errors:
            record |= {"status": "failed", "failed_at": record["created_at"], "errors": {"object": "list", "data": errors}}
        batch = _Batch(record, rows, time.monotonic(), open=not errors)
        self._batches[record["id"]] = batch
        return JSONResponse(record)

    async def _list(self, request: Request) -> Response:
        newest = list(reversed(self._batches.values()))
        after, limit = request.query_params.get("after"), request.query_params.get("limit", "20")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:
            raise _Refused(refuse(400, "limit lies between 1 and 100.", code="invalid_value"))
        if after is not None:
            if after not in self._batches:
                raise _Refused(refuse(404, f"No batch found with id '{after}'.", code=None))
            newest = newest[newest.index(self._batches[after]) + 1 :]
        page = [self._moved_on(batch) for batch in newest[: int(limit)]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(newest) > len(page)})

    async def _retrieve(self, request: Request) -> Response:
        return JSONResponse(self._moved_on(self._known_batch(request)))

    async def _cancel(self, request: Request) -> Response:
        batch = self._known_batch(request)
        record = self._moved_on(batch)
        if not batch.open:
            raise _Refused(refuse(409, f"A batch that is {record['status']} cannot be cancelled.", code=None))
        if batch.cancelled is None:
            batch.cancelled = time.monotonic()
            record |= {"status": "cancelling", "cancelling_at": int(time.time())}
        return JSONResponse(record)

    def _known_file(self, request: Request) -> _File:
        name = request.path_params["id"]
        if name not in self._files:
            raise _Refused(refuse(404, f"No such File object: {name}", code=None))
        return self._files[name]

    def _known_batch(self, request: Request) -> _Batch:
        name = request.path_params["id"]
        if name not in self._batches:
            raise _Refused(refuse(404, f"No batch found with id '{name}'.", code=None))
        return self._batches[name]

    def _keep(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        record = {
            "id": f"file-fake{next(self._numbers):06d}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[str(record["id"])] = _File(record, content)
        return record

    def _moved_on(self, batch: _Batch) -> dict[str, Any]:
        """The batch's record as of now."""
        record, now = batch.record, time.monotonic()
        if not batch.open:
            return record
        delay = self._teacher.faults.batch_delay
        if batch.cancelled is None and now - batch.started < delay:
            record["status"] = "in_progress"
            record["in_progress_at"] = record["in_progress_at"] or int(time.time())
            record["request_counts"] = {"total": len(batch.rows), "completed": 0, "failed": 0}
            return record
        share = 1.0 if batch.cancelled is None else min(1.0, (batch.cancelled - batch.started) / delay)
        self._finish(batch, int(len(batch.rows) * share))
        return record

    def _finish(self, batch: _Batch, many: int) -> None:
        """Answer the first `many` rows of a shuffled order and give up the others."""
        record, done, failed = batch.record, list[str](), list[str]()
        shuffled = sorted(batch.rows, key=lambda row: self._chance("order", batch, row))
        for n, row in enumerate(shuffled):
            good, line = self._run(batch, row, cancelled=n >= many)
            (done if good else failed).append(json.dumps(line, ensure_ascii=False))
        for name, lines in (("output", done), ("error", failed)):
            if lines:
                content = "\n".join(lines).encode("utf-8", "replace") + b"\n"
                record[f"{name}_file_id"] = self._keep(content, f"{record['id']}_{name}.jsonl", "batch_output")["id"]
        expired = any('"batch_expired"' in line for line in failed)
        status = "cancelled" if batch.cancelled is not None else "expired" if expired else "completed"
        record["request_counts"] = {"total": len(batch.rows), "completed": len(done), "failed": len(failed)}
        record |= {"status": status, "finalizing_at": int(time.time()), f"{status}_at": int(time.time())}
        record["usage"] = {
            **batch.usage,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(batch.usage.values()),
        }
        batch.open = False

    def _run(self, batch: _Batch, row: _Row, *, cancelled: bool) -> tuple[bool, dict[str, Any]]:
        """Whether a row was answered, and its line of the output or of the error file."""
        reply = None
        if cancelled:
            code = "batch_cancelled"
        elif self._chance("expires", batch, row) < self._teacher.faults.batch_expires:
            code = "batch_expired"
        else:
            code = "request_timeout"
            reply = self._teacher.attempt(row.body, json.dumps(row.body, sort_keys=True).encode())
            if reply.fault == "html":  # no proxy stands between a batch and its model
                reply = replace(reply, status=0)
            self._teacher.sent(reply, key=row.custom_id, batch=batch.record["id"])
        name = f"batch_req_{int(self._chance('id', batch, row) * 2**48):012x}"
        line: dict[str, Any] = {"id": name, "custom_id": row.custom_id, "response": None, "error": None}
        if reply is None or not reply.status:
            line["error"] = {"code": code, "message": _WENT_WRONG[code]}
            return False, line
        batch.usage["input_tokens"] += reply.prompt_tokens
        batch.usage["output_tokens"] += reply.completion_tokens
        line["response"] = {"status_code": reply.status, "request_id": f"req_{name[10:]}", "body": json.loads(reply.body)}
        return reply.status == 200, line

    def _chance(self, what: str, batch: _Batch, row: _Row) -> float:
        return self._teacher.draw(f"{what}:{batch.record['id']}:{row.custom_id}:".encode("utf-8", "replace"))[0]


def _read_rows(content: bytes) -> tuple[list[_Row], list[dict[str, Any]]]:
    """The rows of an input file, and what is wrong with it."""
    rows: list[_Row] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, raw in enumerate(content.splitlines(), start=1):
        if not raw.strip():
            continue
        fault = None
        try:
            row = json.loads(raw)
        except ValueError:
            row, fault = None, ("invalid_json_line", "This line is not parseable as valid JSON.")
        if fault is None and not (isinstance(row, dict) and isinstance(row.get("custom_id"), str) and "body" in row):
            fault = ("missing_required_parameter", "A row needs custom_id, method, url and body.")
        elif isinstance(row, dict) and (row.get("method") != "POST" or row.get("url") != _ENDPOINT):
            fault = ("invalid_url", f"A row of this batch has the method POST and the url {_ENDPOINT}.")
        elif isinstance(row, dict) and row["custom_id"] in seen:
            fault = ("duplicate_custom_id", f"The custom_id {row['custom_id']!r} was used on an earlier line.")
        if fault:
            errors.append({"code": fault[0], "message": fault[1], "line": number, "param": None})
            continue
        seen.add(row["custom_id"])
        rows.append(_Row(row["custom_id"], row["body"]))
    if not rows and not errors:
        errors.append({"code": "empty_file", "message": "The input file has no rows.", "line": None, "param": None})
    return rows, errors


def _new_record(name: str, asked: dict[str, Any]) -> dict[str, Any]:
    now = int(time.time())
    later = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")
    return {
        "id": name,
        "object": "batch",
        "endpoint": _ENDPOINT,
        "errors": None,
        "input_file_id": asked["input_file_id"],
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + 24 * 3600,
        **dict.fromkeys(later),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": asked.get("metadata"),
    }
