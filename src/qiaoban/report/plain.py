"""Text that somebody else wrote, made harmless before it is put into a page, a card or a document."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from markupsafe import Markup

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|!~$])")
_SPACE = re.compile(r"\s+")


def visible(value: Any) -> Any:
    """A text without what would be invisible or turn the reading direction; anything else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 0x20 else "\ufffd", value)


def markdown(value: Any) -> Any:
    """A text in one line that neither Markdown nor the HTML in it takes for markup; anything else as it is."""
    if not isinstance(value, str):
        return value
    marked = _MARKDOWN.sub(r"\\\1", _SPACE.sub(" ", visible(value)))
    return escape(marked, quote=False)
