"""`qiaoban curate`: from raw dialogues to those that are fit to learn from."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from qiaoban.cli.batch import emit
from qiaoban.cli.collect_options import crew_of, engine_options
from qiaoban.cli.voice import note
from qiaoban.curate.decontaminate import HeldOut, load_deny_list
from qiaoban.curate.pipeline import CurateOptions, curate
from qiaoban.curate.scale import ray_hands
from qiaoban.formats import read_talks
from qiaoban.report.page import write_report

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--against", type=_FILE, multiple=True, help="A test set that must not be learnt; may be given again.")
@click.option("--deny", type=_FILE, help="A list of hashed test texts.")
@click.option("--drop-repairable", is_flag=True, help="Leave out also what `collect plan --mode repair` could mend.")
@click.option("--redact", is_flag=True, help="Replace personal data by tags instead of leaving the dialogue out.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a stage on standard output.")
def command(
    file: Path,
    folder: Path,
    against: tuple[Path, ...],
    deny: Path | None,
    drop_repairable: bool,
    redact: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run the stages over FILE into FOLDER: rules, duplicates, held-out texts, personal data.

    Each stage leaves kept.jsonl, dropped.jsonl with the reasons, and stats.json; FOLDER/kept.jsonl is what remains, and
    FOLDER/report.html a page about it. The same file gives the same bytes.
    """
    options = CurateOptions(
        against=tuple(HeldOut(path.name, tuple(_texts(path))) for path in against),
        deny=load_deny_list(deny) if deny else None,
        drop_repairable=drop_repairable,
        redact=redact,
    )
    crew = crew_of(**given)
    with ray_hands(crew) if crew else nullcontext() as hands:
        counts = curate(partial(read_talks, file), folder, options, hands)
    for count in counts:
        if as_json:
            emit(count.as_json() | {"seconds": round(count.seconds, 2)})
        else:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in count.dropped.items())
            click.echo(f"{count.stage:<16} {count.read:>9,} → {count.kept:>9,}  {reasons}".rstrip())
    note(f"written: {folder}, with {write_report(folder).name}")


def _texts(path: Path) -> list[str]:
    """What was said in a test set, one text a turn."""
    return [turn.content for talk in read_talks(path) for turn in talk.turns if turn.role != "system"]
