"""Collecting in rounds: every open card goes as far as its stored answers lead, and what is missing is asked for together.

This is how provider batch APIs (half the price, a day of patience) and offline engines on a cluster want to be fed. Modes of
one call need one round, and one more for what could not be read; a role-play needs one for each turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from qiaoban.collect.card import Card
from qiaoban.collect.rollouts import ROLLOUTS
from qiaoban.collect.rollouts.studio import Studio
from qiaoban.errors import EngineError
from qiaoban.teacher.ask import CardFailedError
from qiaoban.teacher.ledger import Call, Ledger

Post = Callable[[Mapping[str, Call]], Awaitable[None]]
_SENDS = 3  # of one call, before its card fails
_AT_ONCE = 50_000  # calls in one round, which bounds memory and suits the largest batch jobs


class MissingAnswerError(Exception):
    """The answer is not in the ledger yet."""


@dataclass(kw_only=True)
class RoundSource:
    """A `Source` that only looks into the ledger and remembers, by key, what it did not find."""

    ledger: Ledger
    wanted: dict[str, Call] = field(default_factory=dict)

    async def answer(self, call: Call) -> str:
        """See `Source`. Raises `MissingAnswerError`; `CardFailedError` for a call that was refused again and again."""
        key = call.key
        if (stored := self.ledger.answer(key)) is not None:
            return stored
        sends, fault = self.ledger.sends(key)
        if sends >= _SENDS * self.ledger.rounds(call.card):
            raise CardFailedError(f"{call.slot}: {fault or 'no answer'} ({sends} times)")
        self.wanted[key] = call
        raise MissingAnswerError


async def collect_in_rounds(
    cards: Callable[[], Iterable[Card]], studio: Studio, source: RoundSource, post: Post, *, on_round: Callable[[int], None]
) -> None:
    """Settle the open `cards`. `post` gets the missing calls by key and stores their answers in the ledger.

    Raises `EngineError` when a round brings no answer at all. Stopped at any point, it can be called again.
    """
    ledger = source.ledger
    while True:
        source.wanted.clear()
        for card in cards():
            try:
                talk = await ROLLOUTS[card.mode](card, studio)
            except MissingAnswerError:
                if len(source.wanted) >= _AT_ONCE:
                    break
            except CardFailedError as error:
                ledger.failed(card.id, card.sha, str(error))
            else:
                ledger.done(card.id, card.sha, talk.to_json())
        if not source.wanted:
            return
        on_round(len(source.wanted))
        before = ledger.totals()
        await post(source.wanted)
        after = ledger.totals()
        if after.answered == before.answered and all(ledger.sends(key)[0] == 0 for key in source.wanted):
            raise EngineError("a whole round brought no answer", hint="see the provider's console, then run again")
