"""Rules that go by words: lists in the bank, made into one regular expression a rule and language.

A turn is looked at twice. The first look is one vectorised search for `hit`; the few turns found then lose everything that
`free` matches (negations, reported speech, look-alikes) and are searched again. Neither needs look-around, so the same lists
run in the regex engines of Rust and of Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import polars as pl

from qiaoban.bank import read_table
from qiaoban.conversation import Lang
from qiaoban.curate.rules import load_rules
from qiaoban.curate.table import GENERAL
from qiaoban.errors import DataError

LANGS: tuple[Lang, ...] = ("zh", "en")
ROLE_OF = {"child": "user", "companion": "assistant"}
GONE = "□"  # stands where `free` has taken something out
_NAME = re.compile(r"<<(\w+)>>")
_LONGEST = 1500  # a longer alternation overflows the cache of the lazy automaton, and past a size is refused
_NO_LIMIT = 10**9


@dataclass(frozen=True, kw_only=True)
class Words:
    """A word list, compiled to patterns. `column` is the column of the table that is searched; with `after`, only turns that
    answer one of the other speaker's in which one of these patterns is found; with `unless`, only turns that do not."""

    rule: str
    lang: Lang
    speaker: Literal["companion", "child", "any"]
    hits: tuple[str, ...]
    free: str
    column: Literal["raw", "text", "said"] = "said"
    bands: tuple[str, ...] = ()
    except_general: bool = False
    after: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    def applies(self) -> pl.Expr:
        """Which rows of the table this list is for."""
        rows = pl.lit(value=True)
        if self.bands:
            rows &= pl.col("band").is_in(self.bands)
        if self.except_general:
            rows &= pl.col("domain").ne_missing(GENERAL)
        if self.after:
            rows &= _answers(self.after)
        if self.unless:
            rows &= ~_answers(self.unless)
        return rows

    def first_look(self) -> pl.Expr:
        """True where something may be found."""
        return pl.any_horizontal(pl.col(self.column).str.contains(_for_rust(hit)) for hit in self.hits)

    def found(self) -> pl.Expr:
        """The words that break the rule, or null: the second look."""
        text = pl.col(self.column)
        if self.free:
            text = text.str.replace_all(_for_rust(self.free), GONE)
        return pl.coalesce(text.str.extract(f"({_for_rust(hit)})", 1) for hit in self.hits)


def _answers(patterns: Iterable[str]) -> pl.Expr:
    """Whether the turn before is of the other speaker and holds one of `patterns`; false for the first turn of a talk."""
    asked = pl.any_horizontal(pl.col("before").str.contains(_for_rust(words)) for words in patterns)
    return ((pl.col("before_role") != pl.col("role")) & asked).fill_null(value=False)


def _for_rust(pattern: str) -> str:
    """A word boundary that knows ASCII only: the Unicode one drives the engine off its fast path at the first Han character."""
    return pattern.replace(r"\b", r"(?-u:\b)")


@cache
def word_rules(lang: Lang) -> tuple[Words, ...]:
    """The word rules of one language. `DataError` names the list that is wrong."""
    table = read_table(f"curate/lexicon_{lang}.toml")
    speakers = {rule.id: rule.speaker for rule in load_rules()}
    return tuple(_words(name, row, lang, speakers) for name, row in table["rule"].items())


@cache
def talk_words(lang: Lang) -> Mapping[str, Words]:
    """The lists that rules about whole talks read, by name."""
    return {name: _words(name, row, lang, {}) for name, row in read_table(f"curate/lexicon_{lang}.toml")["talk"].items()}


def _words(name: str, row: Mapping[str, Any], lang: Lang, speakers: Mapping[str, Any]) -> Words:
    names = read_table(f"curate/lexicon_{lang}.toml")["words"]
    rule = row.get("rule", name)
    try:
        return Words(
            rule=rule,
            lang=lang,
            speaker=row.get("speaker") or speakers.get(rule, "any"),
            hits=_compiled(row["hit"], names),
            free="|".join(_compiled(row["free"], names, longest=_NO_LIMIT)),
            column="raw" if row.get("raw") else "text" if row.get("quoted") else "said",
            bands=tuple(row.get("bands", ())),
            except_general=bool(row.get("except_general", False)),
            after=_compiled(row.get("after", ()), names),
            unless=_compiled(row.get("unless", ()), names),
        )
    except (KeyError, re.error) as error:
        raise DataError(f"list {name!r}: {error}", path=f"curate/lexicon_{lang}.toml") from None


def _compiled(patterns: Iterable[str], names: Mapping[str, str], *, longest: int = _LONGEST) -> tuple[str, ...]:
    """Patterns with `<<NAME>>` replaced, joined to as few alternations of at most `longest` characters as can be."""
    joined: list[str] = []
    for pattern in patterns:
        whole = f"(?:{_expand(pattern, names)})"
        re.compile(whole)
        if joined and len(joined[-1]) + len(whole) < longest:
            joined[-1] += "|" + whole
        else:
            joined.append(whole)
    return tuple(joined)


def _expand(pattern: str, names: Mapping[str, str]) -> str:
    while name := _NAME.search(pattern):
        pattern = pattern.replace(name[0], names[name[1]])
    return pattern


def word_hits(turns: pl.DataFrame, wanted: frozenset[str]) -> pl.DataFrame:
    """Every hit of the word rules in `wanted`: columns `row`, `rule`, `words`."""
    hits = [_NOTHING]
    for lang in LANGS:
        for role in ("user", "assistant"):
            rules = [w for w in word_rules(lang) if w.rule in wanted and ROLE_OF.get(w.speaker, role) == role]
            part = turns.filter(pl.col("lang") == lang, pl.col("role") == role)
            if rules and part.height:
                hits += _look(part, rules)
    return pl.concat(hits)


_NOTHING = pl.DataFrame(schema={"row": pl.UInt32, "rule": pl.String, "words": pl.String})


def _look(part: pl.DataFrame, rules: list[Words]) -> list[pl.DataFrame]:
    """Both looks at the turns of one speaker in one language."""
    flags = part.select((words.first_look() & words.applies()).alias(str(i)) for i, words in enumerate(rules))
    return [
        part.filter(flag)
        .select("row", pl.lit(words.rule).alias("rule"), words.found().alias("words"))
        .filter(pl.col("words").is_not_null())
        for words, flag in zip(rules, flags, strict=True)
        if flag.any()
    ]


def rows_with(turns: pl.DataFrame, name: str, role: str) -> pl.DataFrame:
    """Rows of `role` in which the talk list `name` finds something: `row` and `words`."""
    found = [_NOTHING.drop("rule")]
    for lang in LANGS:
        words = talk_words(lang)[name]
        part = turns.filter(pl.col("role") == role, pl.col("lang") == lang).filter(words.first_look())
        if part.height:
            found.append(part.select("row", words.found().alias("words")).filter(pl.col("words").is_not_null()))
    return pl.concat(found)
