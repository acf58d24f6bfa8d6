"""What the body of an answer says, or why it cannot be used."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qiaoban.conversation import explain

_THINKING = re.compile(r"\A.*?</think>|\A\s*<think>.*\Z", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_WHOLE = ("stop", "eos", "end_turn", None)  # ways to end that are an end
Model = TypeVar("Model", bound=BaseModel)


class BadReplyError(Exception):
    """An answer was paid for and cannot be used. `fault` is one word to count by; the message says what was wrong."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def content_of(raw: str) -> str:
    """The words of a chat completion without a thinking part. Raises `BadReplyError` for a cut, filtered or empty one."""
    try:
        choice = json.loads(raw)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        raise BadReplyError("empty", "there was no message in it") from None
    if finish == "length":
        raise BadReplyError("length", "it was cut off at the longest length")
    if finish == "content_filter" or refusal:
        raise BadReplyError("content_filter", "it was filtered or refused")
    if finish not in _WHOLE:
        raise BadReplyError("cut_off", f"it ended with {finish!r}")
    if isinstance(content, list):  # content parts, of which some models make thinking one
        content = "".join(
            str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text"
        )
    text = _THINKING.sub("", str(content or "")).strip()
    if not text:
        raise BadReplyError("empty", "it was empty")
    return _whole(text)


def json_of(text: str) -> Any:
    """The JSON in an answer, also where it stands in a fenced block or between sentences."""
    fenced = _FENCE.search(text)
    inner = fenced[1] if fenced else text
    start, end = inner.find("{"), inner.rfind("}")
    try:
        return json.loads(inner[start : end + 1]) if 0 <= start < end else json.loads(inner)
    except (ValueError, RecursionError) as error:
        raise BadReplyError("bad_json", f"it was not JSON ({error})") from None


def validated(kind: type[Model], value: Any) -> Model:
    """`value` as `kind`. `BadReplyError` says which key is wrong."""
    _whole(json.dumps(value, ensure_ascii=False))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise BadReplyError("wrong_json", explain(error, kind)) from None


def _whole(text: str) -> str:
    """Half of a surrogate pair can neither be kept nor sent to anybody."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadReplyError("half_a_character", "it had half of a character in it") from None
    return text
