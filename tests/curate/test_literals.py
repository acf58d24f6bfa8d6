"""A gate stops no text that a pattern matches, and what it needs is what stands there."""

from __future__ import annotations

import re

import polars as pl
import pytest

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand, Lang
from qiaoban.curate.literals import Gate, needed
from qiaoban.curate.pii import find_pii
from qiaoban.curate.rules_gate import likely_books
from qiaoban.safety.policy import load_policy
from qiaoban.safety.signals import ChildMessage, RuleClassifier, load_rule_book

LANGS: tuple[Lang, ...] = ("zh", "en")


@pytest.mark.parametrize(
    ("pattern", "strings"),
    [
        ("妈妈|爸爸", {"妈妈", "爸爸"}),
        ("(?:我|你)家.{0,3}狗", {"我家", "你家"}),
        ("(?<!不)想(?:死|走)?", {"想"}),
        ("(?=.*@)[a-z]+", {"@"}),
        ("a+bc", {"bc"}),
        ("x?yz", {"yz", "xyz"}),
    ],
)
def test_what_a_pattern_needs(pattern: str, strings: set[str]) -> None:
    assert needed(pattern) == frozenset(strings)


@pytest.mark.parametrize("pattern", [".*", "[^a]b?", "(?:妈妈)?", r"\w+", "妈|.", "(?:)"])
def test_a_pattern_of_which_nothing_can_be_said(pattern: str) -> None:
    assert needed(pattern) is None
    assert Gate([[pattern]]).always == {0}


def test_without_regard_to_case() -> None:
    for pattern in ("(?i)SKYPE", "(?i:skype)", "s(?i:KYPE)"):
        found = [text for text in ("SkyPe", "sKYPE", "\u017fkype", "s\u212aype", "\u212a") if re.search(pattern, text)]
        passed = dict(Gate([[pattern]]).passed(pl.Series(found)))
        assert passed[0].to_list() == list(range(len(found)))


def test_a_gate_stops_nothing_that_matches() -> None:
    """Over every pattern of the guard and of personal data, on every example of the guard."""
    for lang in LANGS:
        rules = load_rule_book(lang).rules
        patterns = [pattern.pattern for rule in rules for pattern in (*rule.patterns, *rule.unless)]
        patterns += [row["regex"] for row in read_table(f"curate/pii_{lang}.toml")["pattern"] if "%" not in row["regex"]]
        texts = [text.lower() for rule in rules for text in (*rule.examples, *rule.counterexamples)]
        gate = Gate([[each] for each in patterns])
        passed = {place: set(rows) for place, rows in gate.passed(pl.Series(texts))}
        for place, pattern in enumerate(patterns):
            hits = {at for at, text in enumerate(texts) if re.search(pattern, text)}
            assert place in gate.always or hits <= passed.get(place, set()), pattern


def test_a_gate_stops_most_texts() -> None:
    gate = Gate([["妈妈"], ["爸爸", "爷爷"], ["狮子"]])
    passed = {place: rows.to_list() for place, rows in gate.passed(pl.Series(["妈妈和爷爷", "今天很好", "爸爸爸爸"]))}
    assert passed == {0: [0], 1: [0, 2]}


def test_the_likely_rules_give_the_same_verdict_as_all() -> None:
    priority = load_policy().priority
    for lang in LANGS:
        book = load_rule_book(lang)
        texts = [text for rule in book.rules for text in (*rule.examples, *rule.counterexamples)]
        likely = likely_books(texts, lang)
        assert sum(len(each.rules) for each in likely) < len(texts) * len(book.rules) / 2
        whole = RuleClassifier([book], priority)
        for text, narrow in zip(texts, likely, strict=True):
            message = ChildMessage(text=text, context=(), lang=lang, band=AgeBand.B9_11)
            assert RuleClassifier([narrow], priority).assess(message) == whole.assess(message), text


def test_few_texts_meet_all_rules() -> None:
    assert likely_books(["我怕"], "zh") == [load_rule_book("zh")]


def test_personal_data_in_wide_digits_passes() -> None:
    assert [hit.kind for hit in find_pii("我的号码是１３９１２３４５６７８", "zh")] == ["phone"]
