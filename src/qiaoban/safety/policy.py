"""What is done about a verdict: a table, read from top to bottom (`bank/policies/*.toml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, get_args

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand, Category, Lang
from qiaoban.errors import DataError
from qiaoban.safety.signals import RuleClassifier, Severity, Verdict, load_rule_book


class Action(StrEnum):
    """Let the model answer, let it answer with guidance, or give a reviewed reply instead."""

    ALLOW = "allow"
    STEER = "steer"
    VETTED = "vetted"


class When(StrEnum):
    """How soon somebody is told."""

    NONE = "none"
    WEEKLY = "weekly"
    SAME_DAY = "same_day"
    NOW = "now"


class Whom(StrEnum):
    """Who is told. Never the guardian about something that the guardian may have done."""

    GUARDIAN = "guardian"
    SAFEGUARDING_CONTACT = "safeguarding_contact"


@dataclass(frozen=True)
class Notify:
    """Who is told, and how soon."""

    to: Whom
    when: When


@dataclass(frozen=True)
class Decision:
    """What the child gets, and who is told (`None`: nobody)."""

    action: Action
    notify: Notify | None


_COLUMNS = {"severity": Severity, "category": Category, "band": AgeBand, "jurisdiction": str, "reply": str}


@dataclass(frozen=True)
class _Row:
    wanted: Mapping[str, frozenset[str]]
    action: Action
    when: When

    def fits(self, facts: Mapping[str, str]) -> bool:
        return all(facts[column] in values for column, values in self.wanted.items())


class Policy:
    """The table. `version` goes into the log of every turn."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.version = str(table["version"])
        self.priority = tuple(Category(name) for name in table["priority"])
        self._rows = tuple(_row(number, row) for number, row in enumerate(table["row"], start=1))

    def decide(self, verdict: Verdict, *, band: AgeBand, jurisdiction: str) -> Decision:
        """The first row that fits. A table without one is an error: silence is not a policy."""
        facts = {
            "severity": verdict.severity.value,
            "category": verdict.category.value,
            "reply": verdict.reply,
            "band": band.value,
            "jurisdiction": jurisdiction,
        }
        row = next((row for row in self._rows if row.fits(facts)), None)
        if row is None:
            raise DataError(f"policy {self.version} has no row for {facts}")
        if row.when is When.NONE:
            return Decision(row.action, None)
        whom = Whom.SAFEGUARDING_CONTACT if verdict.guardian_may_be_source else Whom.GUARDIAN
        return Decision(row.action, Notify(whom, row.when))


def load_policy(name: str = "default") -> Policy:
    """A policy table of the bank."""
    return Policy(read_table(f"policies/{name}.toml"))


def _row(number: int, row: Mapping[str, Any]) -> _Row:
    try:
        wanted = {column: frozenset(kind(value) for value in row[column]) for column, kind in _COLUMNS.items() if column in row}
        if unknown := set(row) - set(_COLUMNS) - {"action", "notify"}:
            raise ValueError(f"unknown column {min(unknown)!r}")
        return _Row(wanted, Action(row["action"]), When(row["notify"]))
    except (KeyError, ValueError) as error:
        raise DataError(f"policy row {number}: {error}") from None


def default_classifier(policy: Policy | None = None) -> RuleClassifier:
    """The input guard that ships: the rules of every language."""
    return RuleClassifier([load_rule_book(lang) for lang in get_args(Lang)], (policy or load_policy()).priority)
