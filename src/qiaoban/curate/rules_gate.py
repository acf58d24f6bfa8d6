"""The guard's rules for a child's words, over many turns at once: each turn meets only what can fire on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import groupby

import polars as pl

from qiaoban.conversation import Lang
from qiaoban.curate.literals import Gate
from qiaoban.safety.normalise import normalise
from qiaoban.safety.signals import Rule, RuleBook, load_rule_book

_FEW = 500  # texts of one chunk: to take the patterns apart takes as long as to try them all on two thousand


def likely_books(texts: Sequence[str], lang: Lang) -> list[RuleBook]:
    """For each text the rule book of `lang` without the rules and patterns that cannot fire on it."""
    book = load_rule_book(lang)
    if len(texts) < _FEW:
        return [book] * len(texts)
    gate = _gate(lang)
    likely = [set(gate.always) for _ in texts]
    for pattern, places in gate.passed(pl.Series(map(normalise, texts), dtype=pl.String)):
        for place in places:
            likely[place].add(pattern)
    return [replace(book, rules=tuple(_rules(sorted(some), lang))) for some in likely]


def _rules(patterns: Sequence[int], lang: Lang) -> Iterator[Rule]:
    """The rules to which these of all patterns belong, with no others."""
    where = _patterns(lang)
    for rule, some in groupby(patterns, key=lambda each: where[each][0]):
        yield _narrowed(rule, tuple(some), lang)


@lru_cache(maxsize=1 << 14)
def _narrowed(rule: int, patterns: tuple[int, ...], lang: Lang) -> Rule:
    """One rule with these of its patterns."""
    return replace(load_rule_book(lang).rules[rule], patterns=tuple(_patterns(lang)[each][1] for each in patterns))


@cache
def _patterns(lang: Lang) -> list[tuple[int, re.Pattern[str]]]:
    """Every pattern of the book, with the place of its rule."""
    return [(place, pattern) for place, rule in enumerate(load_rule_book(lang).rules) for pattern in rule.patterns]


@cache
def _gate(lang: Lang) -> Gate:
    return Gate([[pattern.pattern] for _, pattern in _patterns(lang)])
