"""Everything Qiaoban raises on purpose, classed by what the caller can do about it.

    QiaobanError
    ├── UsageError    fix the call (an option, an argument, a setting)
    ├── DataError     fix the file (names path:line, key and value)
    ├── EngineError   retry, or change the model or the machine
    └── PolicyError   refused on purpose; do not retry

Messages say what happened and why; `hint` says what to do. Only the CLI and the HTTP layer format them.
"""

from __future__ import annotations

from pathlib import Path


class QiaobanError(Exception):
    """The root: an error that a person can act on. `hint` is one sentence that says how."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(QiaobanError):
    """The call is wrong: an unknown model, an impossible option, a missing extra."""


class DataError(QiaobanError):
    """A file is wrong. The message starts with `path:line` where they are known."""

    def __init__(self, message: str, *, path: Path | str | None = None, line: int | None = None, hint: str = "") -> None:
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(where + message, hint=hint)
        self.path = path
        self.line = line


class EngineError(QiaobanError):
    """A model, its files or its endpoint failed. `retryable` tells whether the same call may succeed later."""

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


class PolicyError(QiaobanError):
    """Refused because the safety policy says so."""
