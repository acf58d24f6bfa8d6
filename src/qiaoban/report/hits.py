"""What the rules found in the talks that were read, counted with a few quotations each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qiaoban.curate.rules import Finding, Rule, load_rules
from qiaoban.report.folder import Found

EXAMPLES = 3
_GRAVEST = ("drop", "repair", "tag")


@dataclass
class Hits:
    """How often one rule hit, in how many dialogues, and the first few findings."""

    count: int = 0
    dialogues: int = 0
    examples: list[Found | Finding] = field(default_factory=list)
    _last: str | None = None

    def add(self, finding: Found | Finding) -> None:
        """One more. Findings come talk by talk, so a new id is a new dialogue."""
        self.count += 1
        self.dialogues += finding.id != self._last
        self._last = finding.id
        if len(self.examples) < EXAMPLES:
            self.examples.append(finding)


class RuleHits:
    """Hits by rule. A rule that is no longer in the bank is counted and has no reason."""

    def __init__(self, findings: Iterable[Found | Finding] = ()) -> None:
        self._hits: defaultdict[str, Hits] = defaultdict(Hits)
        self._severity: dict[str, str] = {}
        for finding in findings:
            self._hits[finding.rule].add(finding)
            self._severity[finding.rule] = finding.severity

    def of(self, rule: str) -> Hits:
        """The hits of one rule, none as well."""
        return self._hits.get(rule, Hits())

    def rows(self) -> Iterator[tuple[str, str, Rule | None, Hits]]:
        """Rules that hit: id, severity as found, the rule of the bank, hits; the gravest and most frequent first."""
        known = {rule.id: rule for rule in load_rules()}
        for name in sorted(self._hits, key=lambda each: (_GRAVEST.index(self._severity[each]), -self._hits[each].count, each)):
            yield name, self._severity[name], known.get(name), self._hits[name]

    def silent(self) -> list[str]:
        """Rules of the bank that found nothing."""
        return [rule.id for rule in load_rules() if rule.id not in self._hits]
