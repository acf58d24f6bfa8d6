"""What a child's message tells about risk: categories, severities, and the rules that see them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Literal, Protocol

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand, Category, Lang, Turn
from qiaoban.errors import DataError
from qiaoban.safety.normalise import normalise

CONTEXT_TURNS = 6  # how many earlier turns a message is read with


class Severity(StrEnum):
    """How soon somebody should know: not at all, in the weekly summary, the same day, now."""

    NONE = "none"
    WATCH = "watch"
    CONCERN = "concern"
    URGENT = "urgent"

    @property
    def rank(self) -> int:
        """0 for none to 3 for urgent."""
        return list(Severity).index(self)


@dataclass(frozen=True, kw_only=True)
class ChildMessage:
    """A message with the turns before it, oldest first (the last `CONTEXT_TURNS` are read)."""

    text: str
    context: tuple[Turn, ...] = ()
    lang: Lang | None = None
    band: AgeBand = AgeBand.B9_11


@dataclass(frozen=True)
class Evidence:
    """Which rule fired, on which words of the normalised text."""

    rule: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of one message. `reply` names the family of vetted replies that fits it."""

    severity: Severity = Severity.NONE
    category: Category = Category.BENIGN
    reply: str = ""
    guardian_may_be_source: bool = False
    scores: Mapping[Category, float] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()


class Classifier(Protocol):
    """Anything that reads a child's message for risk."""

    def assess(self, message: ChildMessage) -> Verdict:
        """The most severe thing that the message tells."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule, compiled. It fires when a pattern is found, no `unless` is, and the companion had asked what `asked` says."""

    id: str
    category: Category
    severity: Severity
    reply: str
    source: Literal["never", "maybe"]
    patterns: tuple[re.Pattern[str], ...]
    unless: tuple[re.Pattern[str], ...]
    asked: re.Pattern[str] | None
    examples: tuple[str, ...]
    counterexamples: tuple[str, ...]

    def search(self, text: str, before: str = "") -> str | None:
        """The words that fire the rule in normalised `text`; `before` is the companion's last turn, normalised."""
        if self.asked is not None and not self.asked.search(before):
            return None
        hit = next((m for p in self.patterns if (m := p.search(text))), None)
        if hit is None or any(p.search(text) for p in self.unless):
            return None
        return hit[0]


@dataclass(frozen=True)
class RuleBook:
    """The rules of one language, and the words that tell who is hurting the child."""

    rules: tuple[Rule, ...]
    guardian: re.Pattern[str]
    other: re.Pattern[str]


class RuleClassifier:
    """The rules of every language at once: children mix them."""

    def __init__(self, books: Sequence[RuleBook], priority: Sequence[Category]) -> None:
        self._books = tuple(books)
        self._priority = {category: i for i, category in enumerate(priority)}

    def assess(self, message: ChildMessage) -> Verdict:
        """See `Classifier`. Scores are 1 for every category whose rule fired."""
        text = normalise(message.text)
        context = message.context[-CONTEXT_TURNS:]
        before = next((normalise(t.content) for t in reversed(context) if t.role == "assistant"), "")
        hits = [
            (rule, words) for book in self._books for rule in book.rules if (words := rule.search(text, before)) is not None
        ]
        if not hits:
            return Verdict()
        worst = max((rule for rule, _ in hits), key=self._weight)
        told = " ".join([*(normalise(t.content) for t in context if t.role == "user"), text])
        return Verdict(
            severity=worst.severity,
            category=worst.category,
            reply=worst.reply,
            guardian_may_be_source=any(rule.source == "maybe" for rule, _ in hits) and self._guardian_possible(text, told),
            scores={rule.category: 1.0 for rule, _ in hits},
            evidence=tuple(Evidence(rule.id, words) for rule, words in hits),
        )

    def _weight(self, rule: Rule) -> tuple[int, int]:
        return rule.severity.rank, -self._priority.get(rule.category, len(self._priority))

    def _guardian_possible(self, text: str, told: str) -> bool:
        """True when the child speaks of a guardian, now or before, or names nobody: silence must not clear a guardian."""
        if any(book.guardian.search(text) for book in self._books):
            return True
        if any(book.other.search(text) for book in self._books):
            return False
        return any(book.guardian.search(told) for book in self._books) or not any(
            book.other.search(told) for book in self._books
        )


@cache
def load_rule_book(lang: Lang) -> RuleBook:
    """The rules of one language out of the bank. `DataError` names the rule that is wrong."""
    table = read_table(f"signals/{lang}.toml")
    words: Mapping[str, str] = table.get("words", {})
    people = table["people"]
    return RuleBook(
        rules=tuple(_rule(row, words) for row in table["rule"]),
        guardian=_any_of(people["guardian"], lang),
        other=_any_of(people["other"], lang),
    )


def _rule(row: Mapping[str, Any], words: Mapping[str, str]) -> Rule:
    try:
        return Rule(
            id=row["id"],
            category=Category(row["category"]),
            severity=Severity(row["severity"]),
            reply=row.get("reply") or row["category"],
            source=row.get("source", "never"),
            patterns=compile_all(row["patterns"], words),
            unless=compile_all(row.get("unless", ()), words),
            asked=next(iter(compile_all([row["asked"]], words)), None) if row.get("asked") else None,
            examples=tuple(row["examples"]),
            counterexamples=tuple(row["counterexamples"]),
        )
    except (KeyError, ValueError, re.error) as error:
        raise DataError(f"rule {row.get('id', '?')!r}: {error}") from None


_SHARED = re.compile(r"<<(\w+)>>")


def compile_all(patterns: Sequence[str], words: Mapping[str, str] | None = None) -> tuple[re.Pattern[str], ...]:
    """Every pattern compiled, in order. `<<NAME>>` in one stands for `words[NAME]`, which may name others."""
    return tuple(re.compile(_expand(pattern, words or {})) for pattern in patterns)


def _expand(pattern: str, words: Mapping[str, str]) -> str:
    while _SHARED.search(pattern):
        pattern = _SHARED.sub(lambda name: words[name[1]], pattern)
    return pattern


def _any_of(patterns: Sequence[str], lang: Lang) -> re.Pattern[str]:
    """One pattern for many; the longest first, so that "stepdad" is not read as "dad"."""
    choice = "|".join(sorted(patterns, key=len, reverse=True))
    return re.compile(rf"\b(?:{choice})\b" if lang == "en" else choice)
