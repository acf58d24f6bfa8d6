"""What the fake teacher says when it is asked to judge: made-up levels with quotations that really stand in the talk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

_TURN = re.compile(r'^\{"n": \d+, "who": .*\}$', re.MULTILINE)
_DIMENSION = re.compile(r"^(\w+): .*\n  0  ", re.MULTILINE)
_QUOTED = 12  # characters
Below = Callable[[int], int]


def judgements(prompt: str, below: Below) -> list[dict[str, Any]]:
    """A level in every dimension that the prompt names; one in eight is not called for."""
    turns, rows = _turns(prompt), list[dict[str, Any]]()
    for name in _DIMENSION.findall(prompt):
        turn, level = turns[below(len(turns))], (2, 2, 1, 2, 1, 2, 2, None)[below(8)]
        proof = {"turn": turn["n"], "quote": _start(turn["text"])} if level is not None else {"turn": None, "quote": None}
        rows.append({"dimension": name, **proof, "why": "made up", "level": level})
    return rows


def comparisons(prompt: str, below: Below) -> list[dict[str, Any]]:
    """A verdict in every dimension that the prompt names, and overall; it leans to the longer side, wherever that stands."""
    turns = _turns(prompt)
    cut = next(n for n in range(1, len(turns) + 1) if n == len(turns) or turns[n]["n"] == 1)
    first, second = turns[:cut], turns[cut:] or turns
    longer = "first" if _length(first) > _length(second) else "second"
    rows = []
    for name in (*_DIMENSION.findall(prompt), "overall"):
        quotes = {"quote_first": _quote(first, below), "quote_second": _quote(second, below)}
        rows.append({"dimension": name, **quotes, "why": "made up", "better": (longer, longer, longer, "same")[below(4)]})
    return rows


def _turns(prompt: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _TURN.findall(prompt)]


def _length(turns: Sequence[dict[str, Any]]) -> int:
    return sum(len(turn["text"]) for turn in turns)


def _quote(turns: Sequence[dict[str, Any]], below: Below) -> str:
    return _start(turns[below(len(turns))]["text"])


def _start(text: str) -> str:
    """The first words: so many characters, or a third as many words where there are words."""
    return " ".join(text.split()[: _QUOTED // 3]) if text.isascii() else text[:_QUOTED]
