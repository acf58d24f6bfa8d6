"""What the guard makes of one message: the batch form of `qiaoban safety check`."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import AgeBand, Lang, Turn
from qiaoban.safety.policy import Policy
from qiaoban.safety.signals import ChildMessage, Classifier


class CheckedMessage(BaseModel):
    """One line of input. `context` holds the turns before the message, oldest first.

    Other keys are passed over, so that labelled messages can be checked as they are.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    text: str
    context: tuple[Turn, ...] = ()
    lang: Lang | None = None
    age: int | None = Field(default=None, ge=3, le=17)

    @property
    def band(self) -> AgeBand:
        """The age band; the middle one where the age is unknown."""
        return AgeBand.B9_11 if self.age is None else AgeBand.of(self.age)


def check(message: CheckedMessage, classifier: Classifier, policy: Policy, *, jurisdiction: str) -> dict[str, Any]:
    """Verdict and decision as one row. `ms` is the time of the guard alone."""
    start = time.perf_counter()
    verdict = classifier.assess(ChildMessage(text=message.text, context=message.context, lang=message.lang, band=message.band))
    decision = policy.decide(verdict, band=message.band, jurisdiction=jurisdiction)
    spent = (time.perf_counter() - start) * 1000
    told = decision.notify
    return {
        "id": message.id,
        "severity": verdict.severity.value,
        "category": verdict.category.value,
        "scores": {category.value: round(p, 4) for category, p in verdict.scores.items()},
        "action": decision.action.value,
        "notify": {"to": told.to.value, "when": told.when.value} if told else None,
        "guardian_may_be_source": verdict.guardian_may_be_source,
        "evidence": [{"rule": e.rule, "words": e.words} for e in verdict.evidence],
        "ms": round(spent, 3),
    }
