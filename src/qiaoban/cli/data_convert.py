"""`qiaoban data convert|show|stats`: from any format to any other, one talk to look at, and the figures of a file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qiaoban.cli.batch import emit
from qiaoban.cli.voice import note, show_error
from qiaoban.conversation import Conversation, Turn
from qiaoban.errors import DataError, UsageError
from qiaoban.formats import (
    LONGEST,
    PAIRS,
    TALKS,
    Format,
    Loss,
    Notes,
    Pair,
    detect,
    read_pairs,
    read_talks,
    write_pairs,
    write_talks,
)
from qiaoban.formats.cpsycoun import ARCHIVES
from qiaoban.formats.figures import pair_figures, talk_figures
from qiaoban.formats.llamafactory import entries_beside, entry, register

_SHOWN = 20  # bad records that are named one by one
_TOP = 12  # values of a label that are printed
_WHO = {"user": ("child", "bold cyan"), "assistant": ("companion", "bold green"), "system": ("system", "dim")}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # would move the cursor or colour the terminal
_FORMATS = [*TALKS, *PAIRS]


def _from_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--from",
        "source_format",
        type=click.Choice(_FORMATS),
        metavar="FORMAT",
        help="Format of the file.  [default: detected]",
    )(command)


def _limit_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--max-record",
        type=click.FloatRange(0.001, 2048),
        default=LONGEST / 2**20,
        show_default=True,
        metavar="MB",
        help="Longest record that is read.",
    )(command)


@dataclass(kw_only=True)
class _Source:
    """The file that is read, and what happened on the way. Bad records raise unless `skip`: then they are named and counted."""

    path: Path
    format: str
    limit: int
    skip: bool
    bad: int = 0
    notes: Notes = field(default_factory=Counter)

    @classmethod
    def of(cls, path: Path, source_format: str | None, max_record: float, *, skip: bool) -> _Source:
        limit = int(max_record * 2**20)
        return cls(path=path, format=source_format or detect(path, limit=limit), limit=limit, skip=skip)

    @property
    def has_pairs(self) -> bool:
        return self.format in PAIRS

    def talks(self) -> Iterator[Conversation]:
        return read_talks(self.path, self.format, notes=self.notes, on_bad=self._on_bad, limit=self.limit)

    def pairs(self) -> Iterator[Pair]:
        return read_pairs(self.path, self.format, notes=self.notes, on_bad=self._on_bad, limit=self.limit)

    def items(self) -> Iterator[Conversation | Pair]:
        yield from self.pairs() if self.has_pairs else self.talks()

    def _on_bad(self, error: DataError) -> None:
        if not self.skip:
            raise error
        self.bad += 1
        if self.bad <= _SHOWN:
            show_error(error)

    def report(self) -> None:
        """What was noted on reading, on standard error."""
        if self.bad:
            note(f"{self.bad:,} bad records skipped")
        if self.notes:
            note(f"on reading: {_counts(self.notes)}")


@click.command("convert")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@_from_option
@click.option(
    "--to", "target_format", type=click.Choice(_FORMATS), metavar="FORMAT", help="Format to write.  [default: by suffix]"
)
@click.option("--force", is_flag=True, help="Write over OUT.")
@click.option("--skip-bad", is_flag=True, help="Name bad records, leave them out, and end with exit code 1.")
@click.option("--dataset-info", is_flag=True, help="Put OUT into the dataset_info.json beside it, for LLaMA-Factory.")
@_limit_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the outcome on standard output.")
def convert(
    source: Path,
    target: Path,
    source_format: str | None,
    target_format: str | None,
    force: bool,
    skip_bad: bool,
    dataset_info: bool,
    max_record: float,
    as_json: bool,
) -> int:
    """Write the talks or preference pairs of IN to OUT in another format, whole or not at all.

    What the format cannot hold is counted on standard error. Formats of talks: qiaoban, openai, sharegpt, alpaca, belle, baize,
    qiaoban2023, qiaoban2023-flat, cpsycoun, parquet; of pairs: pairs, trl, trl-kto, llamafactory, llamafactory-kto.
    """
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", hint="give --force to write over it")
    file = _Source.of(source, source_format, max_record, skip=skip_bad)
    goal = target_format or _by_suffix(target, pairs=file.has_pairs)
    form: Format[Any] = TALKS[goal] if goal in TALKS else PAIRS[goal]
    registers = dataset_info or goal.startswith("llamafactory")
    if registers:  # before anything is written
        entry(form, target.name)
        entries_beside(target)
    loss = write_pairs(target, file.pairs(), goal) if file.has_pairs else write_talks(target, file.talks(), goal)
    what = "pairs" if file.has_pairs else "talks"
    note(f"{loss.talks:,} {what}, {loss.turns:,} turns: {file.format} → {goal}, {target}")
    _report_loss(loss, goal, what)
    file.report()
    if registers:
        note(f"{register(target, form)}: entry {target.stem!r}")
    if as_json:
        emit(_outcome(file, goal, loss, what))
    return 1 if file.bad else 0


def _by_suffix(target: Path, *, pairs: bool) -> str:
    if target.name.endswith(ARCHIVES) and not pairs:
        return "cpsycoun"
    if target.suffix == ".parquet" and not pairs:
        return "parquet"
    if target.suffix in {".jsonl", ".ndjson"}:
        return "pairs" if pairs else "qiaoban"
    raise UsageError(
        f"the name {target.name} does not say which format is wanted",
        hint=f"give --to: {', '.join(PAIRS if pairs else TALKS)}",
    )


def _report_loss(loss: Loss, goal: str, what: str) -> None:
    if loss.lost:
        note(f"{goal} cannot hold: {_counts(loss.lost)}")
    for reason, count in loss.left_out.most_common():
        note(f"{count:,} {what} left out: {reason}")


def _outcome(file: _Source, goal: str, loss: Loss, what: str) -> dict[str, Any]:
    return {
        "from": file.format,
        "to": goal,
        what: loss.talks,
        "turns": loss.turns,
        "lost": dict(loss.lost),
        "left_out": dict(loss.left_out),
        "notes": dict(file.notes),
        "bad": file.bad,
    }


def _counts(counter: Counter[str]) -> str:
    named = ", ".join(f"{name} {count:,}" for name, count in counter.most_common(_SHOWN))
    return named + (f" and {len(counter) - _SHOWN} kinds more" if len(counter) > _SHOWN else "")


@click.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name", metavar="[ID]", required=False)
@click.option("--number", type=click.IntRange(1), metavar="N", help="The N-th talk.  [default: 1]")
@_from_option
@_limit_option
@click.option("--json", "as_json", is_flag=True, help="As one JSON object on standard output.")
def show(file: Path, name: str | None, number: int | None, source_format: str | None, max_record: float, as_json: bool) -> None:
    """Show one talk or preference pair of a file, by its ID or its place."""
    if name is not None and number is not None:
        raise UsageError("an ID and --number together are one too many", hint="give one of them")
    source = _Source.of(file, source_format, max_record, skip=True)
    place, item, seen = 0, None, 0
    for seen, each in enumerate(source.items(), start=1):
        if each.id == name or (name is None and seen == (number or 1)):
            place, item = seen, each
            break
    if item is None:
        wanted = f"with the id {name!r}" if name is not None else f"number {number or 1}"
        raise UsageError(f"there is nothing {wanted} in {file}", hint=f"it holds {seen:,}; --number counts from 1")
    if as_json:
        emit(item.row() if isinstance(item, Pair) else json.loads(item.to_json()))
    elif isinstance(item, Pair):
        _show_pair(item, place)
    else:
        _show_talk(item, place)


def _show_talk(talk: Conversation, place: int) -> None:
    facts = {key: value for part in (talk.meta, talk.provenance) for key, value in part if value is not None}
    _show_head(talk.id, place, facts | ({"split": talk.split} if talk.split else {}))
    _show_turns(talk.turns)


def _show_pair(pair: Pair, place: int) -> None:
    facts = {"pair_type": pair.pair_type, "lang": pair.lang}
    _show_head(pair.id, place, {key: value for key, value in facts.items() if value is not None})
    _show_turns(pair.prompt)
    for side, colour in (("chosen", "green"), ("rejected", "red")):
        Console().print(Text(f"\n{side}", style=f"bold {colour}"))
        _show_turns(pair.sides()[side])


def _show_head(name: str, place: int, facts: Mapping[str, object]) -> None:
    told = " · ".join(f"{key} {value}" for key, value in facts.items())
    head = Text.assemble((_plain(name), "bold"), (f"  number {place:,}", "dim"))
    Console(highlight=False).print(head, Text(_plain(told), style="dim"), sep="\n" if told else "", end="\n\n")


def _show_turns(turns: Iterable[Turn]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for turn in turns:
        who, style = _WHO[turn.role]
        labels = [str(act) for act in turn.acts] + ([str(turn.emotion)] if turn.emotion else [])
        labels += [f"distress {turn.distress}"] if turn.distress is not None else []
        said = Text(_plain(turn.content))
        if labels:
            said.append(f"\n{' '.join(labels)}", style="dim italic")
        table.add_row(Text(who, style=style), said)
    Console(highlight=False).print(table)


def _plain(text: str) -> str:
    """Text that a file cannot use to steer the terminal: control characters show as their pictures."""
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 0x20 else "\ufffd", text)


@click.command("stats")
@click.argument("file", type=click.Path(path_type=Path))
@_from_option
@_limit_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def stats(file: Path, source_format: str | None, max_record: float, as_json: bool) -> int:
    """Count talks and turns, how long they are, and what is known of them. Bad records are named; then the exit code is 1."""
    source = _Source.of(file, source_format, max_record, skip=True)
    found = pair_figures(source.pairs(), source.notes) if source.has_pairs else talk_figures(source.talks(), source.notes)
    found = {"format": source.format} | found | {"bad": source.bad}
    if as_json:
        emit(found)
    else:
        _print_figures(found)
        source.report()
    return 1 if source.bad else 0


def _print_figures(found: Mapping[str, Any]) -> None:
    things = "pairs" if "pairs" in found else "talks"
    console = Console(highlight=False)
    console.print(Text(f"{found['format']}: {found[things]:,} {things}, {found['turns']:,} turns"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("length of")
    for column in ("count", "median", "p95", "max"):
        table.add_column(column, justify="right")
    rows = {f"{who}, {unit}": each for who, units in found["lengths"].items() for unit, each in units.items()}
    if found.get("turns per talk"):
        rows = {"talk, turns": found["turns per talk"]} | rows
    for name, each in rows.items():
        table.add_row(name, *(f"{each[key]:,}" for key in ("count", "median", "p95", "max")))
    if rows:
        console.print(table)
    for name, counts in found["labels"].items():
        if counts.keys() - {"(none)"}:
            console.print(Text(f"{name}: {_plain(_counts_of(counts))}"))


def _counts_of(counts: Mapping[str, int]) -> str:
    named = ", ".join(f"{value} {count:,}" for value, count in list(counts.items())[:_TOP])
    return named + (f", and {len(counts) - _TOP} more" if len(counts) > _TOP else "")
