"""`general`: child-appropriate talk that is not about feelings, and single instructions, for the mixture."""

from __future__ import annotations

from qiaoban.collect.card import Card
from qiaoban.collect.reading import script_of
from qiaoban.collect.rollouts.script import whole
from qiaoban.collect.rollouts.studio import Studio, user
from qiaoban.conversation import Conversation, Turn

_TOKENS = 2000


async def rollout(card: Card, studio: Studio) -> Conversation:
    """One question and its answer for a card of one turn, a talk otherwise. Turns carry no coaching labels."""
    prompts = studio.of(card)
    key = "general.single" if card.turns == 1 else "general.talk"

    def read(text: str) -> tuple[Turn, ...]:
        turns = whole(card, script_of(text))
        return turns[:2] if card.turns == 1 else turns

    question = [user(prompts.text(key, prompts.facts(card)))]
    turns = await studio.ask(card, "general", question, read, max_tokens=_TOKENS, again="json")
    return studio.conversation(card, [Turn(role=turn.role, content=turn.content) for turn in turns])
