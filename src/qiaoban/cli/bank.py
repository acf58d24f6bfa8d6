"""`qiaoban bank`: read the topic bank and prove that it is whole."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from qiaoban.bank.catalogue import Scene, load_catalogue
from qiaoban.bank.lint import lint
from qiaoban.cli.batch import emit
from qiaoban.cli.voice import note
from qiaoban.conversation import AgeBand, Category, Emotion


@click.group()
def command() -> None:
    """Show and check the topic bank: life scenes, emotions, acts, people, safety scenarios."""


@command.command("lint")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a finding on standard output.")
def lint_bank(as_json: bool) -> int:
    """Check coverage, ages, uniqueness and both languages. Exit code 1 when an error is found."""
    bank = load_catalogue()
    findings = lint(bank)
    for finding in findings:
        if as_json:
            emit({"id": finding.id, "rule": finding.rule, "severity": finding.severity, "message": finding.message})
        else:
            click.echo(f"{finding.severity:<8}{finding.rule:<10}{finding.id}: {finding.message}")
    errors = sum(finding.severity == "error" for finding in findings)
    note(f"{len(bank.domains)} domains, {len(bank.scenes)} scenes, {len(bank.scenarios)} safety scenarios: {errors} errors")
    return 1 if errors else 0


@command.command("show")
@click.option("--domain", help="Only this domain.")
@click.option("--age", type=click.IntRange(5, 17), help="Only scenes for this age in years.")
@click.option("--emotion", type=click.Choice([e.value for e in Emotion]), metavar="EMOTION", help="Only scenes that raise it.")
@click.option("--risk", type=click.Choice([c.value for c in Category]), metavar="CATEGORY", help="Only scenes of this risk.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a scene on standard output.")
def show(domain: str | None, age: int | None, emotion: str | None, risk: str | None, as_json: bool) -> None:
    """Show scenes; without a choice, how many each domain has for each age."""
    bank = load_catalogue()
    if domain is not None and domain not in {d.id for d in bank.domains}:
        raise click.BadParameter(f"no domain {domain!r}; there are: {', '.join(d.id for d in bank.domains)}")
    if not any((domain, age, emotion, risk, as_json)):
        _overview()
        return
    for d in bank.domains:
        for scene in d.scenes if domain in (None, d.id) else ():
            if _wanted(scene, age, emotion, risk):
                if as_json:
                    emit(scene.model_dump(mode="json"))
                else:
                    click.echo(f"{scene.id}\t{scene.ages[0]}-{scene.ages[1]}\t{scene.zh}\t{scene.en}")


def _wanted(scene: Scene, age: int | None, emotion: str | None, risk: str | None) -> bool:
    return (
        (age is None or scene.ages[0] <= age <= scene.ages[1])
        and (emotion is None or emotion in scene.emotions)
        and (risk is None or scene.risk == risk)
    )


def _overview() -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    bands = [band for band in AgeBand if band is not AgeBand.B3_5]
    for column in ("domain", "", "scenes", "good", "risk", *bands):
        table.add_column(column)
    for domain in load_catalogue().domains:
        spans = [scene.ages for scene in domain.scenes]
        per_band = [sum(a <= band.years[1] and b >= band.years[0] for a, b in spans) for band in bands]
        good, risk = sum(s.positive for s in domain.scenes), sum(s.risk is not None for s in domain.scenes)
        table.add_row(domain.id, domain.name.zh, *map(str, (len(domain.scenes), good, risk, *per_band)))
    Console().print(table)
