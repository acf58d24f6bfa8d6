"""What the companion must never say: rules over each sentence with the two before it, and limits by age."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand, Lang
from qiaoban.errors import DataError
from qiaoban.safety.normalise import normalise
from qiaoban.safety.signals import compile_all

CONTEXT_SENTENCES = 2


@dataclass(frozen=True, kw_only=True)
class OutputRule:
    """One rule, compiled. With `guardian_suspected` it holds only in a talk whose harm may come from a guardian."""

    id: str
    reason: str
    patterns: tuple[re.Pattern[str], ...]
    unless: tuple[re.Pattern[str], ...]
    guardian_suspected: bool
    examples: tuple[str, ...]
    counterexamples: tuple[str, ...]

    def hits(self, text: str) -> bool:
        """Whether normalised `text` breaks the rule."""
        return any(p.search(text) for p in self.patterns) and not any(p.search(text) for p in self.unless)


@dataclass(frozen=True)
class Limits:
    """How much one reply may hold for an age band: sentences, and characters (Han) or words (English)."""

    sentences: int
    length: int


class OutputGuard:
    """Checks sentences before they are released."""

    def __init__(self, rules: Sequence[OutputRule], limits: Mapping[AgeBand, Limits]) -> None:
        self._rules = tuple(rules)
        self._limits = dict(limits)

    def check(
        self, sentence: str, before: Sequence[str], *, child: str, guardian_suspected: bool, numbers: frozenset[str]
    ) -> tuple[str, ...]:
        """Reasons to reject `sentence`; none means it may be released.

        `child` is the message that is being answered, `numbers` are those that may be named to this child. `before` holds
        the sentences of the same reply that the child has already: a phrase that runs across sentences is seen, but one that
        stands wholly in `before` is not held against this sentence.
        """
        alone, earlier = normalise(sentence), normalise("".join(before[-CONTEXT_SENTENCES:]))
        text = normalise("".join([*before[-CONTEXT_SENTENCES:], sentence]))
        reasons = [
            rule.reason
            for rule in self._rules
            if (guardian_suspected or not rule.guardian_suspected)
            and (rule.hits(alone) or (rule.hits(text) and not rule.hits(earlier)))
        ]
        if not _phone_numbers(text) <= numbers:
            reasons.append("unlisted_number")
        if _LINK.search(alone):
            reasons.append("link")
        if _echoes(alone, normalise(child)):
            reasons.append("echo")
        return tuple(dict.fromkeys(reasons))

    def full(self, released: Sequence[str], sentence: str, band: AgeBand) -> bool:
        """Whether the reply is long enough for this age, so that `sentence` is left out."""
        limits = self._limits[band]
        return len(released) >= limits.sentences or (bool(released) and _length("".join([*released, sentence])) > limits.length)


_NUMBER_NEAR_CALL = re.compile(
    r"(?:电话|热线|拨打?|打给|\b(?:call|text|dial|ring|phone|hotline|helpline)\b)\D{0,16}(\d[\d .()-]{1,18}\d)"
    r"|打(\d[\d-]{1,18}\d)"
)
_LONG_NUMBER = re.compile(r"(?<!\d)(\d(?:[ .()-]?\d){6,14})(?!\d)")  # long enough to be somebody's
_LINK = re.compile(r"https?:|www\.|\w@\w+\.\w|\b[a-z0-9-]{2,}\.(?:com|cn|net|org|io|co)\b")
_UNIT = re.compile(r"[\u3400-\u9fff]|[a-z0-9']+")


def _phone_numbers(text: str) -> set[str]:
    """Digits of everything that is offered as a number to call."""
    near = ("".join(found) for found in _NUMBER_NEAR_CALL.findall(text))
    return {re.sub(r"\D", "", number) for number in [*near, *_LONG_NUMBER.findall(text)]}


_I_SAID_ZH = re.compile(r"(?=(?<![“\"「你])(我[\u3400-\u9fff]{5}))")
_I_SAID_EN = re.compile(r"(?=\b((?:i|i'm|my|we|our) [a-z']+ [a-z']+(?: [a-z']+)?))")


def _echoes(sentence: str, child: str) -> bool:
    """Whether the companion says the child's own “I …” as if it were its own: “my dog died” is a lie in its mouth."""
    said = {words for pattern in (_I_SAID_ZH, _I_SAID_EN) for words in pattern.findall(child)}
    return any(words in said for pattern in (_I_SAID_ZH, _I_SAID_EN) for words in pattern.findall(sentence))


def _length(text: str) -> int:
    """Han characters and words."""
    return len(_UNIT.findall(normalise(text)))


def load_output_guard(lang: Lang) -> OutputGuard:
    """The guard of one language. `DataError` names a wrong rule."""
    limits = {AgeBand(band): Limits(**row) for band, row in read_table("output/limits.toml")[lang].items()}
    return OutputGuard(load_output_rules(lang), limits)


@cache
def load_output_rules(lang: Lang) -> tuple[OutputRule, ...]:
    """The rules alone, with their examples."""
    return tuple(_rule(row) for row in read_table(f"output/{lang}.toml")["rule"])


def _rule(row: Mapping[str, Any]) -> OutputRule:
    try:
        return OutputRule(
            id=row["id"],
            reason=row["reason"],
            patterns=compile_all(row["patterns"]),
            unless=compile_all(row.get("unless", ())),
            guardian_suspected=bool(row.get("guardian_suspected", False)),
            examples=tuple(row["examples"]),
            counterexamples=tuple(row["counterexamples"]),
        )
    except (KeyError, re.error) as error:
        raise DataError(f"output rule {row.get('id', '?')!r}: {error}") from None
