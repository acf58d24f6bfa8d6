"""Figures of a file of talks or pairs, gathered in one pass and in little memory.

Turns with Han characters are measured in characters (without spaces), the others in words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from qiaoban.conversation import Conversation, Turn
from qiaoban.formats.pairs import Pair
from qiaoban.formats.record import REPEATED, Notes

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SPACE = re.compile(r"\s+")
_MANY = 1000  # different values of a label that are kept: more is no label but free text
UNLABELLED, OTHERS = "(none)", "(others)"


class Lengths:
    """A histogram of lengths: exact quantiles, and memory for the different lengths only."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """One more of this length."""
        self._counts[length] += 1

    def summary(self) -> dict[str, float]:
        """count, median, p95 and max."""
        return {
            "count": self._counts.total(),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": max(self._counts),
        }

    def quantile(self, share: float) -> int:
        """The smallest length that so large a share does not exceed."""
        wanted, passed = share * self._counts.total(), 0
        for length in sorted(self._counts):
            passed += self._counts[length]
            if passed >= wanted:
                return length
        return 0


def measure(text: str) -> tuple[str, int]:
    """Length of a turn, and in what: characters or words."""
    unit = "characters" if _HAN.search(text) else "words"
    return unit, length_in(unit, text)


def length_in(unit: str, text: str) -> int:
    """Length in `characters` (without spaces) or in `words`."""
    return len(_SPACE.sub("", text)) if unit == "characters" else len(_WORD.findall(text))


class _Sizes:
    """Lengths by speaker and unit."""

    def __init__(self) -> None:
        self._lengths: defaultdict[str, defaultdict[str, Lengths]] = defaultdict(lambda: defaultdict(Lengths))

    def add(self, who: str, turn: Turn) -> None:
        unit, length = measure(turn.content)
        self._lengths[who][unit].add(length)

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        return {who: {unit: each.summary() for unit, each in sorted(units.items())} for who, units in self._lengths.items()}


class Labels:
    """How often each value of each label comes; free text is cut at a thousand different values."""

    def __init__(self, names: Iterable[str]) -> None:
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, name: str, value: object) -> None:
        """One more `value` of the label `name`; None counts as unlabelled."""
        counts, key = self._counts[name], UNLABELLED if value is None else str(value)
        counts[key if key in counts or len(counts) < _MANY else OTHERS] += 1

    def summary(self) -> dict[str, dict[str, int]]:
        """Label → value → count, the most frequent first."""
        return {name: dict(counts.most_common()) for name, counts in self._counts.items()}


def talk_figures(talks: Iterable[Conversation], notes: Notes) -> dict[str, Any]:
    """Counts, lengths by role, and how often each label comes. `notes` is what the reader filled."""
    count, turns, sizes, length = 0, 0, _Sizes(), Lengths()
    of_talk = ("lang", "age_band", "domain", "emotion", "outcome", "risk")
    labels = Labels([*of_talk, "split", "acts", "turn emotion", "distress"])
    for talk in talks:
        count, turns = count + 1, turns + len(talk.turns)
        length.add(len(talk.turns))
        for name in of_talk:
            labels.add(name, getattr(talk.meta, name))
        labels.add("split", talk.split)
        for turn in talk.turns:
            sizes.add(turn.role, turn)
            _label_turn(labels, turn)
    return {
        "talks": count,
        "turns": turns,
        "turns per talk": length.summary() if count else {},
        "lengths": sizes.summary(),
        "labels": labels.summary(),
        "repeated ids": notes[REPEATED],
        "notes": dict(notes),
    }


def _label_turn(labels: Labels, turn: Turn) -> None:
    for act in turn.acts:
        labels.add("acts", act)
    if turn.emotion is not None:
        labels.add("turn emotion", turn.emotion)
    if turn.distress is not None:
        labels.add("distress", turn.distress)


def pair_figures(items: Iterable[Pair], notes: Notes) -> dict[str, Any]:
    """As `talk_figures`, for preference pairs."""
    count, turns, sizes = 0, 0, _Sizes()
    labels = Labels(["lang", "pair_type"])
    for pair in items:
        count += 1
        labels.add("lang", pair.lang)
        labels.add("pair_type", pair.pair_type)
        for side, said in pair.sides().items():
            turns += len(said)
            for turn in said:
                sizes.add(side, turn)
    return {
        "pairs": count,
        "turns": turns,
        "lengths": sizes.summary(),
        "labels": labels.summary(),
        "repeated ids": notes[REPEATED],
        "notes": dict(notes),
    }
