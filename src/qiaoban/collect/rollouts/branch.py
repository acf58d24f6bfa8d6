"""`branch`: another reply at one turn, with one factor changed: one of the failing styles (Gottman, Katz & Hooven 1996).

The dialogue that comes out ends with that reply. Beside the reply that was there it makes a preference pair that differs in one
thing only (DecoupledESC: entangled pairs teach ambiguously).
"""

from __future__ import annotations

from qiaoban.collect.card import Card
from qiaoban.collect.reading import tagged
from qiaoban.collect.rollouts.studio import Studio, system, user
from qiaoban.conversation import Conversation, Turn
from qiaoban.errors import DataError
from qiaoban.teacher.answers import BadReplyError

_TOKENS = 300


async def rollout(card: Card, studio: Studio) -> Conversation:
    """See the module. The failing reply carries no acts."""
    if card.given is None or card.at is None or card.factor is None:
        raise DataError(f"card {card.id!r} has no turn to branch at")
    if not 0 < card.at < len(card.given.turns) or card.given.turns[card.at].role != "assistant":
        raise DataError(f"card {card.id!r}: turn {card.at} is no reply of the companion")
    prompts, good = studio.of(card), card.given.turns[card.at].content
    before = card.given.turns[: card.at]
    definition, examples = prompts.style(card.factor)
    facts = prompts.facts(card) | {
        "history": prompts.history(before),
        "good": good,
        "style": definition,
        "examples": examples,
    }

    def read(text: str) -> str:
        _, words = tagged(text)
        if words == good:
            raise BadReplyError("unchanged", "it was the good reply again")
        return words

    question = [system(prompts.text("branch.system", facts)), user(prompts.text("branch.user", facts))]
    words = await studio.ask(card, f"branch/{card.at}", question, read, max_tokens=_TOKENS, again="tags")
    return studio.conversation(card, [*before, Turn(role="assistant", content=words)])
