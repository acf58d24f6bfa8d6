"""`qiaoban data report|card`: what a curated folder holds, as a page for people and as a card for those who take the data."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import click

from qiaoban.cli.voice import note
from qiaoban.errors import UsageError

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_DAY = click.DateTime(["%Y-%m-%d"])
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*", re.ASCII)
_VERSION = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}", re.ASCII)

_EXAMPLES = {"--language": "zh", "--version": "1.0.0"}


@click.command("report")
@click.argument("folder", type=_FOLDER)
def report(folder: Path) -> None:
    """Draw the page of a curated FOLDER again, report.html.

    It tells what `qiaoban curate` wrote into FOLDER, and what judges have seen since.
    """
    from qiaoban.report.page import write_report  # the rules, which `--help` does not need

    note(f"written: {write_report(folder)}")


@click.command("card")
@click.argument("folder", type=_FOLDER)
@click.option("--name", required=True, help="What the set is called.")
@click.option("--licence", required=True, metavar="SPDX", help="The licence of the whole, such as CC-BY-4.0.")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="May be given again.  [default: as the talks are]")
@click.option("--creator", help="Who publishes it.")
@click.option("--url", help="Where it is published.")
@click.option("--published", type=_DAY, metavar="YYYY-MM-DD", help="Since when.")
@click.option("--version", metavar="MAJOR.MINOR.PATCH", help="Which version of the set this is.")
@click.option("--force", is_flag=True, help="Write over a card that is there.")
def card(
    folder: Path,
    name: str,
    licence: str,
    languages: tuple[str, ...],
    creator: str | None,
    url: str | None,
    published: datetime | None,
    version: str | None,
    force: bool,
) -> None:
    """Write the dataset card of a curated FOLDER.

    README.md is for Hugging Face, in English and Chinese, and croissant.json for machines. Read both before you publish
    them: they tell what is in the files, and not what you know besides.
    """
    from qiaoban.report.card import write_card
    from qiaoban.report.facts import Facts
    from qiaoban.report.licences import check_licence

    facts = Facts(
        name=name,
        licence=check_licence(licence),
        languages=_matching("--language", _LANGUAGE, languages),
        creator=creator,
        url=url,
        published=published.date().isoformat() if published else None,
        version=next(iter(_matching("--version", _VERSION, (version,) if version else ())), None),
    )
    written = write_card(folder, facts, force=force)
    note(f"written: {folder / 'README.md'}, {folder / 'croissant.json'}")
    if written.missing:
        note(f"croissant.json should also say: {', '.join(f'--{each}' for each in written.missing)}")
    if written.other_licences:
        named = ", ".join(f"{each} {count:,}" for each, count in written.other_licences.items())
        note(f"talks under another licence than {facts.licence}: {named}; where it is stricter, it holds")
    if written.unlicensed:
        note(f"{written.unlicensed:,} talks name no licence")


def _matching(option: str, form: re.Pattern[str], values: tuple[str, ...]) -> tuple[str, ...]:
    """The values, all of which have that form; `UsageError` for the first that has not."""
    for value in values:
        if not form.fullmatch(value):
            raise UsageError(f"{option} {value!r} has another form than wanted", hint=f"give it as in {_EXAMPLES[option]}")
    return values
