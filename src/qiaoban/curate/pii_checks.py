"""What a regex cannot say about personal data: checksums, dates, help lines, and whether a name is one of ours.

A check takes a match and the word lists of the language, and gives where the finding stands, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from ipaddress import ip_address
from typing import Any

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import load_catalogue
from qiaoban.conversation import Lang

Span = tuple[int, int]

_CUE_REACH = 16  # characters before a number in which a word may say what it is
_PROVINCES = frozenset(
    map(str, [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82])
)
_MOBILE_GROUPS = [[11], [3, 4, 4], [3, 8], [7, 4], [3, 3, 5], [3, 4, 2, 2], [3, 2, 2, 2, 2]]
_CARD_GROUPS = [[4, 4, 4, 4], [4, 4, 4, 4, 3], [6, 10], [6, 13], [4, 6, 5], [4, 4, 4, 4, 2], [4, 4, 4, 4, 1]]
_CARD_BRAND = re.compile(r"4|5[1-5]|2[2-7]|3[47]|35|6[0258]|9[0-9]")
_NAME = re.compile(r"[一-鿿]{2,10}")
_LONGEST_NAME = 4


@dataclass(frozen=True)
class Words:
    """The word lists of a language, as the checks need them."""

    cues: Mapping[str, re.Pattern[str]]
    names: frozenset[str]
    hotlines: frozenset[str]
    lists: Mapping[str, Sequence[str]]
    generic: re.Pattern[str]
    lead: re.Pattern[str]

    @classmethod
    def of(cls, lang: Lang, words: Mapping[str, str], table: Mapping[str, Any]) -> Words:
        """From the [words], [names] and [places] of a language's file, the bank's names and its help lines."""
        names = load_catalogue().names
        ours = [each.name.lower() for each in (*names.zh, *names.en)] + [
            each.name.lower() for each in (*names.pets_zh, *names.pets_en)
        ]
        generic = sorted(table["places"]["generic"], key=len, reverse=True)
        gap = r"\s+" if lang == "en" else ""
        return cls(
            cues={name: re.compile(words[f"{name}_cue"]) for name in ("phone", "id", "card")},
            names=frozenset([*ours, *table["names"]["known"]]),
            hotlines=frozenset(_digits(each["number"]) for each in read_table("hotlines.toml")["hotline"] if each["number"]),
            lists=table["names"],
            generic=re.compile(rf"(?:(?:{'|'.join(map(re.escape, generic))}){gap})*", re.IGNORECASE),
            lead=re.compile(rf"(?:(?:{'|'.join(re.escape(word) for word in generic if len(word) > 1)}){gap})*", re.IGNORECASE),
        )

    def cued(self, cue: str, match: re.Match[str]) -> bool:
        """Whether a word shortly before the match says what it is."""
        start = match.start()
        return self.cues[cue].search(match.string, max(0, start - _CUE_REACH), start) is not None


Check = Callable[[re.Match[str], Words], Span | None]


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _groups(text: str) -> list[int]:
    return [len(each) for each in re.findall(r"\d+", text)]


def _span(match: re.Match[str]) -> Span:
    return match.span("hit") if "hit" in match.re.groupindex else match.span()


def resident_id(match: re.Match[str], words: Words) -> Span | None:
    """A Chinese resident id of 18 characters (GB 11643: date and checksum) or of 15. One with a fault counts after its cue."""
    code = re.sub(r"[ \-]", "", match[0]).upper()
    if words.cued("id", match):
        return match.span()
    born = code[6:14] if len(code) == 18 else "19" + code[6:12]
    if code[:2] not in _PROVINCES or not _is_date(born):
        return None
    if len(code) == 18:
        total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(code[:17]))
        if "10X98765432"[total % 11] != code[17]:
            return None
    return match.span()


def _is_date(digits: str) -> bool:
    try:
        return 1900 <= date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).year <= 2099
    except ValueError:
        return False


def bank_card(match: re.Match[str], words: Words) -> Span | None:
    """A card number: Luhn's checksum, a known brand, groups as on a card. After its cue any number of that length."""
    code = _digits(match[0])
    if words.cued("card", match):
        return match.span()
    groups = _groups(match[0])
    usual = _CARD_BRAND.match(code) and (len(code) >= 16 or code[:2] in {"34", "37"})
    return match.span() if usual and (len(groups) == 1 or groups in _CARD_GROUPS) and _luhn(code) else None


