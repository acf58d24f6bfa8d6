"""The rules by which a dialogue is judged: what each is called, why it exists, how grave it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Bilingual, Line, parse_table
from qiaoban.conversation import Lang
from qiaoban.errors import DataError, UsageError

Severity = Literal["drop", "repair", "tag"]
Scope = Literal["turn", "talk", "corpus"]
ERRORS: frozenset[Severity] = frozenset({"drop", "repair"})


class _Entry(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Entry):
    """One rule. `bad` dialogues break it and `good` ones, which resemble them, do not; turns are separated by `|`."""

    id: Line
    severity: Severity
    scope: Scope
    speaker: Literal["companion", "child", "any"]
    reason: Bilingual
    bad: tuple[Line, ...]
    good: tuple[Line, ...]

    def why(self, lang: Lang) -> str:
        """The reason in one language."""
        return self.reason.zh if lang == "zh" else self.reason.en


class _Rules(BaseModel):
    """The shape of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rules: tuple[Rule, ...] = Field(alias="rule", min_length=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where a dialogue breaks a rule. `turn` counts messages from 0, system turns included; None is the whole talk."""

    id: str
    turn: int | None
    rule: str
    severity: Severity
    message: str


@cache
def load_rules() -> tuple[Rule, ...]:
    """Every rule, in the order of the file. `DataError` names the key that is wrong."""
    name = "curate/rules.toml"
    rules = parse_table(_Rules, read_table(name), name).rules
    ids = [rule.id for rule in rules]
    if twice := {rule for rule in ids if ids.count(rule) > 1}:
        raise DataError(f"rule {min(twice)!r} stands there twice", path=name)
    return rules


def choose_rules(ids: tuple[str, ...] | None) -> tuple[Rule, ...]:
    """The rules named, or all of them. `UsageError` for an unknown id."""
    rules = load_rules()
    if ids is None:
        return rules
    if unknown := sorted(set(ids) - {rule.id for rule in rules}):
        known = ", ".join(rule.id for rule in rules)
        raise UsageError(f"there is no rule {unknown[0]!r}", hint=f"the rules are {known}")
    return tuple(rule for rule in rules if rule.id in ids)
