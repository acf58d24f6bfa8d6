"""Rules that go by shape: who speaks when, how long, in which characters, with which numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise

import polars as pl
from opencc import OpenCC

from qiaoban.bank import read_table
from qiaoban.conversation import AgeBand
from qiaoban.curate.rules_words import LANGS, rows_with
from qiaoban.curate.table import GENERAL, HAN, LATIN_WORD, QUOTED
from qiaoban.safety.respond import load_hotlines

SHORTEST, LONGEST = 4, 40  # turns of a companion talk

_PUNCTUATION_ONLY = (
    r"^[\s!-/:-@\[-`{-~·…—。，、；：？！“”‘’（）《》〈〉「」『』【】～\u2000-\u206f\u3000-\u303f\ufe30-\ufe4f\uff00-\uff0f]*$"
)
_TOKENS = (
    r"<\|[^<>|\n]{1,40}\|?>|<\|?im_(?:start|end)\|?>|\[/?INST\]|<</?SYS>>|</?s>|<(?:eos|bos|pad|unk|eot|sep|mask|start_of_turn|end_of_turn)>"
    r"|\[(?:CLS|SEP|PAD|UNK|MASK|EOS|BOS)\]|</?think>|<\|?endoftext\|?>|\bim_(?:start|end)\b"
)
_CONTROL = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200c\u200e\u200f\u2028-\u202e"
    r"\u2060-\u206f\ufeff\ufff9-\ufffd\ue000-\uf8ff]"
)
_BROKEN = r"\u951f\u65a4\u62f7|\u70eb\u70eb\u70eb|ï¿½|â€[™œ\u009d˜¦]|Ã[©¨¤¶¼§±]|å[¥½]|ä½|ï¼"
_EMOJI = r"[\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff]"
_JOINED_EMOJI = rf"{_EMOJI}[\ufe0f\U0001f3fb-\U0001f3ff]*\u200d"
_MARKS = r"[?？]+[!！?？~～]*"


def structure(turns: pl.DataFrame) -> dict[str, pl.Expr]:
    """alternation, first_turn and last_turn: true at the turn where the fault shows."""
    new, last = pl.col("talk") != pl.col("talk").shift(1), pl.col("talk") != pl.col("talk").shift(-1)
    return {
        "alternation": pl.col("before_role") == pl.col("role"),
        "first_turn": new.fill_null(value=True) & (pl.col("role") == "assistant"),
        "last_turn": last.fill_null(value=True) & (pl.col("role") == "user"),
    }


def empty_turn(turns: pl.DataFrame) -> pl.DataFrame:
    """A companion who says nothing but punctuation, a child who says nothing at all."""
    silent = pl.col("raw").str.strip_chars() == ""
    punctuation = (pl.col("role") == "assistant") & pl.col("raw").str.contains(_PUNCTUATION_ONLY)
    return _rows(turns.filter(silent | punctuation), pl.lit(""))


def control_characters(turns: pl.DataFrame) -> pl.DataFrame:
    """Characters that nobody sees, and a model's own tokens. Joiners inside emoji are part of the emoji."""
    raw = pl.col("raw")
    seen = raw.str.extract(f"({_TOKENS}|{_BROKEN})", 1)
    joiner = raw.str.contains("\u200d") & raw.str.replace_all(_JOINED_EMOJI, "").str.contains("\u200d")
    hidden = raw.str.contains(_CONTROL) | joiner
    hit = turns.filter(hidden | raw.str.contains(f"{_TOKENS}|{_BROKEN}"))
    name = raw.str.extract(f"({_CONTROL}|\u200d)", 1).map_elements(_name_of, return_dtype=pl.String)
    return _rows(hit, pl.coalesce(seen, name))


def _name_of(character: str) -> str:
    """A character that cannot be shown, by its number."""
    return f"U+{ord(character):04X}"


def too_long(turns: pl.DataFrame, role: str) -> pl.DataFrame:
    """Turns of `role` longer than the age band allows; Han characters and words count one each."""
    limits = pl.DataFrame(
        [(lang, band, limit) for lang in ("zh", "en") for band, limit in _limits(lang, role).items()],
        schema={"lang": pl.String, "band": pl.String, "limit": pl.Float64},
        orient="row",
    )
    least = limits["limit"].min()
    own = turns.filter(pl.col("role") == role).filter(pl.col("raw").str.len_chars() > least)
    own = own.with_columns(
        pl.col("band").fill_null(AgeBand.B15_17.value),
        length=pl.col("raw").str.count_matches(HAN) + pl.col("raw").str.count_matches(LATIN_WORD),
    )
    spare = pl.when((pl.col("domain") == GENERAL) & (pl.col("role") == "assistant")).then(1.5).otherwise(1.0)
    own = own.join(limits, on=["lang", "band"], how="left", maintain_order="left").with_columns(pl.col("limit") * spare)
    own = own.filter(pl.col("length") > pl.col("limit"))
    return _rows(own, pl.format("{} > {}", "length", pl.col("limit").cast(pl.UInt32)))


