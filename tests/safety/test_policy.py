"""The policy table."""

from __future__ import annotations

import itertools

import pytest

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand, Category
from qiaoban.errors import DataError
from qiaoban.safety.policy import Action, Policy, When, Whom, load_policy
from qiaoban.safety.signals import Severity, Verdict

POLICY = load_policy()


def decide(severity: Severity, category: Category, *, guardian: bool = False, reply: str = "") -> tuple[Action, object]:
    verdict = Verdict(severity=severity, category=category, guardian_may_be_source=guardian, reply=reply or category.value)
    decision = POLICY.decide(verdict, band=AgeBand.B9_11, jurisdiction="CN")
    return decision.action, decision.notify


def test_every_verdict_has_a_row() -> None:
    for severity, category, band in itertools.product(Severity, Category, AgeBand):
        verdict = Verdict(severity=severity, category=category, reply=category.value)
        POLICY.decide(verdict, band=band, jurisdiction="GB")


@pytest.mark.parametrize("category", [c for c in Category if c is not Category.BENIGN])
def test_risk_is_answered_with_reviewed_text_and_somebody_is_told(category: Category) -> None:
    for severity, when in ((Severity.URGENT, When.NOW), (Severity.CONCERN, When.SAME_DAY)):
        verdict = Verdict(severity=severity, category=category, reply=category.value)
        decision = POLICY.decide(verdict, band=AgeBand.B6_8, jurisdiction="CN")
        assert decision.action is Action.VETTED
        assert decision.notify is not None
        assert decision.notify.when is when


def test_a_guardian_who_may_be_the_source_is_never_told() -> None:
    for severity, category in itertools.product(Severity, Category):
        verdict = Verdict(severity=severity, category=category, guardian_may_be_source=True, reply=category.value)
        notify = POLICY.decide(verdict, band=AgeBand.B9_11, jurisdiction="CN").notify
        assert notify is None or notify.to is Whom.SAFEGUARDING_CONTACT


def test_a_benign_message_goes_to_the_model_and_nobody_is_told() -> None:
    assert decide(Severity.NONE, Category.BENIGN) == (Action.ALLOW, None)


@pytest.mark.parametrize("family", ["are_you_human", "goodbye"])
def test_questions_with_one_true_answer_are_not_left_to_the_model(family: str) -> None:
    assert decide(Severity.NONE, Category.BENIGN, reply=family) == (Action.VETTED, None)


def test_priority_names_every_category_once() -> None:
    assert sorted(POLICY.priority) == sorted(Category)


def test_a_typo_names_the_row() -> None:
    table = {**read_table("policies/default.toml"), "row": [{"severty": ["urgent"], "action": "vetted", "notify": "now"}]}
    with pytest.raises(DataError, match=r"policy row 1: unknown column 'severty'"):
        Policy(table)


def test_silence_is_not_a_policy() -> None:
    table = {**read_table("policies/default.toml"), "row": [{"severity": ["urgent"], "action": "vetted", "notify": "now"}]}
    with pytest.raises(DataError, match="no row"):
        Policy(table).decide(Verdict(), band=AgeBand.B9_11, jurisdiction="CN")
