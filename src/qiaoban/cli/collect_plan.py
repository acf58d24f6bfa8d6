"""`qiaoban collect plan`: cards from the bank, or from what exists, with what they will cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.cli.batch import emit
from qiaoban.cli.collect_options import Shares, Span, price_option
from qiaoban.cli.voice import note
from qiaoban.collect.card import Card, write_plan
from qiaoban.collect.figures import PlanReport, estimate, report
from qiaoban.collect.given import branch_cards, expand_cards, repair_cards
from qiaoban.collect.plan import PlanOptions, read_topics
from qiaoban.collect.plan import plan as plan_cards
from qiaoban.collect.run import RunFolder
from qiaoban.conversation import decode_lines, open_bytes, read_conversations
from qiaoban.errors import DataError, UsageError
from qiaoban.files import write_atomically

_SHOWN = 4  # of the lines that say what is missing
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Where cards come from, when not from the bank."""

    source: Path | None
    mode: str | None
    findings: Path | None
    per_talk: int


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True, help="How many cards.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same plan.")
@click.option("--langs", type=Shares(), metavar="SHARES", help="[default: zh=0.8,en=0.2]")
@click.option("--modes", type=Shares(), metavar="SHARES", help="Of roleplay, script, general.  [default: roleplay]")
@click.option("--ages", type=Span(), metavar="A-B", help="[default: 5-17]")
@click.option("--domain", "domains", multiple=True, help="Only this domain; may be given again.")
@click.option("--risks", type=Shares(), metavar="SHARES", help="Of everyday, sensitive, safeguarding, adversarial.")
@click.option("--outcomes", type=Shares(), metavar="SHARES", help="Of the outcomes of the bank.")
@click.option("--turns", type=Span(), metavar="A-B", help="Turns of the child.  [default: 4-9]")
@click.option("--template", type=click.Choice(["coach", "seed2023"]), default="coach", show_default=True, help="Of scripts.")
@click.option("--length", type=Span(), metavar="A-B", help="Of scripts, in characters (zh) or words (en).")
@click.option("--topics", type=_FILE, multiple=True, help="A file of your own topics, like those of the bank; may be repeated.")
@click.option("--from", "source", type=_FILE, help="Start from this JSONL file instead of the bank; see --mode.")
@click.option("--mode", type=click.Choice(["expand", "repair", "branch"]), help="What to do with --from.")
@click.option("--findings", type=_FILE, help="For repair: what `qiaoban data lint --json` found.")
@click.option("--per-talk", type=click.IntRange(1), default=2, show_default=True, help="For branch: turns of each dialogue.")
@price_option
@click.option("--concurrency", type=click.IntRange(1), default=64, show_default=True, help="For the estimate of time.")
@click.option("--latency", type=click.FloatRange(0), default=3.0, show_default=True, help="Seconds a call, for the estimate.")
@click.option("--rpm", type=click.FloatRange(1), help="Requests a minute, for the estimate of time.")
@click.option("--dry-run", is_flag=True, help="Say what the plan holds and costs, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def plan(folder: Path, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Write FOLDER/plan.jsonl: one card for each dialogue to be. Asks no model.

    Quotas are met to the card, every pair of domain, age, emotion, outcome and risk that makes sense is covered where there are
    cards enough, and combinations that make no sense are left out.
    """
    place = RunFolder(folder)
    figures = {key: given.pop(key) for key in ("price", "concurrency", "latency", "rpm")}
    topics: tuple[Path, ...] = given.pop("topics")
    start = _Given(**{key: given.pop(key) for key in _Given.__dataclass_fields__})
    cards, found = _planned(start, topics, given)
    cost = estimate(cards, figures.pop("price"), **figures)
    if not dry_run:
        _write(place, cards, topics)
    summary = {"cards": len(cards), "written": None if dry_run else str(place.plan), **asdict(cost)}
    if as_json:
        emit(summary | ({"plan": asdict(found)} if found else {}))
        return
    if found:
        _show(found)
    money = "" if cost.cost is None else f", cost about {cost.cost:.4g}"
    click.echo(
        f"{len(cards):,} cards, about {cost.calls:,} calls, {cost.prompt_tokens:,} + {cost.completion_tokens:,} tokens{money}, "
        f"{timedelta(seconds=round(cost.seconds))} at {figures['concurrency']} at once"
    )
    note(f"nothing was written: this was --dry-run of {place.plan}" if dry_run else f"written: {place.plan}")


def _planned(start: _Given, topics: tuple[Path, ...], given: dict[str, Any]) -> tuple[list[Card], PlanReport | None]:
    bank, seed = load_catalogue(), given["seed"]
    if (start.source is None) != (start.mode is None):
        raise UsageError("--from and --mode go together", hint="for instance --from dialogues.jsonl --mode branch")
    if start.source is None:
        length = given.pop("length")
        chosen = {key: value for key, value in given.items() if value not in (None, ())}
        if length:
            chosen["lengths"] = {"zh": length, "en": length}
        options = PlanOptions(**chosen, extra=tuple(read_topics(path) for path in topics))
        cards = plan_cards(bank, options)
        return cards, report(bank, options, cards)
    if start.mode == "expand":
        return expand_cards(_rows(start.source), bank, seed=seed, turns=given["turns"] or (4, 9)), None
    talks = read_conversations(start.source)
    if start.mode == "branch":
        return branch_cards(talks, bank, per_talk=start.per_talk, seed=seed), None
    if start.findings is None:
        raise UsageError("repair needs findings", hint="give --findings, made by `qiaoban data lint --json`")
    findings = (row for row in _rows(start.findings) if "summary" not in row)
    return repair_cards(talks, findings, bank, seed=seed), None


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with open_bytes(path) as file:
        for number, line in decode_lines(file, path):
            if isinstance(line, DataError):
                raise line
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"this is not JSON: {error}", path=path, line=number) from None
            if not isinstance(row, dict):
                raise DataError("this is not a JSON object", path=path, line=number)
            yield row


def _write(place: RunFolder, cards: Iterable[Card], topics: tuple[Path, ...]) -> None:
    """Write the plan and copies of the user's topics. A plan that was begun is left alone, unless it is the same."""
    fresh = place.path / "plan.new.jsonl"
    write_plan(fresh, cards)
    try:
        if place.plan.exists() and place.plan.read_bytes() != fresh.read_bytes():
            if place.ledger.exists():
                raise UsageError(f"{place.plan} is another plan, and was begun", hint="plan into a folder of its own")
            note(f"{place.plan} was another plan, not begun; it is replaced")
        fresh.replace(place.plan)
    finally:
        fresh.unlink(missing_ok=True)
    if len({path.name for path in topics}) < len(topics):
        raise UsageError("two topic files have one name", hint="rename one of them")
    for path in topics:
        with write_atomically(place.topics / path.name) as file, path.open("rb") as old:
            shutil.copyfileobj(old, file)


def _show(found: PlanReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, side in (("", "left"), ("", "left"), ("cards", "right"), ("asked", "right"), ("got", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    last = ""
    for share in found.shares:
        name = share.dimension if share.dimension != last else ""
        table.add_row(name, share.value, f"{share.count:,}", f"{share.asked:.1%}", f"{share.got:.1%}")
        last = share.dimension
    Console().print(table)
    click.echo(f"{found.pairs_covered:,} of {found.pairs_feasible:,} pairs covered ({found.covered:.1%})")
    for line in found.missing[:_SHOWN]:
        note(line)
    if len(found.missing) > _SHOWN:
        note(f"and {len(found.missing) - _SHOWN} more; --json names all")
