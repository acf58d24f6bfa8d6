"""Whether a quotation really stands in a talk: a level without evidence is not counted."""

from __future__ import annotations

import re
import unicodedata

from qiaoban.conversation import Conversation

_SHORTEST = 2  # letters or characters
_HAN_GAP = re.compile(r"(?<=[\u3400-\u9fff]) | (?=[\u3400-\u9fff])")
_NOISE = re.compile(r"[\s“”\"'‘’「」『』….。,，!！?？:：;；、~～—-]+")


class Evidence:
    """The turns of a talk, ready to be searched."""

    def __init__(self, talk: Conversation) -> None:
        said = [turn.content for turn in talk.turns if turn.role != "system"]
        self._turns, self._whole = [_plain(text) for text in said], [text.strip() for text in said]

    def turn_of(self, quote: str | None, claimed: int | None = None) -> int | None:
        """The turn (from 1) in which `quote` stands, the `claimed` one if it can be; None where it stands in none.

        Punctuation and the width of characters do not matter; words and their order do. A quotation of one character, or of
        dots alone, must be a whole turn.
        """
        wanted, raw = _plain(quote or ""), (quote or "").strip()
        if len(wanted.strip()) < _SHORTEST:
            places = [n for n, turn in enumerate(self._whole, start=1) if raw and turn == raw]
        else:
            places = [n for n, turn in enumerate(self._turns, start=1) if wanted in turn]
        return claimed if claimed in places else places[0] if places else None


def _plain(text: str) -> str:
    """Words with a space on either side, so that no part of one is found; Chinese without spaces."""
    words = f" {_NOISE.sub(' ', unicodedata.normalize('NFKC', text).casefold()).strip()} "
    return _HAN_GAP.sub("", words)
