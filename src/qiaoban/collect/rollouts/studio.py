"""What every rollout works with: the teacher, the prompts of each language, and how a finished dialogue is written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, get_args

from qiaoban.collect.card import Card
from qiaoban.collect.plan import read_topics
from qiaoban.collect.prompts import Prompts
from qiaoban.conversation import Conversation, Lang, Meta, Provenance, Turn
from qiaoban.teacher.ask import Ask, Source, Teacher
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Ledger

T = TypeVar("T")
_TEMPERATURE = 0.9  # variety is wanted; curation removes what went wrong


@dataclass(frozen=True, kw_only=True)
class Studio:
    """One teacher with its prompts. `licence` is what the teacher's outputs may be used under, if it is known."""

    teacher: Teacher
    prompts: Mapping[Lang, Prompts]
    licence: str | None = None

    def of(self, card: Card) -> Prompts:
        """The prompts in the card's language."""
        return self.prompts[card.lang]

    async def ask(
        self, card: Card, slot: str, messages: Sequence[Turn], read: Callable[[str], T], *, max_tokens: int, again: str
    ) -> T:
        """Ask the teacher; `again` names the text of `[reask]` that a second try gets, of which `json` also asks for JSON."""
        text = self.of(card).line(f"reask.{again}")
        question = Ask(
            card=card.id,
            slot=slot,
            messages=messages,
            max_tokens=max_tokens,
            temperature=_TEMPERATURE,
            json=again == "json",
            again=text,
        )
        return await self.teacher.ask(question, read)

    def conversation(self, card: Card, turns: Sequence[Turn]) -> Conversation:
        """The finished dialogue with what it is about and where it came from."""
        meta = Meta(
            lang=card.lang,
            topic=card.scenario or card.scene or card.task or (card.given.meta.topic if card.given else None),
            domain=card.domain,
            age_band=card.child.band,
            emotion=card.emotion,
            outcome=card.outcome,
            risk=card.risk,
            relation="companion",
        )
        provenance = Provenance(
            source=card.given.id if card.given else None,
            teacher=self.teacher.model,
            mode=card.mode,
            template_sha=self.of(card).sha,
            card_sha=card.sha,
            licence=self.licence,
            synthetic=True,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Conversation(id=card.id, turns=tuple(turns), meta=meta, provenance=provenance)


def open_studio(job: Job, ledger: Ledger, source: Source, topics: Path) -> Studio:
    """The teacher of `job` with its prompts, and the user's own topics where the folder `topics` has some."""
    extra = [read_topics(path) for path in sorted(topics.glob("*.toml"))]
    prompts = {lang: Prompts(lang, extra) for lang in get_args(Lang)}
    return Studio(teacher=job.teacher(ledger, source), prompts=prompts, licence=job.licence)


def system(text: str) -> Turn:
    """A system message."""
    return Turn(role="system", content=text)


def user(text: str) -> Turn:
    """A user message."""
    return Turn(role="user", content=text)


def assistant(text: str) -> Turn:
    """An assistant message."""
    return Turn(role="assistant", content=text)
