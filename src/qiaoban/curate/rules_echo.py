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
    rows = [*exact["row"], *_like_an_earlier_one(fresh)]
    return turns.filter(pl.col("row").is_in(rows)).select("row", pl.col("text").str.slice(0, 20).alias("words"))


def _like_an_earlier_one(fresh: pl.DataFrame) -> list[int]:
    """Rows like one before them in their talk. Sets in Python: a join of all bigrams is four times the work."""
    found, talk = [], None
    before: list[set[str]] = []
    for row, number, bare in fresh.select("row", "talk", "bare").iter_rows():
        if number != talk:
            talk, before = number, []
        mine = _bigrams(bare)
        if any(2 * len(mine & other) >= ALIKE * (len(mine) + len(other)) for other in before):
            found.append(row)
        before.append(mine)
    return found


def _bigrams(text: str) -> set[str]:
    return {text[at : at + 2] for at in range(len(text) - 1)}


def _own(turns: pl.DataFrame) -> pl.DataFrame:
    """The companion's turns, bare of everything but letters and digits; a talk without end is judged by its beginning."""
    own = turns.filter(pl.col("role") == "assistant").with_columns(bare=pl.col("text").str.replace_all(_NO_LETTER, ""))
    own = own.with_columns(size=pl.col("bare").str.len_chars()).select("row", "talk", "bare", "size")
    return own.filter(pl.int_range(pl.len()).over("talk") < COMPARED)


def parrots(turns: pl.DataFrame) -> pl.DataFrame:
    """Companion turns that hold nearly all of the child's words, "I" made "you", and little else."""
    pairs = turns.filter(pl.col("role") == "assistant", pl.col("before_role") == "user")
    child, companion = pl.col("before").str.len_chars(), pl.col("text").str.len_chars()
    pairs = pairs.filter(child > SHORTEST_ALIKE, companion >= 0.7 * child, companion <= 2.5 * child)
    bare = pairs.select("row", _impersonal("text").alias("own"), _impersonal("before").alias("theirs"))
    rows = [row for row, own, theirs in bare.iter_rows() if _parroted(own, theirs)]
    return turns.filter(pl.col("row").is_in(rows)).select("row", pl.col("text").str.slice(0, 20).alias("words"))


def _parroted(own: str, theirs: str) -> bool:
    mine, child = _bigrams(own), _bigrams(theirs)
    shared = len(mine & child)
    return len(child) >= SHORTEST_ALIKE and shared >= ALIKE * len(child) and shared >= 0.6 * len(mine)


def _impersonal(column: str) -> pl.Expr:
    """Letters and digits, with the first and the second person made one."""
    text = pl.col(column)
    person = pl.when(text.str.contains(HAN)).then(text.str.replace_all(_PERSON_ZH, "x"))
    return person.otherwise(text.str.replace_all(_PERSON_EN, "x")).str.replace_all(_NO_LETTER, "")
