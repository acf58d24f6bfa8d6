"""Rules about all dialogues together: openings, phrases and whole turns that come again and again.

What repeats is known only at the end, and the texts do not fit into memory. So the first pass counts and puts what it counted
on disk, and the second pass reads that back. Memory holds one row of 40 bytes a companion turn and a table of counters whose
size does not depend on the corpus; n-grams that share a counter are told apart in the second pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

FEWEST_TALKS = 100  # below, a share says nothing
OPENING_SHARE, OPENING_ZH, OPENING_EN = 0.02, 4, 2  # of all companion turns; characters; words
NGRAM_SHARE, NGRAM_LEAST, NGRAM_ZH, NGRAM_EN = 0.005, 3, 8, 6  # of all talks; talks; characters; words
TURN_ZH, TURN_EN = 12, 6  # a turn longer than this is not said twice by chance

_COUNTERS = 1 << 22
_MERGE_EVERY = 16
_NO_LETTER = r"[^a-z0-9'\u3400-\u9fff]+"

CORPUS_RULES = frozenset({"template_opening", "template_ngram", "duplicate_turn"})


class CorpusCounts:
    """Counts the companion turns of chunk after chunk, then names those that repeat. `folder` is for what is put on disk."""

    def __init__(self, folder: Path, wanted: frozenset[str]) -> None:
        self._folder = folder
        self._wanted = wanted
        self._turns: list[pl.DataFrame] = []
        self._counts: list[pl.DataFrame] = []
        self._talks = 0
        self._chunks = 0

    def add(self, turns: pl.DataFrame, talks: int) -> None:
        """Count a chunk of `talks` talks with its table of turns."""
        own = turns.filter(pl.col("role") == "assistant").with_columns(_spoken(), talk=pl.col("talk") + self._talks)
        self._talks += talks
        self._turns.append(own.select("talk", "turn", _opening(), hash=_long_turn()))
        if "template_ngram" in self._wanted:
            self._count(_ngrams(own), own.select("row", "talk", "turn", "lang", "spoken"))
        self._chunks += 1

    def _count(self, grams: pl.DataFrame, own: pl.DataFrame) -> None:
        grams.write_ipc(self._folder / f"{self._chunks}.grams")
        own.write_ipc(self._folder / f"{self._chunks}.turns")
        buckets = grams.select("talk", bucket=_bucket()).unique()
        self._counts.append(buckets.group_by("bucket").agg(talks=pl.len()))
        if len(self._counts) >= _MERGE_EVERY:
            self._counts = [self._merged()]

    def _merged(self) -> pl.DataFrame:
        return pl.concat(self._counts).group_by("bucket").agg(pl.col("talks").sum())

    def hits(self) -> Iterator[tuple[int, int, str, str]]:
        """Talk (counted through all chunks), turn, rule and words of everything that repeats."""
        if not self._turns:
            return
        every = pl.concat(self._turns)
        if "duplicate_turn" in self._wanted:
            yield from _duplicates(every).iter_rows()
        if self._talks < FEWEST_TALKS:
            return
        if "template_opening" in self._wanted:
            yield from _openings(every).iter_rows()
        if "template_ngram" in self._wanted:
            yield from self._templates()

    def _templates(self) -> Iterator[tuple[int, int, str, str]]:
        least = max(NGRAM_LEAST, int(NGRAM_SHARE * self._talks) + 1)
        hot = self._merged().filter(pl.col("talks") >= least).select("bucket")
        counts = [
            self._grams(i).join(hot, on="bucket", how="semi").select("talk", "gram").unique() for i in range(self._chunks)
        ]
        often = pl.concat(counts).group_by("gram").len().filter(pl.col("len") >= least)
        for i in range(self._chunks):
            first = (
                self._grams(i)
                .join(often, on="gram")
                .sort("len", descending=True)
                .unique("row", keep="first", maintain_order=True)
            )
            turns = pl.read_ipc(self._folder / f"{i}.turns").join(first.select("row", "at"), on="row").sort("row")
            for talk, turn, lang, spoken, at in turns.select("talk", "turn", "lang", "spoken", "at").iter_rows():
                yield talk, turn, "template_ngram", _words_at(spoken, at, lang)

    def _grams(self, chunk: int) -> pl.DataFrame:
        return pl.read_ipc(self._folder / f"{chunk}.grams").with_columns(bucket=_bucket())


def _spoken() -> pl.Expr:
    """Letters only: characters without a gap in Chinese, words with one space in English."""
    words = pl.col("text").str.replace_all(_NO_LETTER, " ").str.strip_chars()
    return pl.when(pl.col("lang") == "zh").then(words.str.replace_all(" ", "")).otherwise(words).alias("spoken")


def _opening() -> pl.Expr:
    """The first characters or words, or null where a turn is shorter."""
    spoken = pl.col("spoken")
    zh = pl.when(spoken.str.len_chars() >= OPENING_ZH).then(spoken.str.slice(0, OPENING_ZH))
    en = spoken.str.extract(rf"^((?:\S+ ){{{OPENING_EN - 1}}}\S+)", 1)
    return pl.when(pl.col("lang") == "zh").then(zh).otherwise(en).alias("opening")


def _long_turn() -> pl.Expr:
    """A hash of the turn, or null where it is too short to be a copy."""
    spoken = pl.col("spoken")
    long_zh = (pl.col("lang") == "zh") & (spoken.str.len_chars() > TURN_ZH)
    long_en = (pl.col("lang") == "en") & (spoken.str.count_matches(" ") >= TURN_EN)
    return pl.when(long_zh | long_en).then(spoken.hash())


def _ngrams(own: pl.DataFrame) -> pl.DataFrame:
    """Hashes of all n-grams: `row`, `talk`, `at` (position of the first character or word), `gram`."""
    return pl.concat(
        _windows(own.filter(pl.col("lang") == lang), gap, size)
        for lang, gap, size in (("zh", "", NGRAM_ZH), ("en", " ", NGRAM_EN))
    )


def _windows(own: pl.DataFrame, gap: str, size: int) -> pl.DataFrame:
    tokens = own.select("row", "talk", token=pl.col("spoken").str.split(gap)).explode("token", empty_as_null=False)
    tokens = tokens.with_columns(code=pl.col("token").hash(), place=pl.int_range(pl.len(), dtype=pl.UInt32))
    gram = pl.sum_horizontal(pl.col("code").shift(-k) * 31 ** (size - 1 - k) for k in range(size))
    return (
        tokens.with_columns(gram=gram, at=pl.col("place") - pl.col("place").first().over("row"))
        .filter(pl.col("row") == pl.col("row").shift(1 - size))
        .select("row", "talk", "at", "gram")
    )


def _bucket() -> pl.Expr:
    return (pl.col("gram") % _COUNTERS).cast(pl.UInt32).alias("bucket")


def _duplicates(every: pl.DataFrame) -> pl.DataFrame:
    long = every.filter(pl.col("hash").is_not_null())
    again = long.group_by("hash").agg(pl.col("talk").n_unique().alias("talks")).filter(pl.col("talks") > 1)
    return long.join(again, on="hash", maintain_order="left").select(
        "talk", "turn", pl.lit("duplicate_turn"), pl.format("× {}", "talks")
    )


def _openings(every: pl.DataFrame) -> pl.DataFrame:
    counted = every.filter(pl.col("opening").is_not_null())
    often = counted.group_by("opening").len().filter(pl.col("len") > OPENING_SHARE * every.height)
    return counted.join(often, on="opening", maintain_order="left").select(
        "talk", "turn", pl.lit("template_opening"), "opening"
    )


def _words_at(spoken: str, at: int, lang: str) -> str:
    return spoken[at : at + NGRAM_ZH] if lang == "zh" else " ".join(spoken.split(" ")[at : at + NGRAM_EN])
