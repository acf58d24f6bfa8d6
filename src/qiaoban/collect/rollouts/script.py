"""`script`: the whole dialogue in one call. Cheap breadth, and the way of 2023: its prompt is one of the templates.

SoulChat2.0 and CATCH find that one-shot dialogues grow alike; use it beside role-play and not instead.
"""

from __future__ import annotations

import re

from qiaoban.collect.card import Card
from qiaoban.collect.reading import lines_of, script_of
from qiaoban.collect.rollouts.studio import Studio, system, user
from qiaoban.conversation import Conversation, Turn
from qiaoban.teacher.answers import BadReplyError

_TOKENS = 3000
_SHORTEST = 0.5  # of the length asked for: under it the answer is a fragment
_UNIT = re.compile(r"[\u4e00-\u9fff]|[A-Za-z']+")


async def rollout(card: Card, studio: Studio) -> Conversation:
    """See the module."""
    prompts, facts = studio.of(card), studio.of(card).facts(card)
    if card.template == "seed2023":
        question = [user(prompts.text("seed2023.user", facts | {"topic": facts["scene"]}))]
        turns = await studio.ask(
            card, "script", question, lambda text: whole(card, lines_of(text)), max_tokens=_TOKENS, again="plain"
        )
    else:
        question = [system(prompts.text("script.system", facts)), user(prompts.text("script.user", facts))]
        turns = await studio.ask(
            card, "script", question, lambda text: whole(card, script_of(text)), max_tokens=_TOKENS, again="json"
        )
    return studio.conversation(card, opened(card, turns))


def whole(card: Card, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns, if they are a dialogue of about the length that was asked for; a child's last line without answer is cut."""
    if turns[-1].role == "user":
        turns = turns[:-1]
    if len(turns) < 2:
        raise BadReplyError("too_short", "there was no answer to the child")
    if card.length:
        length = sum(len(_UNIT.findall(turn.content)) for turn in turns)
        if length < card.length[0] * _SHORTEST:
            raise BadReplyError("too_short", f"it had {length} words of at least {card.length[0]}")
    return turns


def opened(card: Card, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns with the card's emotion on the child's first, and its distress where the teacher gave none."""
    first = turns[0]
    distress = card.distress if first.distress is None else first.distress
    return (first.model_copy(update={"emotion": card.emotion, "distress": distress}), *turns[1:])
