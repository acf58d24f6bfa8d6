"""How varied the turns of child and companion are, measured on samples of one size.

All of these measures depend on how much text is looked at: distinct-n falls and compression rises with length by themselves
(Shaib et al. 2024, "Standardizing the Measurement of Text Diversity"). So turns are drawn at random, without replacement and
by a fixed seed, and every measure looks at the same number of turns, or of characters (Chinese) and words (English). Those
three of Shaib et al. that are little correlated come first: compression, self-repetition of long n-grams, self-BLEU.
"""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qiaoban.conversation import Conversation, Lang, language
from qiaoban.curate.near import fold

SAMPLE_TURNS = 500
SAMPLE_UNITS: Mapping[Lang, int] = {"zh": 5000, "en": 3000}
LONG: Mapping[Lang, int] = {"zh": 7, "en": 4}  # a Chinese word is nearly two characters
OPENING: Mapping[Lang, int] = {"zh": 4, "en": 2}  # as in the rule template_opening
SPEAKERS = {"user": "child", "assistant": "companion"}
_HELD = 2000  # turns in a reservoir: enough short ones to fill SAMPLE_UNITS
_LONGEST = 2000  # characters of a turn that are held, so that memory stays bounded whatever is in the file
_ORDERS = 4  # BLEU looks at runs of one to four
_EPSILON = 0.1  # for an order without any match: smoothing 1 of Chen & Cherry 2014

Units = tuple[str, ...]


class Reservoir:
    """A sample of fixed size in which every turn has the same chance to stand (Vitter 1985, algorithm R)."""

    def __init__(self, seed: str, size: int = _HELD) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a sample, no secret
        self._size = size
        self._held: list[str] = []
        self.seen = 0

    def add(self, text: str) -> None:
        """One more turn."""
        self.seen += 1
        if len(self._held) < self._size:
            self._held.append(text[:_LONGEST])
        elif (place := self._random.randrange(self.seen)) < self._size:
            self._held[place] = text[:_LONGEST]

    def drawn(self) -> list[str]:
        """The sample in an order of its own, as the place in a reservoir depends on when a turn came."""
        order = random.Random(len(self._held))  # noqa: S311 - as above
        return order.sample(self._held, len(self._held))


class Samples:
    """Reservoirs by language and speaker."""

    def __init__(self) -> None:
        self._reservoirs: dict[tuple[Lang, str], Reservoir] = {}

    def add(self, talk: Conversation) -> None:
        """The turns of a talk. Empty ones say nothing of how varied the others are."""
        lang = language(talk)
        for turn in talk.turns:
            if turn.role in SPEAKERS and turn.content.strip():
                key = (lang, SPEAKERS[turn.role])
                self._reservoirs.setdefault(key, Reservoir(" ".join(key))).add(turn.content)

    def measured(self) -> Iterator[Diversity]:
        """Chinese before English, the companion before the child."""
        for lang, who in sorted(self._reservoirs, key=lambda key: (key[0] != "zh", key[1] != "companion")):
            reservoir = self._reservoirs[lang, who]
            yield diversity(reservoir.drawn(), lang=lang, who=who, seen=reservoir.seen)


@dataclass(frozen=True)
class Diversity:
    """The measures of one speaker in one language; None where there is too little text to measure.

    `seen` counts all turns, `turns` and `units` are what was measured; only full samples may be compared with each other.
    """

    lang: Lang
    who: str
    seen: int
    turns: int
    units: int
    compression: float | None
    repetition: float | None
    self_bleu: float | None
    distinct: tuple[float | None, ...]
    openers: float | None

    @property
    def full(self) -> bool:
        """Whether both samples have their full size."""
        return self.turns == SAMPLE_TURNS and self.units == SAMPLE_UNITS[self.lang]

    @property
    def highest_openers(self) -> float:
        """The entropy if no two openings were the same, in bits."""
        return math.log2(self.turns) if self.turns else 0.0


def diversity(texts: Sequence[str], *, lang: Lang, who: str, seen: int) -> Diversity:
    """Measure turns that were drawn at random: the first `SAMPLE_TURNS` of them, and the first `SAMPLE_UNITS` units."""
    folded = [units_of(text, lang) for text in texts]
    turns = [each for each in folded if each][:SAMPLE_TURNS]  # dots alone fold to nothing
    text = _first_units(folded, SAMPLE_UNITS[lang])
    gap = "" if lang == "zh" else " "
    return Diversity(
        lang=lang,
        who=who,
        seen=seen,
        turns=len(turns),
        units=sum(map(len, text)),
        compression=compression_ratio("\n".join(gap.join(each) for each in text)),
        repetition=self_repetition(turns, LONG[lang]),
        self_bleu=self_bleu(turns),
        distinct=tuple(distinct(text, n) for n in (1, 2, 3)),
        openers=opener_entropy(turns, OPENING[lang]),
    )


