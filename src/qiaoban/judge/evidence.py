"""Whether a quotation really stands in a talk: a level without evidence is not counted."""

from __future__ import annotations

import re
import unicodedata

from qiaoban.conversation import Conversation

_SHORTEST = 2  # letters or characters
_NOISE = re.compile(r"[\s“”\"'‘’「」『』….。,，!！?？:：;；、~～—-]+")


class Evidence:
    """The turns of a talk, ready to be searched."""

    def __init__(self, talk: Conversation) -> None:
        self._turns = [_plain(turn.content) for turn in talk.turns if turn.role != "system"]

    def turn_of(self, quote: str | None, claimed: int | None = None) -> int | None:
        """The turn (from 1) in which `quote` stands, the `claimed` one if it can be; None where it stands in none.

        Spaces, punctuation and the width of characters do not matter; words and their order do.
        """
        wanted = _plain(quote or "")
        if len(wanted) < _SHORTEST:
            return None
        places = [n for n, turn in enumerate(self._turns, start=1) if wanted in turn]
        return claimed if claimed in places else places[0] if places else None


def _plain(text: str) -> str:
    return _NOISE.sub("", unicodedata.normalize("NFKC", text).casefold())
