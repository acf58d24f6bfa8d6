"""What must stand in a text for a pattern to match, so that one search for many words passes over most texts.

A pattern is taken apart into the strings of which every match holds at least one (Cox 2012, “Regular Expression Matching with a
Trigram Index”, with words in place of trigrams). All strings of all patterns are then looked for at once (Aho & Corasick 1975),
and a pattern is tried only where one of its own was found. What a gate lets through may still not match; what it stops cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from math import prod
from re import (  # type: ignore[attr-defined]
    IGNORECASE,
    _constants,  # the parser of the standard library: private, and the same since Python 2
    _parser,
)
from typing import Any, NamedTuple

import polars as pl

_MOST = 64  # strings that a part of a pattern may stand for
_TOO_COMMON = 0.1  # chance that one of a pattern's strings begins at a character; above, a search for them sorts nothing out
_FOLDS_TO_ASCII = frozenset("\u017f\u212a\u0131\u0130")  # letters that, where case does not count, are s, k or i

Strings = frozenset[str]


class _Part(NamedTuple):
    """All strings that a part of a pattern can match, if they are few, and strings of which it needs one."""

    every: Strings | None
    needs: Strings | None


_EMPTY = _Part(frozenset([""]), None)
_ANY = _Part(None, None)


@cache
def needed(pattern: str) -> Strings | None:
    """Strings of which one is in every text that `pattern` matches; None where too little can be said.

    The text is to be searched without regard to the case of ASCII letters.
    """
    parsed = _parser.parse(pattern)
    needs = _sequence(parsed, parsed.state.flags).needs
    if needs is None or _odds(needs) > _TOO_COMMON:
        return None
    return needs | _FOLDS_TO_ASCII if parsed.state.flags & IGNORECASE or "(?i" in pattern else needs


def _sequence(nodes: Iterable[tuple[Any, Any]], flags: int) -> _Part:
    """Parts one after another: strings grow as long as all are known, and the rarest are what is needed."""
    run, needs, whole = frozenset([""]), None, True
    for kind, value in nodes:
        part = _part(kind, value, flags)
        needs = _rarest(needs, part.needs)
        if part.every is not None and len(run) * len(part.every) <= _MOST:
            run = frozenset(one + other for one in run for other in part.every)
            continue
        needs, whole = _rarest(needs, run), False
        run = frozenset([""]) if part.every is None else part.every
    return _Part(run if whole else None, _rarest(needs, run))


def _part(kind: Any, value: Any, flags: int) -> _Part:
    match str(kind):
        case "AT" | "ASSERT_NOT":
            part = _EMPTY
        case "ASSERT":  # it takes no place, but what it looks at must be there
            part = _EMPTY._replace(needs=_sequence(value[1], flags).needs)
        case "LITERAL":
            part = _characters([(kind, value)], flags)
        case "IN":
            part = _characters(value, flags)
        case "SUBPATTERN":
            part = _sequence(value[3], (flags | value[1]) & ~value[2])
        case "ATOMIC_GROUP":
            part = _sequence(value, flags)
        case "BRANCH":
            part = _branch([_sequence(each, flags) for each in value[1]])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            part = _repeat(int(value[0]), int(value[1]), _sequence(value[2], flags))
        case _:
            part = _ANY
    return part


def _characters(items: Sequence[tuple[Any, Any]], flags: int) -> _Part:
    """One character out of a class that is not too large."""
    found: set[str] = set()
    for kind, value in items:
        if kind is _constants.LITERAL:
            found.add(chr(value))
        elif kind is _constants.RANGE and value[1] - value[0] < _MOST:
            found.update(map(chr, range(value[0], value[1] + 1)))
        elif value is _constants.CATEGORY_DIGIT:
            found |= _digits()
        else:
            return _ANY
    if flags & IGNORECASE:
        if any(not each.isascii() and each.lower() != each.upper() for each in found):
            return _ANY
        found = {each.lower() for each in found}
    strings = frozenset(found)
    return _Part(strings, strings)


@cache
def _digits() -> Strings:
    """What `\\d` stands for."""
    return frozenset(char for char in map(chr, range(sys.maxunicode + 1)) if char.isdecimal())


def _branch(parts: Sequence[_Part]) -> _Part:
    every: Strings | None = frozenset()
    needs: Strings | None = frozenset()
    for part in parts:
        every = None if every is None or part.every is None else every | part.every
        needs = None if needs is None or part.needs is None else needs | part.needs
    return _Part(every if every is not None and len(every) <= _MOST else None, needs)


def _repeat(least: int, most: int, inner: _Part) -> _Part:
    every = None
    if most == 1 and inner.every is not None:
        every = inner.every if least else inner.every | {""}
    return _Part(every, inner.needs if least else None)


def _rarest(*choices: Strings | None) -> Strings | None:
    known = [each for each in choices if each is not None and "" not in each]
    return min(known, key=lambda each: (_odds(each), sorted(each)), default=None)


def _odds(strings: Strings) -> float:
    """About how often one of the strings begins at a character of a text."""
    return sum(prod(map(_share, each)) for each in strings)


@cache
def _share(char: str) -> float:
    """About how often a character of a text is this one."""
    if char.isascii():
        return 0.05 if char.isalpha() else 0.15 if char == " " else 0.001 if char.isdigit() else 0.02
    return 0.000001 if char.isdecimal() else 0.001


class Gate:
    """Many patterns, each of which is to be tried only on texts that can match it."""

    def __init__(self, patterns: Sequence[Iterable[str]]) -> None:
        """Each entry is searched for with a few patterns; one that can be told nothing about is tried on every text."""
        needs = [_together(map(needed, each)) for each in patterns]
        self.always = frozenset(place for place, each in enumerate(needs) if each is None)
        pairs = [(string.lower(), place) for place, each in enumerate(needs) for string in sorted(each or ())]
        self._owners = pl.DataFrame(pairs, schema={"found": pl.String, "pattern": pl.UInt32}, orient="row").unique()
        strings = sorted({string for each in needs for string in each or ()})
        self._strings = pl.Series(strings, dtype=pl.String).implode()

    def passed(self, texts: pl.Series) -> Iterator[tuple[int, pl.Series]]:
        """For each pattern that some text may match, but for those in `always`: the places of these texts, in order."""
        if self._owners.is_empty():
            return
        found = texts.str.extract_many(self._strings, ascii_case_insensitive=True, overlapping=True)
        seen = pl.DataFrame({"found": found, "at": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
        seen = seen.filter(pl.col("found").list.len() > 0).explode("found", empty_as_null=False)
        seen = seen.with_columns(pl.col("found").str.to_lowercase()).join(self._owners, on="found")
        seen = seen.select("pattern", "at").unique().sort("pattern", "at")
        for (pattern,), rows in seen.group_by("pattern", maintain_order=True):
            yield int(pattern), rows["at"]


def _together(needs: Iterable[Strings | None]) -> Strings | None:
    """What one of several patterns needs: nothing is known where nothing is known of one."""
    every: set[str] = set()
    for each in needs:
        if each is None:
            return None
        every |= each
    return frozenset(every)
