"""What the fake teacher says: harmless made-up lines in the form that a prompt asks for.

Everything is drawn from a hash of the request's messages, so the same messages get the same words, whatever was asked before.
A form is told by marks that the prompts contain: the key names `"outlines"`, `"turns"`, `"judgements"` and `"comparisons"` for
JSON, the list `[ACCEPT` for a tagged line, `孩子：` or `Child:` for a plain script; any other prompt gets one line of a child.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any, Literal

from qiaoban.collect.fake_judge import comparisons, judgements
from qiaoban.conversation import Lang

_LENGTH = re.compile(r"(\d{2,4}) (?:到|to) \d{2,4} (?:个字|words)")
_UNIT = re.compile(r"[\u4e00-\u9fff]|[A-Za-z']+")
Form = Literal["judgements", "comparisons", "outlines", "turns", "tagged", "lines", "child"]
_JSON: tuple[Form, ...] = ("judgements", "comparisons", "outlines", "turns")  # by their keys


@dataclass(frozen=True)
class _Words:
    """One language of `fake_words.toml`."""

    child: str  # the name before a line of a plain script
    companion: str
    opening: list[str]
    going_on: list[str]
    early: list[str]
    late: list[str]
    incident: list[str]
    hides: list[str]
    beats: list[str]
    worse: list[str]
    detail: list[str]


@dataclass(frozen=True)
class Said:
    """An answer before anything was done to it."""

    text: str
    form: Form
    lang: Lang
    digest: str  # of the messages, 16 hexadecimal digits

    @property
    def is_json(self) -> bool:
        """Whether the text is a JSON object."""
        return self.form in _JSON

    def misspoken(self, fault: str) -> str | None:
        """The text as `fault` spoils it; None where the fault has nothing to spoil in this form."""
        if fault == "cut":
            return self.text[: max(1, len(self.text) * 3 // 5)]
        if fault in {"empty", "filtered"}:
            return ""
        if self.is_json:
            half = self.text[:-2] if self.digest[0] < "8" else self.text.replace('":', '"', 1)
            return {"bad_json": half, "fenced": f"```json\n{self.text}\n```"}.get(fault)
        if fault == "leak" and self.form != "lines":
            return f"{self.text}\n{self._words_of_the_other()}"
        return None

    def _words_of_the_other(self) -> str:
        words, draw = _words()[self.lang], _Draw(int(self.digest, 16))
        if self.form == "tagged":
            return words.child + draw.pick(words.going_on, besides=self.text)
        return words.companion + draw.pick(words.early).partition("|")[2]


def say(messages: Sequence[Mapping[str, Any]], response_format: object = None) -> Said:
    """Answer a chat. `response_format` counts as part of the prompt, so that a JSON schema names its form as well."""
    texts = [_text(message.get("content")) for message in messages]
    digest = blake2b(json.dumps(messages).encode()).digest()
    lang = _language(texts)
    prompt = "\n".join(texts)
    form = _form(prompt if response_format is None else prompt + json.dumps(response_format))
    draw, words = _Draw(int.from_bytes(digest)), _words()[lang]
    turns_before = sum(message.get("role") == "assistant" for message in messages)
    match form:
        case "judgements":
            text = json.dumps({form: judgements(prompt, draw.below)}, ensure_ascii=False)
        case "comparisons":
            text = json.dumps({form: comparisons(prompt, draw.below)}, ensure_ascii=False)
        case "outlines":
            text = json.dumps({"outlines": _outlines(words, draw)}, ensure_ascii=False)
        case "turns":
            text = json.dumps({"turns": _turns(words, draw, _least(prompt))}, ensure_ascii=False)
        case "lines":
            turns = _turns(words, draw, _least(prompt))
            text = "\n".join((words.child if t["s"] == "child" else words.companion) + t["t"] for t in turns)
        case "tagged":
            acts, _, line = draw.pick(_stage(words, turns_before), besides=prompt).partition("|")
            text = f"[{acts}] {line}"
        case "child":
            text = draw.pick(words.going_on if turns_before else words.opening, besides=prompt)
    return Said(text=text, form=form, lang=lang, digest=digest.hex()[:16])


def tokens(text: str) -> int:
    """About how many tokens a text is: a letter a quarter, a Chinese character three quarters."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how many tokens a chat is, with four for each message's frame."""
    return sum(4 + tokens(_text(message.get("content"))) for message in messages)


class _Draw:
    """Choices out of one large number: equal numbers give equal choices."""

    def __init__(self, number: int) -> None:
        self._left = number

    def below(self, limit: int) -> int:
        self._left, chosen = divmod(self._left, limit)
        return chosen

    def pick(self, lines: Sequence[str], besides: str = "") -> str:
        """A line whose words are not in `besides` yet, where there is one."""
        start = self.below(len(lines))
        for line in (*lines[start:], *lines[:start]):
            if line.rpartition("|")[2] not in besides:
                return line
        return lines[start]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


@cache
def _words() -> dict[str, _Words]:
    table = tomllib.loads(files("qiaoban.collect").joinpath("fake_words.toml").read_text("utf-8"))
    return {lang: _Words(**lines) for lang, lines in table.items()}


def _language(texts: Sequence[str]) -> Lang:
    """Chinese where a sixteenth of the last two messages is: a Han character is one character in three bytes."""
    last = "".join(texts[-2:])
    return "zh" if (len(last.encode("utf-8", "replace")) - len(last)) * 8 > len(last) else "en"


def _form(prompt: str) -> Form:
    for form in _JSON:
        if f'"{form}":' in prompt:
            return form
    if "[ACCEPT" in prompt:
        return "tagged"
    return "lines" if "孩子：" in prompt or "Child:" in prompt else "child"


def _stage(words: _Words, turns_before: int) -> list[str]:
    return words.early if turns_before < 2 else words.late if turns_before > 3 else words.early + words.late


def _outlines(words: _Words, draw: _Draw) -> list[dict[str, Any]]:
    """Five outlines, the likeliest first; the probabilities stay below 1 in sum, as a model's do."""
    said, outlines = "", []
    for chance in (0.3, 0.22, 0.14, 0.09, 0.05):
        incident = draw.pick(words.incident, besides=said)
        first = draw.below(len(words.beats) - 3)
        outlines.append(
            {
                "p": chance,
                "incident": incident,
                "hides": draw.pick(words.hides),
                "beats": list(words.beats[first : first + 4]),
                "worse": draw.pick(words.worse),
                "detail": draw.pick(words.detail),
            }
        )
        said += incident
    return outlines


def _least(prompt: str) -> int:
    """The shortest length that a prompt asks for, in Chinese characters or English words; 0 where it names none."""
    found = _LENGTH.search(prompt)
    return int(found[1]) if found else 0


def _turns(words: _Words, draw: _Draw, least: int) -> list[dict[str, Any]]:
    """Four, six or eight turns, or as many as `least` asks for, from the child's first to the companion's last.

    Distress falls slowly.
    """
    said, turns = "", list[dict[str, Any]]()
    rounds, distress, size = 2 + draw.below(3), 2 + draw.below(2), 0
    while len(turns) < 2 * rounds or size < least:
        n = len(turns) // 2
        line = draw.pick(words.going_on if n else words.opening, besides=said)
        acts, _, answer = draw.pick(words.late if n >= rounds - 1 else words.early, besides=said).partition("|")
        turns.append({"s": "child", "t": line, "d": max(0, distress - max(0, n - 1))})
        turns.append({"s": "companion", "t": answer, "a": acts.split(", ")})
        said += f"{line} {answer} "
        size = len(_UNIT.findall(said))
    return turns