@cache
def _limits(lang: str, role: str) -> Mapping[str, int]:
    """How long a turn may be, by band: the companion's as its guard has them, the child's as the lexicon does."""
    if role == "assistant":
        return {band: row["length"] for band, row in read_table("output/limits.toml")[lang].items()}
    table: Mapping[str, int] = read_table(f"curate/lexicon_{lang}.toml")["limits"]["child"]
    return table


def stacked_questions(turns: pl.DataFrame) -> pl.DataFrame:
    """Two question marks, or two question words in one breath. What is quoted is somebody else's question."""
    own = turns.filter(pl.col("role") == "assistant").filter(pl.col("said").str.contains(r"\?"))
    marks = pl.col("said").str.count_matches(_MARKS)
    breath = rows_with(own, "two_questions", "assistant")
    own = own.with_columns(counted=pl.when(marks > 1).then(pl.format("? × {}", marks))).join(breath, on="row", how="left")
    return _rows(own.filter((marks > 1) | pl.col("words").is_not_null()), pl.coalesce("counted", "words"))


# ── characters ──

_HALF_WIDTH = rf"{HAN}[,.!?;:](?:{HAN}|\s|$)|{HAN}[,!?;](?:[A-Za-z0-9]|$)"
_RUN_OF_ENGLISH = r"[A-Za-z][a-z']+(?:[ ,]+[A-Za-z][A-Za-z']*){2,}"
_ENGLISH = (
    r"(?i)\b(?:i|i'm|i'll|the|is|are|my|and|it|it's|that|this|what|your|have|of|for|not|don't|was|with|but)\b"  # and no pinyin
)
_OTHER_SCRIPT = r"[\u3041-\u30ff\uac00-\ud7af\u0400-\u04ff\u0600-\u06ff\u0e00-\u0e7f]{3,}"


@cache
def _to_simplified() -> OpenCC:
    return OpenCC("t2s")


@cache
def _traditional() -> str:
    """A class of every character that, alone, becomes another one in Simplified Chinese."""
    every = [chr(code) for code in range(0x3400, 0xA000)]
    return "[" + "".join(old for old, new in zip(every, _simplified_one_by_one(every), strict=True) if old != new) + "]"


def _simplified_one_by_one(characters: list[str]) -> list[str]:
    """Each character on a line of its own, so that no word is made of two."""
    lines: str = _to_simplified().convert("\n".join(characters))
    return lines.split("\n")


def wrong_script(turns: pl.DataFrame) -> pl.DataFrame:
    """Characters, punctuation or sentences that do not belong to the talk's language."""
    raw = pl.col("raw")
    chinese = turns.filter(pl.col("lang") == "zh")
    bare = raw.str.replace_all(QUOTED, "□")
    english = pl.when((pl.col("role") == "assistant") | bare.str.contains(_ENGLISH)).then(bare)
    sign = pl.coalesce(
        raw.str.extract(f"({_HALF_WIDTH})", 1),
        english.str.extract(f"({_RUN_OF_ENGLISH})", 1),
        raw.str.extract(f"({_OTHER_SCRIPT})", 1),
    )
    selected = chinese.filter(raw.str.contains(f"{_HALF_WIDTH}|{_RUN_OF_ENGLISH}|{_OTHER_SCRIPT}")).with_columns(w=sign)
    han = raw.str.extract(rf"((?:{HAN}|{_OTHER_SCRIPT})+)", 1)
    mixed = turns.filter(pl.col("lang") == "en").filter(raw.str.contains(f"{HAN}|{_OTHER_SCRIPT}")).with_columns(w=han)
    old = _traditional_words(chinese.filter(raw.str.contains(_traditional())))
    found = [_rows(part.filter(pl.col("w").is_not_null()), pl.col("w")) for part in (old, selected, mixed)]
    return pl.concat(found).unique("row", keep="first", maintain_order=True)


def _traditional_words(suspects: pl.DataFrame) -> pl.DataFrame:
    """The characters that OpenCC would change, read in their sentence: some are right in both scripts."""
    texts = suspects["raw"].to_list()
    changed = [
        "".join(dict.fromkeys(old for old, new in zip(text, simple, strict=False) if old != new))[:6] or None
        for text, simple in ((text, _to_simplified().convert(text)) for text in texts)
    ]
    return suspects.with_columns(w=pl.Series(changed, dtype=pl.String))


# ── numbers ──

