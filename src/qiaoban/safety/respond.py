"""Reviewed replies, filled with the help lines of the child's country."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

from qiaoban.bank import read_table
from qiaoban.conversation import Act, AgeBand, Lang
from qiaoban.errors import DataError

Role = Literal["helpline", "emergency", "ambulance", "youth"]
ANYWHERE = "*"


@dataclass(frozen=True, kw_only=True)
class Hotline:
    """A help line with the day its source was read. `number` may be empty where only a kind of line is known."""

    id: str
    jurisdiction: str
    role: Role
    number: str
    name: Mapping[str, str]
    verified_on: date
    valid_days: int
    default: bool

    def spoken(self, lang: Lang) -> str:
        """Name and number as they stand in a sentence; the bare number for police and ambulance."""
        if self.number and self.role in ("emergency", "ambulance"):
            return self.number
        return f"{self.name[lang]} {self.number}".strip()

    def expired(self, today: date) -> bool:
        """Whether the entry has to be checked again."""
        return today > self.verified_on + timedelta(days=self.valid_days)


@dataclass(frozen=True)
class Hotlines:
    """All help lines that are known."""

    lines: tuple[Hotline, ...]

    def speak(self, role: Role, *, jurisdiction: str, lang: Lang) -> str:
        """The line to name in a reply; where the country has none, words that fit anywhere."""
        for where in (jurisdiction, ANYWHERE):
            for line in self.lines:
                if line.default and line.role == role and line.jurisdiction == where:
                    return line.spoken(lang)
        raise DataError(f"no {role} line for {jurisdiction!r} nor for {ANYWHERE!r}", path="hotlines.toml")

    def numbers(self, jurisdiction: str) -> frozenset[str]:
        """Every number that may be named to a child of that country, digits only."""
        lines = (line for line in self.lines if line.jurisdiction == jurisdiction)
        return frozenset(digits for line in lines if (digits := "".join(filter(str.isdigit, line.number))))


@dataclass(frozen=True)
class VettedReply:
    """A reviewed reply as the child gets it, with the acts it does."""

    text: str
    acts: tuple[Act, ...]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    family: str
    bands: frozenset[AgeBand]
    acts: tuple[Act, ...]
    stages: tuple[tuple[str, ...], ...]  # first, second, later


class Replies:
    """The reviewed replies of one language."""

    def __init__(self, entries: Sequence[_Entry], hotlines: Hotlines, lang: Lang) -> None:
        self._entries = {(entry.family, band): entry for entry in entries for band in entry.bands}
        self._hotlines = hotlines
        self._lang = lang

    def __contains__(self, family: str) -> bool:
        return any(family == known for known, _ in self._entries)

    def all_texts(self) -> list[str]:
        """Every text with its placeholders, for review and tests."""
        unique = {id(entry): entry for entry in self._entries.values()}.values()
        return [text for entry in unique for stage in entry.stages for text in stage]

    def choose(self, family: str, *, band: AgeBand, jurisdiction: str, used: Sequence[str], salt: int = 0) -> VettedReply:
        """The reply for this moment of the talk.

        `used` holds the texts given so far. The first need of a family takes a `first` variant, the next a `second`, then
        `later`; a text is never given twice in a talk while another is left. `salt` varies the choice between talks.
        """
        entry = self._entries.get((family, band))
        if entry is None:
            raise DataError(f"no vetted reply of family {family!r} for ages {band.value}", path=f"replies/{self._lang}.toml")
        filled = [[self._fill(text, jurisdiction) for text in stage] for stage in entry.stages]
        seen = set(used)
        step = sum(text in seen for stage in filled for text in stage)
        order = [*range(min(step, 2), 3), *reversed(range(min(step, 2)))]
        for stage in (filled[i] for i in order):
            if fresh := [text for text in stage if text not in seen]:
                return VettedReply(fresh[salt % len(fresh)], entry.acts)
        oldest = min((text for stage in filled for text in stage), key=lambda text: _last(used, text))
        return VettedReply(oldest, entry.acts)

    def _fill(self, text: str, jurisdiction: str) -> str:
        roles: tuple[Role, ...] = ("helpline", "emergency", "ambulance")
        for role in roles:
            mark = f"{{{role}}}"
            if mark in text:
                text = text.replace(mark, self._hotlines.speak(role, jurisdiction=jurisdiction, lang=self._lang))
        return text


def _last(used: Sequence[str], text: str) -> int:
    return max(i for i, earlier in enumerate(used) if earlier == text)


def load_hotlines() -> Hotlines:
    """The dated file of help lines."""
    return Hotlines(tuple(_hotline(row) for row in read_table("hotlines.toml")["hotline"]))


def load_replies(lang: Lang, hotlines: Hotlines) -> Replies:
    """The reviewed replies of one language. `DataError` names the family that is wrong."""
    return Replies([_entry(row, lang) for row in read_table(f"replies/{lang}.toml")["reply"]], hotlines, lang)


def _hotline(row: Mapping[str, Any]) -> Hotline:
    try:
        return Hotline(**{name: row[name] for name in Hotline.__dataclass_fields__})
    except KeyError as error:
        raise DataError(f"entry {row.get('id', '?')!r} lacks {error}", path="hotlines.toml") from None


def _entry(row: Mapping[str, Any], lang: Lang) -> _Entry:
    try:
        return _Entry(
            family=row["family"],
            bands=frozenset(AgeBand(band) for band in row["bands"]),
            acts=tuple(Act(act) for act in row["acts"]),
            stages=tuple(tuple(row[stage]) for stage in ("first", "second", "later")),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"family {row.get('family', '?')!r}: {error}", path=f"replies/{lang}.toml") from None
