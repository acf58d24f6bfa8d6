"""Rules about all dialogues together: openings, phrases and whole turns that come again and again.

What repeats is known only at the end, and the texts do not fit into memory. So the first pass counts and puts what it counted
on disk, and the second pass reads that back, a chunk at a time. Memory holds a counter for each distinct opening and long turn
(some 20 bytes) and a table of counters for n-grams that does not grow with the corpus; n-grams that share a counter are told
apart in the second pass. The disk holds about 3 kB a talk while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from qiaoban.conversation import Lang

FEWEST_TALKS = 100  # below, a share says nothing
OPENING_SHARE, OPENING_ZH, OPENING_EN = 0.02, 4, 2  # of all companion turns; characters; words
NGRAM_SHARE, NGRAM_LEAST, NGRAM_ZH, NGRAM_EN = 0.005, 3, 8, 6  # of all talks; talks; characters; words
TURN_ZH, TURN_EN = 12, 6  # a turn longer than this is not said twice by chance

_COUNTERS = 1 << 22
_MERGE_EVERY = 16
_WINDOWED = 10_000  # turns whose n-grams are made at once: each character takes a hundred bytes while they are
_NO_LETTER = r"[^a-z0-9'\u3400-\u9fff]+"

CORPUS_RULES = frozenset({"template_opening", "template_ngram", "duplicate_turn"})


class _Tally:
    """How often each value of a column came, over many tables; merged now and then, so that it stays small."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._parts: list[pl.DataFrame] = []

    def add(self, counted: pl.DataFrame) -> None:
        """`counted` has the column, each value once, and `count`."""
        self._parts.append(counted.select(self._column, pl.col("count").cast(pl.UInt32)))
        if len(self._parts) >= _MERGE_EVERY:
            self._parts = [self._merged()]

    def at_least(self, least: float) -> pl.DataFrame:
        """The values that came so often, with `count`."""
        return self._merged().filter(pl.col("count") >= least)

    def _merged(self) -> pl.DataFrame:
        return pl.concat(self._parts).group_by(self._column).agg(pl.col("count").sum())


class CorpusCounts:
    """Counts the companion turns of chunk after chunk, then names those that repeat. `folder` is for what is put on disk."""

    def __init__(self, folder: Path, wanted: frozenset[str]) -> None:
        self._folder = folder
        self._wanted = wanted
        self._openings, self._long, self._buckets = _Tally("opening"), _Tally("hash"), _Tally("bucket")
        self._talks = self._turns = self._chunks = 0

    def add(self, turns: pl.DataFrame, talks: Sequence[tuple[str, Lang]]) -> None:
        """Count a chunk: its table of turns, and id and language of each of its talks."""
        own = turns.filter(pl.col("role") == "assistant").with_columns(_spoken())
        own = own.select("row", "talk", "turn", "lang", "spoken", _opening(), hash=_long_turn())
        own.write_ipc(self._file("turns"))
        pl.DataFrame(talks, schema={"id": pl.String, "lang": pl.String}, orient="row").write_ipc(self._file("talks"))
        self._openings.add(own.filter(pl.col("opening").is_not_null()).group_by("opening").agg(count=pl.len()))
        self._long.add(own.filter(pl.col("hash").is_not_null()).group_by("hash").agg(count=pl.col("talk").n_unique()))
        if "template_ngram" in self._wanted:
            grams = _ngrams(own)
            grams.write_ipc(self._file("grams"))
            place = (pl.col("talk").cast(pl.UInt64) * _COUNTERS + pl.col("gram") % _COUNTERS).unique()
            buckets = grams.select(bucket=(place % _COUNTERS).cast(pl.UInt32))
            self._buckets.add(buckets.group_by("bucket").agg(count=pl.len()))
        self._talks += len(talks)
        self._turns += own.height
        self._chunks += 1

    def _file(self, name: str, chunk: int | None = None) -> Path:
        return self._folder / f"{self._chunks if chunk is None else chunk}.{name}"

    def hits(self) -> Iterator[tuple[list[tuple[str, Lang]], list[tuple[int, int, str, str]]]]:
        """For each chunk its talks as given, and of all that repeats: talk (counted in the chunk), turn, rule, words."""
        if not self._chunks:
            return
        find = [partial(_duplicates, again=self._long.at_least(2))] if "duplicate_turn" in self._wanted else []
        if "template_opening" in self._wanted and self._talks >= FEWEST_TALKS:
            often = self._openings.at_least(OPENING_SHARE * self._turns)
            find.append(partial(_openings, often=often.filter(pl.col("count") > OPENING_SHARE * self._turns)))
        templates = self._templates() if "template_ngram" in self._wanted and self._talks >= FEWEST_TALKS else None
        for chunk in range(self._chunks):
            turns = pl.read_ipc(self._file("turns", chunk))
            hits = [hit for some in find for hit in some(turns).iter_rows()]
            if templates is not None:
                hits += _template_hits(turns, pl.read_ipc(self._file("grams", chunk)), templates)
            yield list(pl.read_ipc(self._file("talks", chunk)).iter_rows()), hits

    def _templates(self) -> pl.DataFrame:
        """The n-grams that stand in enough talks, with `count`."""
        least = max(NGRAM_LEAST, int(NGRAM_SHARE * self._talks) + 1)
        hot = self._buckets.at_least(least).select("bucket")
        tally = _Tally("gram")
        for chunk in range(self._chunks):
            grams = pl.read_ipc(self._file("grams", chunk)).with_columns(_bucket()).join(hot, on="bucket", how="semi")
            tally.add(grams.select("talk", "gram").unique().group_by("gram").agg(count=pl.len()))
        return tally.at_least(least)


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
        _windows(part.filter(pl.col("lang") == lang), gap, size)
        for part in (own.iter_slices(_WINDOWED) if own.height else [own])
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


def _duplicates(turns: pl.DataFrame, again: pl.DataFrame) -> pl.DataFrame:
    return turns.join(again, on="hash", maintain_order="left").select(
        "talk", "turn", pl.lit("duplicate_turn"), pl.format("× {}", "count")
    )


def _openings(turns: pl.DataFrame, often: pl.DataFrame) -> pl.DataFrame:
    return turns.join(often, on="opening", maintain_order="left").select("talk", "turn", pl.lit("template_opening"), "opening")


def _template_hits(turns: pl.DataFrame, grams: pl.DataFrame, often: pl.DataFrame) -> list[tuple[int, int, str, str]]:
    """The most frequent n-gram of each turn that has one."""
    first = grams.join(often, on="gram").sort("count", descending=True).unique("row", keep="first", maintain_order=True)
    found = turns.join(first.select("row", "at"), on="row").sort("row")
    return [
        (talk, turn, "template_ngram", _words_at(spoken, at, lang))
        for talk, turn, lang, spoken, at in found.select("talk", "turn", "lang", "spoken", "at").iter_rows()
    ]


def _words_at(spoken: str, at: int, lang: str) -> str:
    return spoken[at : at + NGRAM_ZH] if lang == "zh" else " ".join(spoken.split(" ")[at : at + NGRAM_EN])
