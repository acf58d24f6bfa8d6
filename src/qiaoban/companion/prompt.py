"""What the model reads: who it is (fixed for a talk, so that it stays in the cache), the talk, and guidance at the very end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand, Lang, Turn

_HAN = re.compile(r"[\u3400-\u9fff]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


def language_of(text: str, otherwise: Lang) -> Lang:
    """The language of a child's words; `otherwise` where they do not tell (digits, emoji, one letter).

    Any Han character outweighs three Latin words: children put English words into Chinese, hardly the other way round.
    """
    han, latin = len(_HAN.findall(text)), len(_LATIN_WORD.findall(text))
    if han == latin == 0:
        return otherwise
    return "zh" if han * 3 >= latin else "en"


@dataclass(frozen=True)
class PromptBook:
    """The coaching instruction, the guidance by safety category and the notices of one language."""

    table: Mapping[str, Any]

    @property
    def version(self) -> str:
        """Goes into the log of every turn."""
        return str(self.table["version"])

    def opening(self, band: AgeBand) -> tuple[Turn, ...]:
        """The turns before the talk: the instruction for this age, then a few example turns that show the manner."""
        system = f"{self.table['coach'].strip()}\n{self.table['bands'][band.value].strip()}"
        shown = [
            turn
            for pair in self.table["example"]
            for turn in (Turn(role="user", content=pair["child"]), Turn(role="assistant", content=pair["companion"]))
        ]
        return (Turn(role="system", content=system), *shown)

    def guidance(self, category: str) -> str:
        """A word to the model about this one turn."""
        table: Mapping[str, str] = self.table["guidance"]
        return table.get(category, table["default"]).strip()

    def disclosure(self, band: AgeBand) -> str:
        """The companion says that it is a computer and not a person, in words for this age."""
        return str(self.table["disclosure"][band.value]).strip()


def load_prompt_book(lang: Lang) -> PromptBook:
    """The prompts of one language out of the bank."""
    return PromptBook(read_table(f"prompts/{lang}.toml"))


def fit_history(turns: Sequence[Turn], start: int, *, count: Callable[[Sequence[Turn]], int], room: int) -> int:
    """Where the history shown to the model begins: `start`, or later when `turns[start:]` takes more than `room` tokens.

    Cuts before a child's turn, never inside one. When it has to cut it goes down to half of `room`, so that the cached prefix
    is given up once in many turns and not at every turn. The last turn always stays.
    """
    if count(turns[start:]) <= room:
        return start
    cuts = [i for i in range(start + 1, len(turns)) if turns[i].role == "user"] or [len(turns) - 1]
    return next((i for i in cuts if count(turns[i:]) <= room // 2), cuts[-1])
