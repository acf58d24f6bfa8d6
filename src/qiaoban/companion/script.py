"""Playing a talk whose child turns are known beforehand: the batch form of `qiaoban chat --script`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.companion.events import EndEvent, NoticeEvent, SafetyEvent, TextEvent
from qiaoban.companion.session import Companion, Session
from qiaoban.conversation import Lang


class ScriptedTalk(BaseModel):
    """One line of a script. `lang` and `age` may be left out: the child's words and minors' mode decide.

    Other keys are passed over, so that cards and labelled talks can be played as they are.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    lang: Lang | None = None
    age: int | None = Field(default=None, ge=3, le=17)
    child_turns: tuple[str, ...] = Field(min_length=1)


async def play_turn(companion: Companion, session: Session, child: str) -> tuple[dict[str, Any], EndEvent]:
    """One turn as the batch form gives it, and how it ended."""
    safety, end, said = None, None, []
    async for event in companion.reply(session, child):
        match event:
            case SafetyEvent():
                safety = event
            case NoticeEvent() | TextEvent():
                said.append(event.text.strip())
            case EndEvent():
                end = event
    assert safety is not None and end is not None, "a turn has one SafetyEvent and one EndEvent"  # noqa: S101, PT018
    glue = "" if session.last_lang == "zh" else " "
    row = {
        "child": child,
        "reply": glue.join(said),
        "acts": [act.value for act in end.acts],
        "safety": {
            "severity": safety.severity.value,
            "category": safety.category.value,
            "action": safety.action.value,
            "guardian_may_be_source": safety.guardian_may_be_source,
        },
        "output_guard": {"replaced": end.output_guard.replaced, "reasons": list(end.output_guard.reasons)},
        "first_token_ms": end.first_token_ms,
        "ttft_ms": end.ttft_ms,
        "total_ms": end.total_ms,
    }
    return row, end


async def play(
    companion: Companion, talk: ScriptedTalk, *, jurisdiction: str | None = None, seed: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A whole talk as the batch form gives it, and what failed in the engine, if anything did."""
    session = Session(id=talk.id, age=talk.age, lang=talk.lang, jurisdiction=jurisdiction, seed=seed)
    rows, failures, versions = [], [], {}
    for child in talk.child_turns:
        row, end = await play_turn(companion, session, child)
        rows.append(row)
        versions = dict(end.versions)
        if end.failed:
            failures.append(end.failed)
    return {"id": talk.id, "turns": rows, "model": versions.get("model", ""), "versions": versions}, failures
