"""Talks as one table of turns, a chunk at a time, so that a rule is an expression over columns and not a loop in Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from qiaoban.conversation import Conversation

CHUNK_TALKS = 12_000  # regular expressions are compiled once a chunk, which costs a second
CHUNK_CHARACTERS = 12_000_000  # a chunk ends here too, so that memory stays bounded whatever is in the file
GENERAL = "general"

HAN = r"[\u3400-\u9fff]"
LATIN_WORD = r"[A-Za-z0-9]+(?:['’][A-Za-z]+)*"
QUOTED = r"“[^”\n]{0,160}”|「[^」\n]{0,160}」|『[^』\n]{0,160}』|\"[^\"\n]{0,160}\"|《[^》\n]{0,60}》"
_INVISIBLE = r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"


def chunks(talks: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Lists of talks, each small enough to be judged at once. A talk is never cut in two."""
    batch: list[Conversation] = []
    size = 0
    for talk in talks:
        batch.append(talk)
        size += sum(len(turn.content) for turn in talk.turns)
        if len(batch) >= CHUNK_TALKS or size >= CHUNK_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def turns_table(talks: Sequence[Conversation]) -> pl.DataFrame:
    """One row a turn of child or companion, in order; system turns are left out and still counted in `turn`.

    Columns: `row`, `talk` (position in `talks`), `turn`, `role`, `acts`, `distress`, `raw` (as written), `text` (folded),
    `said` (folded, without what stands in quotation marks), `before` and `before_role` (the turn before, if any), and the
    talk's `lang`, `band`, `domain`, `risk`, `emotion`.
    """
    rows = [(n, i, turn) for n, talk in enumerate(talks) for i, turn in enumerate(talk.turns) if turn.role != "system"]
    frame = pl.DataFrame(
        {
            "talk": pl.Series([number for number, _, _ in rows], dtype=pl.UInt32),
            "turn": pl.Series([index for _, index, _ in rows], dtype=pl.UInt32),
            "role": pl.Series([turn.role for _, _, turn in rows], dtype=pl.String),
            "raw": pl.Series([turn.content for _, _, turn in rows], dtype=pl.String),
            "acts": _acts([turn.acts for _, _, turn in rows]),
            "distress": pl.Series([turn.distress for _, _, turn in rows], dtype=pl.Int8),
        }
    ).with_row_index("row")
    about = _about(talks)
    frame = frame.with_columns(about.select(pl.all().gather(frame["talk"])).get_columns())
    return _with_texts(frame)


def _acts(acts: Sequence[tuple[str, ...]]) -> pl.Series:
    """The acts of every turn as a list column. There are few different ones, so each list is made once."""
    places: dict[tuple[str, ...], int] = {}
    at = [places.setdefault(each, len(places)) for each in acts]
    return pl.Series([[str(act) for act in each] for each in places], dtype=pl.List(pl.String)).gather(at)


def _about(talks: Sequence[Conversation]) -> pl.DataFrame:
    """What is known of each talk, one row a talk."""
    metas = [talk.meta for talk in talks]
    columns: dict[str, list[str | None]] = {
        "lang": [meta.lang for meta in metas],
        "band": [meta.age_band and meta.age_band.value for meta in metas],
        "domain": [meta.domain for meta in metas],
        "risk": [meta.risk and meta.risk.value for meta in metas],
        "emotion": [meta.emotion and meta.emotion.value for meta in metas],
    }
    return pl.DataFrame({name: pl.Series(values, dtype=pl.String) for name, values in columns.items()})


def _with_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Folded texts, counts, the language where the talk does not say it, and the turn before."""
    frame = frame.with_columns(folded(pl.col("raw")).alias("text"))
    same_talk = pl.col("talk") == pl.col("talk").shift(1)
    frame = frame.with_columns(
        pl.col("text").str.replace_all(QUOTED, "□").alias("said"),
        pl.when(same_talk).then(pl.col("text").shift(1)).alias("before"),
        pl.when(same_talk).then(pl.col("role").shift(1)).alias("before_role"),
    )
    if frame["lang"].null_count() == 0:
        return frame
    han, words = pl.col("raw").str.count_matches(HAN), pl.col("raw").str.count_matches(LATIN_WORD)
    mostly_han = han.sum().over("talk") >= 2 * words.sum().over("talk")  # a word is as long as two characters
    guess = pl.when(mostly_han).then(pl.lit("zh")).otherwise(pl.lit("en"))
    return frame.with_columns(pl.col("lang").fill_null(guess))


def folded(text: pl.Expr) -> pl.Expr:
    """One spelling for many, as in `qiaoban.safety.normalise`, but line ends stay: a list is seen by them."""
    return (
        text.str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_all(_INVISIBLE, "")
        .str.replace_all("[’‘`´]", "'")
        .str.replace_all(r"[ \t\r\u00a0]+", " ")
        .str.strip_chars()
    )


def lengths_of(talks: Sequence[Conversation]) -> list[int]:
    """How many turns each talk has, without its system turns."""
    return [sum(turn.role != "system" for turn in talk.turns) for talk in talks]
