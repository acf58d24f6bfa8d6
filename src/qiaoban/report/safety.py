"""The safety of synthetic talks as far as it was assessed, and what was not.

China's measures for anthropomorphic AI services ask in their draft (Cyberspace Administration, 27 December 2025, on training
data, point 4) that the safety of synthetic data be assessed. This is that assessment for one curated set: counts of what rules
found before and after, of risks and of referrals, of personal data. Where nothing was measured it says so, and no count of
nought means that a set is safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from pydantic import BaseModel, ConfigDict

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Bilingual, parse_table
from qiaoban.conversation import Category, Conversation, language, open_bytes, parse_conversation, whole_lines
from qiaoban.curate.lint import lint
from qiaoban.curate.pii import find_pii
from qiaoban.curate.rules import Finding, Rule, choose_rules
from qiaoban.curate.rules_talk import HARM
from qiaoban.report.folder import HELD_OUT, PERSONAL, CuratedFolder
from qiaoban.report.hits import Hits, RuleHits

REFERRAL = "missing_referral"
RULES = (
    "claims_kinship",
    "kinship_vocative",
    "claims_human",
    "embodied_promise",
    "claims_to_have_acted",
    "secrecy",
    "exclusivity",
    "dismisses_feeling",
    "blames_child",
    "interrogates_disclosure",
    "unsafe_advice",
    "graphic_or_method",
    "medical_dosing",
    REFERRAL,
    "unlisted_help_line",
    "asks_personal_data",
)


@dataclass(frozen=True)
class RiskRow:
    """Talks about one kind of risk; None for those without a label. `unreferred`: none where referral is not asked for."""

    risk: Category | None
    talks: int
    unreferred: int | None


@dataclass(frozen=True)
class RuleRow:
    """One safety rule: hits in all talks that were read, and in the assessed talks that are left."""

    rule: Rule
    before: Hits
    after: Hits


@dataclass(frozen=True)
class Personal:
    """Personal data that was found, by kind, and what became of it: talks left out, talks with tags in its place."""

    dropped: int
    redacted: int
    kinds: Mapping[str, int]


class Gap(BaseModel):
    """Something that was not assessed, told in both languages."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    text: Bilingual


@dataclass(frozen=True)
class Assessment:
    """The assessment. `talks` of the set were assessed: all but those that people wrote.

    `personal` is None where the stage that looks for it left no trace, `judged` where no judge has written anything.
    """

    talks: int
    risks: tuple[RiskRow, ...]
    rules: tuple[RuleRow, ...]
    personal: Personal | None
    judged: int | None
    gaps: tuple[Gap, ...]


class Assessor:
    """Runs the safety rules over the talks that are left, then counts those talks one by one."""

    def __init__(self, folder: CuratedFolder, before: RuleHits, judged: frozenset[str] | None) -> None:
        self._folder, self._before, self._judged = folder, before, judged
        self._unreferred: set[str] = set()
        self._after = RuleHits(self._findings())
        self._risks: Counter[Category | None] = Counter()
        self._without: Counter[Category | None] = Counter()
        self._seen = self._unknown = 0

    def add(self, talk: Conversation) -> None:
        """Count a talk that is left."""
        if talk.provenance.synthetic is False:
            return
        self._risks[talk.meta.risk] += 1
        self._without[talk.meta.risk] += talk.id in self._unreferred
        self._unknown += talk.provenance.synthetic is None
        self._seen += self._judged is not None and talk.id in self._judged

    def assessment(self) -> Assessment:
        """What the counts say together."""
        personal = personal_data(self._folder)
        open_ = self._open(personal)
        return Assessment(
            talks=self._risks.total(),
            risks=tuple(self._row(risk) for risk in (*Category, None) if self._risks[risk]),
            rules=tuple(RuleRow(rule, self._before.of(rule.id), self._after.of(rule.id)) for rule in choose_rules(RULES)),
            personal=personal,
            judged=None if self._judged is None else self._seen,
            gaps=tuple(gap for gap in load_gaps() if open_.get(gap.id, True)),
        )

    def _findings(self) -> Iterator[Finding]:
        for finding in lint((talk for talk in self._folder.talks() if talk.provenance.synthetic is not False), rules=RULES):
            if finding.rule == REFERRAL:
                self._unreferred.add(finding.id)
            yield finding

    def _row(self, risk: Category | None) -> RiskRow:
        """Without a label the rule goes by words: what it hits is told, and its silence says little."""
        return RiskRow(risk, self._risks[risk], self._without[risk] if risk is None or risk in HARM else None)

    def _open(self, personal: Personal | None) -> dict[str, bool]:
        """Which of the gaps that a set may close are open in this one; those that are not named here always are."""
        options = self._folder.stats.options
        return {
            "judge": self._judged is None,
            "judge_part": self._judged is not None and self._seen < self._risks.total(),
            "held_out": options is None or not (options.against or options.deny),
            "risk": bool(self._risks[None]),
            "origin": bool(self._unknown),
            "personal": personal is None,
        }


def personal_data(folder: CuratedFolder) -> Personal | None:
    """What the last stage found: read from its reasons or, where it put tags, by comparing it with the stage before."""
    stage = folder.stage(PERSONAL)
    if stage is None or not (folder.path / PERSONAL / "dropped.jsonl").is_file():
        return None
    kinds: Counter[str] = Counter()
    if stage.dropped:
        for gone in folder.dropped(PERSONAL):
            kinds.update(place.partition(" in ")[0] for place in gone.detail.split(", "))
        return Personal(sum(stage.dropped.values()), 0, dict(sorted(kinds.items())))
    before, after = (folder.path / name / "kept.jsonl" for name in (HELD_OUT, PERSONAL))
    if not (before.is_file() and after.is_file()):
        return None
    redacted = 0
    with open_bytes(before) as old, open_bytes(after) as new:
        for (number, line), (_, mended) in zip(whole_lines(old, before), whole_lines(new, after), strict=True):
            if line != mended:
                redacted += 1
                kinds.update(_kinds(parse_conversation(line, path=before, number=number)))
    return Personal(0, redacted, dict(sorted(kinds.items())))


def _kinds(talk: Conversation) -> Iterator[str]:
    lang = language(talk)
    return (hit.kind for turn in talk.turns if turn.role != "system" for hit in find_pii(turn.content, lang))


class _Gaps(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    gap: tuple[Gap, ...]


@cache
def load_gaps() -> tuple[Gap, ...]:
    """Everything that may not have been assessed, in the order in which it is told."""
    name = "report/gaps.toml"
    return parse_table(_Gaps, read_table(name), name).gap
