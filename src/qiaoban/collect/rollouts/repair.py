"""`repair`: rewrite only the turns that a rule hit; every other turn stays as it is, to the byte."""

from __future__ import annotations

from functools import partial

from qiaoban.collect.card import Card
from qiaoban.collect.reading import spoken, tagged
from qiaoban.collect.rollouts.studio import Studio, system, user
from qiaoban.conversation import Conversation, Turn
from qiaoban.errors import DataError
from qiaoban.teacher.answers import BadReplyError

_TOKENS = 300


async def rollout(card: Card, studio: Studio) -> Conversation:
    """Later turns are mended in the light of those mended before them."""
    if card.given is None or not card.hits or max(hit.turn for hit in card.hits) >= len(card.given.turns):
        raise DataError(f"card {card.id!r} has nothing to repair, or not at that turn")
    prompts, turns = studio.of(card), list(card.given.turns)
    for at in sorted({hit.turn for hit in card.hits}):
        old = turns[at]
        facts = prompts.facts(card) | {
            "history": prompts.history(turns[:at]),
            "turn": old.content,
            "findings": "\n".join(f"- {hit.rule}: {hit.message}" for hit in card.hits if hit.turn == at),
            "speaker": prompts.line("words.companion" if old.role == "assistant" else "words.child"),
        }
        question = [system(prompts.text("repair.system", facts)), user(prompts.text("repair.user", facts))]
        again = "tags" if old.role == "assistant" else "plain"
        turns[at] = await studio.ask(card, f"repair/{at}", question, partial(_mended, old), max_tokens=_TOKENS, again=again)
    return studio.conversation(card, turns)


def _mended(old: Turn, text: str) -> Turn:
    acts, words = tagged(text) if old.role == "assistant" else ((), spoken(text))
    labelled = text.lstrip()[:1] in ("[", "［", "【")
    if words == old.content:
        raise BadReplyError("unchanged", "it was the same turn again")
    return old.model_copy(update={"content": words, "acts": acts if labelled else old.acts})