def _luhn(code: str) -> bool:
    odd, even = code[-1::-2], code[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10 == 0


def mobile(match: re.Match[str], words: Words) -> Span | None:
    """A Chinese mobile number, in groups as people write it; in any groups after a cue. A list of numbers is none."""
    groups = _groups(match[0].removeprefix("+").removeprefix("00"))
    groups = groups[1:] if groups[0] == 2 and sum(groups) == 13 else [11] if groups == [13] else groups
    listed = re.search(r"[,，、/]", match[0]) and groups not in _MOBILE_GROUPS
    written = groups in _MOBILE_GROUPS or ((groups[0] > 2 or len(groups) == 11) and words.cued("phone", match))
    if listed or not written:
        return None
    return None if _digits(match[0]) in words.hotlines else match.span()


def hotline(match: re.Match[str], words: Words) -> Span | None:
    """A telephone number that is not a help line of the bank."""
    digits = _digits(match["hit"] if "hit" in match.re.groupindex else match[0])
    shorter = digits.removeprefix("1")
    return None if words.hotlines & {digits, shorter, "1" + digits} else _span(match)


def ip(match: re.Match[str], words: Words) -> Span | None:
    """An address of IPv4 or IPv6, not a time of day."""
    try:
        ip_address(match[0])
    except ValueError:
        return None
    return match.span()


def plate(match: re.Match[str], words: Words) -> Span | None:
    """A Chinese number plate: five places with two letters at most, or six for a car of new energy."""
    body = match["body"].upper()
    green = re.fullmatch(r"[A-HJK][A-Z0-9]\d{4}|\d{5}[A-HJK]", body)
    return match.span() if green or (len(body) == 5 and len(_digits(body)) >= 3) else None


def place(match: re.Match[str], words: Words) -> Span | None:
    """A school, street or house with a proper name: more than “our”, “the big”, “next to”. These are cut off its front."""
    start, end = _span(match)
    if "head" in match.re.groupindex:
        head = match["head"]
        if words.generic.fullmatch(head.strip() + " " if head.isascii() else head):
            return None
    lead = words.lead.match(match.string, start, end)
    return start + (len(lead[0]) if lead else 0), end


def name_zh(match: re.Match[str], words: Words, *, strict: bool = False) -> Span | None:
    """The name after “我叫”, where it is none of the bank's and nobody is being called over.

    It ends at a word that follows names, at punctuation, or after three characters where it begins with a surname.
    """
    start = match.start("hit")
    if match["hit"].isascii():
        return None if match["hit"].lower() in words.names else match.span("hit")
    run = re.match(_NAME, match.string[start : start + 10])
    name = _cut_name(run[0], words.lists) if run else ""
    if not name or name in words.names or name.endswith("某") or (strict and not _strict_name(name, words.lists)):
        return None
    return start, start + len(name)


def name_zh_strict(match: re.Match[str], words: Words) -> Span | None:
    """The name after “你好，我是”, which most often is no name: a surname or a nickname must begin it."""
    return name_zh(match, words, strict=True)


def _cut_name(run: str, lists: Mapping[str, Sequence[str]]) -> str:
    """The name at the beginning of a run of Han characters, or nothing."""
    double = run[:2] in lists["surname2"]
    if (not double and run.startswith(tuple(lists["stop"]))) or any(-1 < run.find(title) < 4 for title in lists["titles"]):
        return ""
    for end in range(2, min(_LONGEST_NAME, len(run)) + 1):
        rest = run[end:]
        if rest.startswith(tuple(lists["follow"])) or not rest:
            return run[:end] if end < _LONGEST_NAME or double else run[:3] if run[0] in lists["surname"] else ""
        if rest.startswith(tuple(lists["summon"])):
            return ""
    if double or run[0] in lists["surname"]:
        return run[:3]
    return run[:2] if _nickname(run[:2]) else ""


def _nickname(name: str) -> bool:
    return name[0] in "小阿" or name[0] == name[1]


def _strict_name(name: str, lists: Mapping[str, Sequence[str]]) -> bool:
    named = name[0] in lists["surname"] or _nickname(name) or name[:2] in lists["surname2"]
    return named and not name.startswith(tuple(lists["not_i_am"]))


def name_en(match: re.Match[str], words: Words) -> Span | None:
    """The name after “my name is”, where it is none of the bank's. A surname makes any name a finding."""
    name = match["hit"]
    first = re.split(r"['’ \-]", name)[0].lower()
    if first in words.lists["stop"] or name.lower() in words.names:
        return None
    return match.span("hit")


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (resident_id, bank_card, mobile, hotline, ip, plate, place, name_zh, name_zh_strict, name_en)
}
