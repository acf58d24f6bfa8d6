"""`expand`: a child's single message grows into a talk (after SMILE, which grounds talks in real questions)."""

from __future__ import annotations

from qiaoban.collect.card import Card
from qiaoban.collect.reading import script_of
from qiaoban.collect.rollouts.script import opened, whole
from qiaoban.collect.rollouts.studio import Studio, system, user
from qiaoban.conversation import Conversation, Turn
from qiaoban.errors import DataError

_TOKENS = 2500


async def rollout(card: Card, studio: Studio) -> Conversation:
    """The first turn is the message word for word, whatever the teacher makes of it."""
    if card.given is None or card.given.turns[0].role != "user":
        raise DataError(f"card {card.id!r} has no message of a child to grow")
    prompts, message = studio.of(card), card.given.turns[0].content
    facts = prompts.facts(card) | {"message": message}
    question = [system(prompts.text("expand.system", facts)), user(prompts.text("expand.user", facts))]

    def read(text: str) -> tuple[Turn, ...]:
        first, *rest = whole(card, script_of(text))
        return (first.model_copy(update={"content": message}), *rest)

    turns = await studio.ask(card, "expand", question, read, max_tokens=_TOKENS, again="json")
    return studio.conversation(card, opened(card, turns))
