"""Personal data in talks: found by kind, and taken out.

Talks here are synthetic, with names from the bank, so what looks like a person's data has leaked in from a teacher model or was
typed by somebody. Patterns and word lists are the bank's (`curate/pii_any.toml`, `pii_zh.toml`, `pii_en.toml`); what a regex
cannot say is `pii_checks`'s. Python's word boundary does not fire between a Han character and a digit, so the patterns look
around for digits instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl

from qiaoban.bank import read_table
from qiaoban.conversation import Conversation, Lang, language
from qiaoban.curate.dedup import blocks
from qiaoban.curate.literals import Gate
from qiaoban.curate.near import BLOCK
from qiaoban.curate.pii_checks import CHECKS, Check, Span, Words
from qiaoban.curate.stage import Dropped, Outcome

_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u00ad\ufe0f\u20e3]")
_WIDE_MARKS = str.maketrans("＠．－＋＿：／＝＃", "@.-+_:/=#")
_WIDE = re.compile(r"[０-９Ａ-Ｚａ-ｚ①-⑨⓪Ⅰ-Ⅹ𝟎-𝟿]")
_COMPOSED = "address"  # the one kind whose parts are found on their own
_JOINT = re.compile(r"[ ,，的]?")  # what may stand between two parts of one address


@dataclass(frozen=True)
class PiiHit:
    """Personal data: its kind (phone, address …), and where it stands, in characters of the text, the end outside."""

    kind: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _Pattern:
    kind: str
    regex: re.Pattern[str]
    views: tuple[str, ...]
    check: Check | None
    needs: re.Pattern[str] | None

    def spans(self, text: str, words: Words) -> Iterator[Span]:
        """Where the pattern holds and its check agrees. After a refusal it goes on, behind what is no proper name."""
        if self.needs is not None and not self.needs.search(text):
            return
        at = 0
        while match := self.regex.search(text, at):
            span = match.span("hit") if "hit" in self.regex.groupindex else match.span()
            if self.check is not None:
                checked = self.check(match, words)
                if checked is None:
                    at = match.end("head") if "head" in self.regex.groupindex else match.start() + 1
                    continue
                span = checked
            yield span
            at = max(span[1], match.start() + 1)


@dataclass(frozen=True)
class _Rules:
    patterns: tuple[_Pattern, ...]
    words: Words
    tags: Mapping[str, str]
    numerals: Mapping[int, int]


def find_pii(text: str, lang: Lang) -> list[PiiHit]:
    """What identifies a person in `text`, in order and without overlap."""
    rules = _rules(lang)
    return _find(text, _views(text, rules), rules, rules.patterns)


def _views(text: str, rules: _Rules) -> dict[str, str]:
    """The text as patterns see it; without `digits` where that shows nothing new."""
    plain = _WIDE.sub(_narrow, _INVISIBLE.sub("", text).translate(_WIDE_MARKS))
    digits = plain.translate(rules.numerals)
    return {"plain": plain} if digits == plain else {"plain": plain, "digits": digits}


def _find(text: str, views: Mapping[str, str], rules: _Rules, patterns: Iterable[_Pattern]) -> list[PiiHit]:
    plain = views["plain"]
    taken: list[str | None] = [None] * len(plain)
    found: list[tuple[str, Span]] = []
    for pattern in patterns:
        for view in pattern.views:
            for start, end in pattern.spans(views.get(view, ""), rules.words):
                others = {*taken[start:end]} - {None}
                if not others or others == {pattern.kind} == {_COMPOSED}:
                    taken[start:end] = [pattern.kind] * (end - start)
                    found.append((pattern.kind, (start, end)))
    if not found:
        return []
    origin = _origin(text)
    joined = _join_addresses(sorted(found, key=lambda each: each[1]), plain)
    return [_hit(kind, (origin[start], origin[end - 1] + 1), text) for kind, (start, end) in joined]


def redact(text: str, lang: Lang) -> str:
    """`text` with a tag such as `[电话]` in place of each finding."""
    tags = _rules(lang).tags
    parts, at = [], 0
    for hit in find_pii(text, lang):
        parts += [text[at : hit.start], tags[hit.kind]]
        at = hit.end
    return "".join(parts) + text[at:]


def without_pii(talks: Iterable[Conversation], *, redacting: bool = False) -> Iterator[Outcome]:
    """Leave out talks with personal data (reason pii; the detail names kinds and turns, never the text), or redact them.

    System turns are ours and are not looked at.
    """
    for block in blocks(talks, BLOCK):
        for talk, found in zip(block, _found_in(block), strict=True):
            if not found:
                yield talk
            elif redacting:
                lang = language(talk)
                turns = (
                    turn.model_copy(update={"content": redact(turn.content, lang)}) if at in found else turn
                    for at, turn in enumerate(talk.turns)
                )
                yield talk.model_copy(update={"turns": tuple(turns)})
            else:
                places = [f"{hit.kind} in turn {at}" for at, hits in found.items() for hit in hits]
                yield Dropped(talk.id, "pii", ", ".join(places))


def _found_in(talks: Sequence[Conversation]) -> list[dict[int, list[PiiHit]]]:
    """For each talk the turns with findings. Each pattern is tried only on the turns that have what it needs."""
    found: list[dict[int, list[PiiHit]]] = [{} for _ in talks]
    turns: dict[Lang, list[tuple[int, int, str]]] = {"zh": [], "en": []}
    for number, talk in enumerate(talks):
        turns[language(talk)] += [(number, at, turn.content) for at, turn in enumerate(talk.turns) if turn.role != "system"]
    for lang, some in turns.items():
        rules = _rules(lang)
        views = [_views(text, rules) for _, _, text in some]
        for place, patterns in _suspects(views, lang).items():
            number, at, text = some[place]
            if hits := _find(text, views[place], rules, [rules.patterns[each] for each in sorted(patterns)]):
                found[number][at] = hits
    return [dict(sorted(each.items())) for each in found]


def _suspects(views: Sequence[Mapping[str, str]], lang: Lang) -> dict[int, set[int]]:
    """The texts in which something may be found, with the patterns that may find it."""
    gate = _gate(lang)
    suspects: dict[int, set[int]] = {place: set(gate.always) for place in range(len(views))} if gate.always else {}
    for view in ("plain", "digits"):
        places = [place for place, each in enumerate(views) if view in each]
        for pattern, rows in gate.passed(pl.Series([views[place][view] for place in places], dtype=pl.String)):
            for row in rows:
                suspects.setdefault(places[row], set()).add(pattern)
    return dict(sorted(suspects.items()))


def _hit(kind: str, span: Span, text: str) -> PiiHit:
    return PiiHit(kind, *span, text[slice(*span)])


def _origin(text: str) -> list[int]:
    """For each character of the plain view, where in the text it stands."""
    hidden = {match.start() for match in _INVISIBLE.finditer(text)}
    return [at for at in range(len(text)) if at not in hidden]


def _narrow(match: re.Match[str]) -> str:
    narrow = unicodedata.normalize("NFKC", match[0])
    return narrow if len(narrow) == 1 else match[0]


def _join_addresses(found: list[tuple[str, Span]], plain: str) -> Iterator[tuple[str, Span]]:
    """Parts of one address that overlap or stand side by side are one finding."""
    held: tuple[str, Span] | None = None
    for kind, (start, end) in found:
        if held and kind == held[0] == _COMPOSED and (start < held[1][1] or _JOINT.fullmatch(plain, held[1][1], start)):
            held = (kind, (held[1][0], max(end, held[1][1])))
            continue
        if held:
            yield held
        held = (kind, (start, end))
    if held:
        yield held


@cache
def _rules(lang: Lang) -> _Rules:
    shared, own = read_table("curate/pii_any.toml"), read_table(f"curate/pii_{lang}.toml")
    words: dict[str, str] = {**shared["words"], **own["words"]}
    numerals = shared["numerals"]
    return _Rules(
        patterns=tuple(_pattern(row, words) for table in (shared, own) for row in table["pattern"]),
        words=Words.of(lang, words, own),
        tags=own["tags"],
        numerals=str.maketrans(numerals["han"], numerals["digits"]),
    )


@cache
def _gate(lang: Lang) -> Gate:
    return Gate([[(each.needs or each.regex).pattern] for each in _rules(lang).patterns])


def _pattern(row: Mapping[str, Any], words: Mapping[str, str]) -> _Pattern:
    source = row["regex"]
    while filled := re.search(r"%([a-z_]+)%", source):
        source = source.replace(filled[0], words[filled[1]])
    return _Pattern(
        kind=row["kind"],
        regex=re.compile(source),
        views=tuple(row["views"]),
        check=CHECKS[row["check"]] if "check" in row else None,
        needs=re.compile(row["needs"]) if "needs" in row else None,
    )