def units_of(text: str, lang: Lang) -> Units:
    """Characters in Chinese, words in English; lower case, without punctuation, as duplicates are compared."""
    folded = fold(text, lang).text
    return tuple(folded) if lang == "zh" else tuple(folded.split())


def compression_ratio(text: str) -> float | None:
    """Bytes of UTF-8 over bytes after DEFLATE at level 9: the higher, the more repeats. None for no text."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None


def distinct(turns: Sequence[Units], n: int) -> float | None:
    """Different n-grams over all n-grams within turns (Li et al. 2016, "A Diversity-Promoting Objective Function")."""
    grams = [gram for turn in turns for gram in runs(turn, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_repetition(turns: Sequence[Units], n: int) -> float | None:
    """Mean over turns of log(1 + k), where k sums over a turn's different n-grams in how many other turns each stands.

    Salkar et al. 2022, "Self-Repetition in Abstractive Neural Summarizers", as Shaib et al. 2024 compute it. 0 means that no
    long run of words is said twice.
    """
    own = [set(runs(turn, n)) for turn in turns]
    where = Counter(gram for each in own for gram in each)
    return sum(math.log1p(sum(where[gram] - 1 for gram in each)) for each in own) / len(own) if own else None


def self_bleu(turns: Sequence[Units]) -> float | None:
    """Mean BLEU-4 of each turn against all others, 0 to 1 (Zhu et al. 2018, "Texygen"): the higher, the more alike.

    Turns of fewer than four units have no run of four; they are references only. None where nothing can be compared.
    """
    if len(turns) < 2:
        return None
    best = [_best_counts(turns, n) for n in range(1, _ORDERS + 1)]
    lengths = Counter(map(len, turns))
    scores = [_bleu(place, turn, best, lengths) for place, turn in enumerate(turns) if len(turn) >= _ORDERS]
    return sum(scores) / len(scores) if scores else None


def opener_entropy(turns: Sequence[Units], size: int) -> float | None:
    """Shannon entropy, in bits, of the first `size` units of the turns: 0 if all begin alike. None without turns."""
    counts = Counter(turn[:size] for turn in turns)
    total = counts.total()
    return sum(n / total * math.log2(total / n) for n in counts.values()) if total else None


def runs(units: Units, n: int) -> Iterator[Units]:
    """The n-grams in order, none where the text is shorter."""
    return (units[at : at + n] for at in range(len(units) - n + 1))


def _first_units(turns: Sequence[Units], size: int) -> list[Units]:
    """Turns until they hold `size` units together; the last one is cut."""
    taken: list[Units] = []
    left = size
    for turn in turns:
        if not left:
            break
        taken.append(turn[:left])
        left -= len(taken[-1])
    return taken


class _Best:
    """How often an n-gram stands in the turn that has most of it, which turn that is, and how often in the next best."""

    __slots__ = ("most", "owner", "second")

    def __init__(self) -> None:
        self.most, self.owner, self.second = 0, -1, 0

    def add(self, place: int, count: int) -> None:
        if count > self.most:
            self.most, self.owner, self.second = count, place, self.most
        else:
            self.second = max(self.second, count)

    def besides(self, place: int) -> int:
        return self.second if place == self.owner else self.most


def _best_counts(turns: Sequence[Units], n: int) -> dict[Units, _Best]:
    best: dict[Units, _Best] = {}
    for place, turn in enumerate(turns):
        for gram, count in Counter(runs(turn, n)).items():
            best.setdefault(gram, _Best()).add(place, count)
    return best


def _bleu(place: int, turn: Units, best: Sequence[Mapping[Units, _Best]], lengths: Counter[int]) -> float:
    logs = 0.0
    for n, table in enumerate(best, start=1):
        counts = Counter(runs(turn, n))
        hits = sum(min(count, table[gram].besides(place)) for gram, count in counts.items())
        logs += math.log((hits or _EPSILON) / counts.total()) / _ORDERS
    others = (length for length, count in lengths.items() if count > (length == len(turn)))
    nearest = min(others, key=lambda length: (abs(length - len(turn)), length))
    return math.exp(logs + min(0.0, 1 - nearest / len(turn)))
