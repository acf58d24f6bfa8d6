"""Figures of the talks that are left, gathered in one pass and in bounded memory."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from qiaoban.conversation import Act, AgeBand, Conversation, Emotion, Lang, language
from qiaoban.curate.pipeline import ORIGINS
from qiaoban.formats.figures import UNLABELLED, Labels, Lengths, length_in
from qiaoban.report.diversity import SPEAKERS, Samples

UNITS: dict[Lang, str] = {"zh": "characters", "en": "words"}
BANDS = (*(band.value for band in AgeBand), UNLABELLED)
_DAY = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])", re.ASCII)
_OF_META = ("age_band", "domain", "emotion", "outcome", "risk")
_OF_PROVENANCE = ("source", "teacher", "mode", "licence")


@dataclass(frozen=True)
class LengthRow:
    """How long turns are. `median` and `p95` are in `unit`."""

    who: str
    band: str
    unit: str
    turns: int
    median: int
    p95: int


@dataclass
class ActFigures:
    """Acts of companion turns. A bigram is an act and the one written next, also across turns; no label breaks the chain."""

    turns: int = 0
    labelled: int = 0
    counts: Counter[Act] = field(default_factory=Counter)
    bigrams: Counter[tuple[Act, Act]] = field(default_factory=Counter)

    def add(self, talk: Conversation) -> None:
        """The companion turns of a talk."""
        chain: list[Act] = []
        for turn in talk.turns:
            if turn.role != "assistant":
                continue
            self.turns += 1
            self.labelled += bool(turn.acts)
            self.counts.update(turn.acts)
            chain = [*chain[-1:], *turn.acts] if turn.acts else []
            self.bigrams.update(pairwise(chain))


class TalkFigures:
    """Everything that is counted in talks. `turns` are those of child and companion."""

    def __init__(self) -> None:
        self.talks = 0
        self.turns = 0
        self.per_talk: Counter[int] = Counter()
        self.acts = ActFigures()
        self.heat: Counter[tuple[Emotion, str]] = Counter()
        self.origin: Counter[str] = Counter()
        self.samples = Samples()
        self.days: tuple[str, str] | None = None
        self.splits = False
        self._labels = Labels(["lang", *_OF_META, *_OF_PROVENANCE])
        self._lengths: defaultdict[tuple[str, str, str], Lengths] = defaultdict(Lengths)

    def add(self, talk: Conversation) -> None:
        """Count one talk."""
        lang, band = language(talk), str(talk.meta.age_band or UNLABELLED)
        spoken = [turn for turn in talk.turns if turn.role in SPEAKERS]
        self.talks += 1
        self.turns += len(spoken)
        self.per_talk[len(spoken)] += 1
        self.acts.add(talk)
        self.samples.add(talk)
        for turn in spoken:
            unit = UNITS[lang]
            self._lengths[SPEAKERS[turn.role], band, unit].add(length_in(unit, turn.content))
        if talk.meta.emotion is not None:
            self.heat[talk.meta.emotion, band] += 1
        self._label(talk, lang)

    def labels(self, name: str) -> dict[str, int]:
        """How often each value of a label comes, the most frequent first; `(none)` stands for talks without it."""
        return self._labels.summary()[name]

    def lengths(self) -> Iterator[LengthRow]:
        """By speaker, unit and age band."""
        for who, unit, band in ((who, unit, band) for who in SPEAKERS.values() for unit in UNITS.values() for band in BANDS):
            if each := self._lengths.get((who, band, unit)):
                figures = each.summary()
                yield LengthRow(who, band, unit, int(figures["count"]), int(figures["median"]), int(figures["p95"]))

    def _label(self, talk: Conversation, lang: Lang) -> None:
        self._labels.add("lang", lang)
        for name in _OF_META:
            self._labels.add(name, getattr(talk.meta, name))
        for name in _OF_PROVENANCE:
            self._labels.add(name, getattr(talk.provenance, name))
        self.origin[ORIGINS[talk.provenance.synthetic]] += 1
        self.splits = self.splits or talk.split is not None
        if (day := (talk.provenance.created_at or "")[:10]) and _DAY.fullmatch(day):
            first, last = self.days or (day, day)
            self.days = min(first, day), max(last, day)
