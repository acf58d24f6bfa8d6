"""`qiaoban data`: look at dialogues before anything is learned from them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict

import click

from qiaoban.cli.batch import Batch, emit
from qiaoban.cli.data_card import card, report
from qiaoban.cli.data_convert import convert, show, stats
from qiaoban.conversation import Conversation, parse_conversation
from qiaoban.curate.rules import ERRORS, Finding, Rule, choose_rules
from qiaoban.errors import DataError
from qiaoban.formats import detect, read_talks
from qiaoban.formats.chat import QIAOBAN

EXAMPLES = 2  # shown for each rule to a person
_GRAVEST = ("drop", "repair", "tag")


@click.group()
def command() -> None:
    """Check, convert, show, count and describe data sets."""


@command.command("lint")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output, the last a summary.")
@click.option("--rule", "rules", multiple=True, metavar="ID", help="Run this rule only; may be given again.")
@click.option("--level", type=click.Choice(["error", "tag"]), default="tag", show_default=True, help="The mildest to report.")
def lint_file(file: str, as_json: bool, rules: tuple[str, ...], level: str) -> int:
    """Say which dialogues of a JSONL FILE (- for standard input) break which rule. Exit code 1 when an error is found."""
    from qiaoban.curate.lint import lint  # polars and OpenCC, which `--help` does not need

    chosen = [rule for rule in choose_rules(rules or None) if level == "tag" or rule.severity in ERRORS]
    talks = TalkFile(file)
    findings = lint(talks.read(), rules=[rule.id for rule in chosen])
    found = (_as_json if as_json else _for_people)(findings, talks, chosen)
    return 1 if talks.failed or found else 0


class TalkFile:
    """Reads the talks of a file, counts them, and remembers whether a line was bad."""

    def __init__(self, file: str) -> None:
        self._file, self._batch = file, Batch(file)
        self.count = 0

    @property
    def failed(self) -> bool:
        """Whether a record was bad."""
        return self._batch.failed

    def read(self) -> Iterator[Conversation]:
        """Every well-formed talk, whatever format the file has; a malformed one is reported with its number and skipped."""
        for talk in self._own_format() if self._is_ours() else read_talks(self._file, on_bad=self._batch.bad):
            self.count += 1
            yield talk

    def _is_ours(self) -> bool:
        """Whether lines are read as Qiaoban's own: so is standard input, and a file of no known format, for its errors."""
        if self._file == "-":
            return True
        try:
            return detect(self._file) == QIAOBAN.name
        except DataError:
            return True

    def _own_format(self) -> Iterator[Conversation]:
        return self._batch.parsed(lambda line, number: parse_conversation(line, path=self._file, number=number))


def _as_json(findings: Iterator[Finding], talks: TalkFile, rules: list[Rule]) -> bool:
    """The batch form; true when an error was found."""
    summary: Counter[str] = Counter()
    errors = False
    for finding in findings:
        summary[finding.rule] += 1
        errors = errors or finding.severity in ERRORS
        emit(asdict(finding))
    emit({"summary": {rule.id: summary[rule.id] for rule in rules if summary[rule.id]}, "dialogues": talks.count})
    return errors


def _for_people(findings: Iterator[Finding], talks: TalkFile, rules: list[Rule]) -> bool:
    """Rules with how often they hit and in how many dialogues, the gravest first; true when an error was found."""
    hits: Counter[str] = Counter()
    dialogues: defaultdict[str, set[str]] = defaultdict(set)
    examples: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        hits[finding.rule] += 1
        dialogues[finding.rule].add(finding.id)
        if len(examples[finding.rule]) < EXAMPLES:
            examples[finding.rule].append(finding)
    broken = [rule for rule in rules if hits[rule.id]]
    for rule in sorted(broken, key=lambda rule: (_GRAVEST.index(rule.severity), -hits[rule.id])):
        click.echo(f"{rule.severity:<8}{rule.id:<26}{hits[rule.id]:>7} in {len(dialogues[rule.id])} dialogues")
        for finding in examples[rule.id]:
            place = "" if finding.turn is None else f" turn {finding.turn}"
            click.echo(f"        {finding.id}{place}: {finding.message}")
    errors = any(hits[rule.id] for rule in rules if rule.severity in ERRORS)
    click.echo(f"{talks.count} dialogues, {sum(hits.values())} findings, {sum(1 for n in hits.values() if n)} rules hit")
    return errors


for _each in (card, convert, report, show, stats):
    command.add_command(_each)
