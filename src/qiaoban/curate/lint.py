"""The linter: which dialogues break which rule, and where. It streams; nothing is changed, nothing is thrown away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from qiaoban.conversation import Conversation, Lang
from qiaoban.curate.rules import Finding, Rule, choose_rules
from qiaoban.curate.rules_corpus import CORPUS_RULES, CorpusCounts
from qiaoban.curate.rules_shape import shape_hits
from qiaoban.curate.rules_talk import Hit, talk_hits, talk_rows
from qiaoban.curate.rules_words import word_hits
from qiaoban.curate.table import chunks, turns_table

_QUOTED = 60  # characters of the words that a message quotes


def lint(talks: Iterable[Conversation], *, rules: Iterable[str] | None = None) -> Iterator[Finding]:
    """Findings in the order of the talks, those of the corpus rules after all others.

    `rules` names the rules to run, all by default; `UsageError` for an unknown one. Talks are read once, in chunks.
    """
    chosen = choose_rules(None if rules is None else tuple(rules))
    return _findings(talks, Messages(chosen), frozenset(rule.id for rule in chosen))


def _findings(talks: Iterable[Conversation], messages: Messages, wanted: frozenset[str]) -> Iterator[Finding]:
    with TemporaryDirectory(prefix="qiaoban-lint-") as folder:
        counts = CorpusCounts(Path(folder), wanted)
        for chunk in chunks(talks):
            turns = turns_table(chunk)
            about = _languages(chunk, turns)
            yield from messages.of(chunk_hits(chunk, turns, wanted), about)
            if wanted & CORPUS_RULES:
                counts.add(turns, about)
        for about, hits in counts.hits():
            yield from messages.of(hits, about)


def chunk_hits(talks: Sequence[Conversation], turns: pl.DataFrame, wanted: frozenset[str]) -> list[Hit]:
    """Everything in one chunk that breaks a rule: talk in the chunk, turn, rule, words."""
    by_row = pl.concat([shape_hits(turns, wanted), word_hits(turns, wanted), talk_rows(turns, wanted)])
    by_row = by_row.unique(["row", "rule"], keep="first", maintain_order=True)
    placed = by_row.join(turns.select("row", "talk", "turn"), on="row", how="left", maintain_order="left")
    hits = [*placed.select("talk", "turn", "rule", "words").iter_rows(), *talk_hits(talks, turns, wanted)]
    return list({hit[:3]: hit for hit in reversed(hits)}.values())  # one finding a place and rule


def _languages(talks: Sequence[Conversation], turns: pl.DataFrame) -> list[tuple[str, Lang]]:
    """Id and language of each talk: its own, or the one that its words are in."""
    guessed = dict(turns.select("talk", "lang").unique("talk").iter_rows())
    return [(talk.id, talk.meta.lang or guessed.get(number, "zh")) for number, talk in enumerate(talks)]


class Messages:
    """Makes findings of hits: the reason of the rule in the talk's language, with the words that broke it."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = {rule.id: rule for rule in rules}
        self._order = {rule.id: number for number, rule in enumerate(rules)}

    def of(self, hits: Iterable[Hit], talks: Sequence[tuple[str, Lang]]) -> Iterator[Finding]:
        """Findings by talk, turn and rule; what concerns the whole talk comes first."""

        def place(hit: Hit) -> tuple[int, int, int]:
            return hit[0], -1 if hit[1] is None else hit[1], self._order[hit[2]]

        for talk, turn, rule, words in sorted(hits, key=place):
            name, lang = talks[talk]
            kind = self._rules[rule]
            yield Finding(name, turn, rule, kind.severity, _quote(kind.why(lang), words, lang))


def _quote(reason: str, words: str, lang: Lang) -> str:
    short = " ".join(words.split())
    short = short if len(short) <= _QUOTED else short[: _QUOTED - 1] + "…"
    if not short:
        return reason
    return f"{reason}（“{short}”）" if lang == "zh" else f"{reason} (“{short}”)"
