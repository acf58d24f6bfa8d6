"""Rules about saying the same again: the companion after itself, and the companion after the child."""

from __future__ import annotations

import polars as pl

from qiaoban.curate.table import HAN

ALIKE = 0.8  # share of bigrams in common
SHORTEST_EXACT, SHORTEST_ALIKE = 4, 6  # characters; "mm-hm" may come twice
COMPARED = 64  # companion turns of one talk that are compared with each other

_NO_LETTER = r"[^a-z0-9\u3400-\u9fff]+"
_PERSON_ZH = "[\u6211\u4f60]"  # I, you
_PERSON_EN = r"\b(?:i'm|you're|i've|you've|i am|you are|my|your|mine|yours|me|you|i)\b"


def repeats_itself(turns: pl.DataFrame) -> pl.DataFrame:
    """Companion turns of which four fifths of the bigrams stand in an earlier one of the same talk (Dice's coefficient)."""
    own = _own(turns)
    exact = own.filter(pl.col("size") >= SHORTEST_EXACT, ~pl.struct("talk", "bare").is_first_distinct())
    fresh = own.filter(pl.col("size") >= SHORTEST_ALIKE).filter(pl.struct("talk", "bare").is_first_distinct())
    grams = _grams(fresh)
    pairs = (
        grams.join(grams, on=["talk", "gram"], suffix="_before")
        .filter(pl.col("row_before") < pl.col("row"))
        .group_by("row", "row_before", "grams", "grams_before")
        .len()
        .filter(2 * pl.col("len") >= ALIKE * (pl.col("grams") + pl.col("grams_before")))
    )
    rows = pl.concat([exact.select("row"), pairs.select("row")]).unique()
    return turns.join(rows, on="row", how="semi").select("row", pl.col("text").str.slice(0, 20).alias("words"))


def _own(turns: pl.DataFrame) -> pl.DataFrame:
    """The companion's turns, bare of everything but letters and digits; a talk without end is judged by its beginning."""
    own = turns.filter(pl.col("role") == "assistant").with_columns(bare=pl.col("text").str.replace_all(_NO_LETTER, ""))
    own = own.with_columns(size=pl.col("bare").str.len_chars()).select("row", "talk", "bare", "size")
    return own.filter(pl.int_range(pl.len()).over("talk") < COMPARED)


def _grams(own: pl.DataFrame) -> pl.DataFrame:
    """The distinct bigrams of every turn as hashes, one a row, with how many the turn has."""
    letters = own.select("row", "talk", letter=pl.col("bare").str.split("")).explode("letter", empty_as_null=False)
    letters = letters.with_columns(code=pl.col("letter").hash())
    gram = pl.col("code") * 31 + pl.col("code").shift(-1)
    grams = letters.with_columns(gram=gram).filter(pl.col("row") == pl.col("row").shift(-1)).unique(["row", "gram"])
    return grams.select("row", "talk", "gram", grams=pl.len().over("row"))


def parrots(turns: pl.DataFrame) -> pl.DataFrame:
    """Companion turns that hold nearly all of the child's words, "I" made "you", and little else."""
    pairs = turns.filter(pl.col("role") == "assistant", pl.col("before_role") == "user")
    child, companion = pl.col("before").str.len_chars(), pl.col("text").str.len_chars()
    pairs = pairs.filter(child > SHORTEST_ALIKE, companion >= 0.7 * child, companion <= 2.5 * child)
    mine = _grams(pairs.select("row", "talk", bare=_impersonal("text")))
    theirs = _grams(pairs.select("row", "talk", bare=_impersonal("before")))
    shared = (
        mine.join(theirs, on=["row", "gram"], suffix="_child")
        .group_by("row", "grams", "grams_child")
        .len()
        .filter(pl.col("grams_child") >= SHORTEST_ALIKE, pl.col("len") >= ALIKE * pl.col("grams_child"))
        .filter(pl.col("len") >= 0.6 * pl.col("grams"))
    )
    return turns.join(shared, on="row", how="semi").select("row", pl.col("text").str.slice(0, 20).alias("words"))


def _impersonal(column: str) -> pl.Expr:
    """Letters and digits, with the first and the second person made one."""
    text = pl.col(column)
    person = pl.when(text.str.contains(HAN)).then(text.str.replace_all(_PERSON_ZH, "x"))
    return person.otherwise(text.str.replace_all(_PERSON_EN, "x")).str.replace_all(_NO_LETTER, "")
