"""What one turn of talk produces, in order: safety · notice or text … · end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qiaoban.conversation import Act, Category
from qiaoban.engine.protocol import Usage
from qiaoban.safety.policy import Action, Notify
from qiaoban.safety.signals import Severity


@dataclass(frozen=True, kw_only=True)
class SafetyEvent:
    """What the guard saw in the child's message and what is done about it. Comes first, before any text."""

    severity: Severity
    category: Category
    action: Action
    guardian_may_be_source: bool
    notify: Notify | None
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoticeEvent:
    """Said by the product and not by the model; part of what the child reads or hears."""

    kind: Literal["ai_disclosure"]
    text: str


@dataclass(frozen=True)
class TextEvent:
    """A whole sentence that passed the guard, or one of a reviewed reply."""

    text: str


@dataclass(frozen=True, kw_only=True)
class OutputGuardReport:
    """Whether a sentence of the model was replaced, and why."""

    replaced: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EndEvent:
    """The turn is over. Times are in milliseconds from the child's message.

    `first_token_ms` is None when the model was not asked. `failed` holds what went wrong with the engine.
    """

    farewell: bool = False
    acts: tuple[Act, ...] = ()
    output_guard: OutputGuardReport = OutputGuardReport()
    first_token_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0
    usage: Usage | None = None
    failed: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


Event = SafetyEvent | NoticeEvent | TextEvent | EndEvent
