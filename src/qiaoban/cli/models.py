"""`qiaoban models`: which models there are, and bringing them here."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from qiaoban.cli.batch import emit
from qiaoban.cli.voice import DownloadBar, note
from qiaoban.models.registry import DEFAULT_MODEL, ModelSpec, load_registry
from qiaoban.models.store import Installed, ModelStore
from qiaoban.settings import load


def _store() -> ModelStore:
    settings = load()
    return ModelStore(settings.home, settings=settings)


@click.group()
def command() -> None:
    """List, pull and verify models."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a model on standard output.")
def list_models(as_json: bool) -> None:
    """Show every known model, and which are here."""
    installed = {model.id: model for model in _store().installed()}
    rows = [(spec, installed.get(spec.id)) for spec in load_registry().values()]
    if as_json:
        for spec, here in rows:
            emit(_facts(spec, here))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "size", "here", "languages", "licence"):
        table.add_column(column, no_wrap=column in ("model", "size"))
    for spec, here in rows:
        state = "-" if here is None else here.problem or "yes"
        name = f"{spec.id} *" if spec.id == DEFAULT_MODEL else spec.id
        table.add_row(name, _size(spec.size), state, " ".join(spec.languages), spec.licence)
    Console(soft_wrap=False).print(table)
    note("* the default. Size ?: no digest is pinned; the first pull records it, and every later check keeps to it.")
    note(f"Models lie in {load().home / 'models'}")


@command.command("pull")
@click.argument("model", default=DEFAULT_MODEL)
def pull(model: str) -> None:
    """Bring MODEL here and check its digest; goes on where an earlier pull stopped.  [default: the embedded model]"""
    path = _store().pull(model, progress=DownloadBar())
    click.echo(path)


@command.command("verify")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
def verify(models: tuple[str, ...]) -> int:
    """Read the files of MODELS (by default all that are here) again and compare their digests."""
    store = _store()
    chosen = models or tuple(model.id for model in store.installed())
    if not chosen:
        note("no model is here yet; `qiaoban models pull` brings the default one")
        return 1
    for model in chosen:
        found = store.verify(model, progress=DownloadBar())
        click.echo(f"{found.id}\tsha256 {found.sha256}\tok ({found.trust})")
    return 0


def _facts(spec: ModelSpec, here: Installed | None) -> dict[str, object]:
    return {
        "id": spec.id,
        "title": spec.title,
        "size": spec.size,
        "sha256": spec.sha256,
        "licence": spec.licence,
        "languages": list(spec.languages),
        "default": spec.id == DEFAULT_MODEL,
        "path": str(here.path) if here else None,
        "trust": here.trust if here else None,
        "problem": here.problem if here else "",
    }


def _size(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.0f} MB"
