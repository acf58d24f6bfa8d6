"""The guard's rules for a child's words, over many turns at once: each turn meets only the rules that can fire on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import polars as pl

from qiaoban.conversation import Lang
from qiaoban.curate.literals import Gate
from qiaoban.safety.normalise import normalise
from qiaoban.safety.signals import RuleBook, load_rule_book


def likely_books(texts: Sequence[str], lang: Lang) -> list[RuleBook]:
    """For each text the rule book of `lang` without the rules that cannot fire on it."""
    book, gate = load_rule_book(lang), _gate(lang)
    likely = [set(gate.always) for _ in texts]
    for rule, places in gate.passed(pl.Series(map(normalise, texts), dtype=pl.String)):
        for place in places:
            likely[place].add(rule)
    return [replace(book, rules=tuple(book.rules[each] for each in sorted(some))) for some in likely]


@cache
def _gate(lang: Lang) -> Gate:
    return Gate([[pattern.pattern for pattern in rule.patterns] for rule in load_rule_book(lang).rules])
