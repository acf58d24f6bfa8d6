"""Cutting a stream of text into sentences, the unit in which a reply is checked and released."""

from __future__ import annotations

_ENDS = frozenset("。！？!?\n")
_CLOSERS = frozenset("”’」』）)】》\"'。！？!?…~～.\u200d\ufe0f")
_SOFT = frozenset("，,；;、：: ")
_ABBREVIATIONS = ("mr", "mrs", "ms", "dr", "st", "e.g", "i.e", "etc", "vs", "p.s")
LONGEST = 160  # characters held back at most; a longer stretch without an end is cut at a comma


class SentenceSplitter:
    """Feed it pieces, get whole sentences back. How the text was cut into pieces makes no difference to the sentences.

    Concatenated, the sentences are the text: nothing is dropped, not even white space.
    """

    def __init__(self) -> None:
        self._held = ""
        self._ended = False

    def feed(self, text: str) -> list[str]:
        """Sentences that are complete now. One that may still grow a closing quote or an emoji is held."""
        return [sentence for char in text if (sentence := self._push(char))]

    def flush(self) -> str:
        """What is left at the end of the reply; may be empty."""
        rest, self._held, self._ended = self._held, "", False
        return rest

    def _push(self, char: str) -> str:
        """Take one character; give back the sentence that it shows to be complete, or an empty string."""
        done = ""
        if self._ended and not self._continues(char):
            done = self.flush()
        elif len(self._held) >= LONGEST:
            done = self._cut()
        self._held += char
        self._ended = self._ended or self._ends(char)
        return done

    def _continues(self, char: str) -> bool:
        """Whether `char` still belongs to a sentence that has ended: closers, emoji, and the white space behind it."""
        return char in _CLOSERS or char.isspace() or _is_emoji(char)

    def _ends(self, char: str) -> bool:
        if char in _ENDS:
            return True
        # A full stop ends a sentence only before white space, and not behind an abbreviation or a bare number.
        before = self._held[:-1].rstrip("\"'”’)") if char.isspace() else ""
        if not before.endswith("."):
            return False
        word = before.rstrip(".").rsplit(maxsplit=1)[-1:] or [""]
        return word[0].lower().lstrip("\"'(") not in _ABBREVIATIONS and not word[0].isdigit()

    def _cut(self) -> str:
        at = max(self._held.rfind(char) for char in _SOFT) + 1 or len(self._held)
        done, self._held = self._held[:at], self._held[at:]
        return done


def _is_emoji(char: str) -> bool:
    code = ord(char)
    return 0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or 0xE0020 <= code <= 0xE007F


def split_sentences(text: str) -> list[str]:
    """All sentences of a finished text."""
    splitter = SentenceSplitter()
    sentences = splitter.feed(text)
    rest = splitter.flush()
    return [*sentences, rest] if rest else sentences