_NUMERALS = ["zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "hundred"]
_DIGITS = dict(zip([*"零〇幺一二三四五六七八九", *_NUMERALS], [*"001123456789", *"00123456789", "00"], strict=True))
_HAN_DIGIT, _ENGLISH_DIGIT = "[零〇幺一二三四五六七八九]", f"(?:{'|'.join(_NUMERALS)})"
_SPELLED = re.compile(rf"{_HAN_DIGIT}(?:[ ,-]?{_HAN_DIGIT}){{2,}}|\b{_ENGLISH_DIGIT}(?:[ ,-]+{_ENGLISH_DIGIT}){{2,}}\b")
_SPELLED_DIGIT = re.compile(f"{_HAN_DIGIT}|{_ENGLISH_DIGIT}")
_SOME_NUMBER = rf"\d[\d .()-]*\d|{_HAN_DIGIT}{{2}}|{_ENGLISH_DIGIT}[ ,-]+{_ENGLISH_DIGIT}"
_LONG = re.compile(
    r"(?<![\d.,-])"
    r"(\+?\d{1,4}[ -]\(?\d{3,4}\)?(?:[ -]\d{3,4}){1,3}|\d{3,4}[ -]\d{4}(?:[ -]?\d{4})?|\d{7,15}|\+\d[\d ()-]{7,16}\d)"
    r"(?![\d.,-]*\d)"
)


@cache
def _words_about_numbers() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What stands before a number to call, with the number; a number with what stands after it; and what makes a number a
    quantity. All in every language."""
    tables = [read_table(f"curate/lexicon_{lang}.toml")["numbers"] for lang in LANGS]
    call = "|".join(table["call"] for table in tables)
    unit = r"\s?(?:" + "|".join(table["unit"] for table in tables) + ")"
    after = "|".join(table["after"] for table in tables)
    return (
        re.compile(rf"(?:{call})[^\d\n]{{0,16}}(\+?\d[\d .()-]{{1,18}}\d)(?!{unit})"),
        re.compile(rf"(?<!\d)(\+?\d[\d ()-]{{1,18}}\d)(?!{unit})[^\d\n。!?]{{0,6}}(?:{after})"),
        re.compile(unit),
    )


@cache
def _known_numbers() -> frozenset[str]:
    """Every number of the list of help lines, digits only, in whatever country, and public emergency numbers besides."""
    digits = ("".join(filter(str.isdigit, line.number)) for line in load_hotlines().lines)
    public = (number for lang in LANGS for number in read_table(f"curate/lexicon_{lang}.toml")["numbers"]["public"])
    return frozenset(number for number in (*digits, *public) if number)


def _in_digits(text: str) -> str:
    """Numbers that are spelled digit by digit, in digits: 幺幺零, nine one one. Counting up or down stays as it is."""
    return _SPELLED.sub(_spelled_number, text)


def _spelled_number(match: re.Match[str]) -> str:
    digits = "".join(_DIGITS[word] for word in _SPELLED_DIGIT.findall(match[0]))
    steps = {int(b) - int(a) for a, b in pairwise(digits)} - {0}
    return match[0] if len(digits) > 4 and steps in ({1}, {-1}) else digits


def unlisted_numbers(turns: pl.DataFrame) -> pl.DataFrame:
    """Numbers that a child could ring and that are not on the list of help lines."""
    own = turns.filter(pl.col("role") == "assistant").filter(pl.col("text").str.contains(_SOME_NUMBER))
    numbers = [_strange_number(text, domain) for text, domain in own.select("text", "domain").iter_rows()]
    own = own.with_columns(w=pl.Series(numbers, dtype=pl.String))
    return _rows(own.filter(pl.col("w").is_not_null()), pl.col("w"))


def _strange_number(text: str, domain: str | None) -> str | None:
    call, after, unit = _words_about_numbers()
    text = _in_digits(text)
    near = [m[1] for m in (*call.finditer(text), *after.finditer(text))]
    far = [] if domain == GENERAL else [m[1] for m in _LONG.finditer(text) if not unit.match(text, m.end())]
    for number in [*near, *far]:
        digits = re.sub(r"\D", "", number)
        if digits not in _known_numbers() and digits.removeprefix("86").removeprefix("1") not in _known_numbers():
            return str(number).strip()
    return None


def _rows(hit: pl.DataFrame, words: pl.Expr) -> pl.DataFrame:
    return hit.select("row", words.cast(pl.String).fill_null("").alias("words"))


SHAPES: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "empty_turn": empty_turn,
    "control_characters": control_characters,
    "companion_too_long": lambda turns: too_long(turns, "assistant"),
    "child_too_long": lambda turns: too_long(turns, "user"),
    "stacked_questions": stacked_questions,
    "wrong_script": wrong_script,
    "unlisted_help_line": unlisted_numbers,
}


def shape_hits(turns: pl.DataFrame, wanted: frozenset[str]) -> pl.DataFrame:
    """Every hit of the shape rules in `wanted`: columns `row`, `rule`, `words`."""
    faults = {rule: expr for rule, expr in structure(turns).items() if rule in wanted}
    hits = [_rows(turns.filter(expr), pl.lit("")).with_columns(rule=pl.lit(rule)) for rule, expr in faults.items()]
    hits += [find(turns).with_columns(rule=pl.lit(rule)) for rule, find in SHAPES.items() if rule in wanted]
    none = pl.DataFrame(schema={"row": pl.UInt32, "rule": pl.String, "words": pl.String})
    return pl.concat([none, *(hit.select("row", "rule", "words") for hit in hits)])
