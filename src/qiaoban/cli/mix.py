"""`qiaoban mix`: one training set of several sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from qiaoban import settings
from qiaoban.cli.batch import emit
from qiaoban.cli.voice import note
from qiaoban.conversation import Turn
from qiaoban.errors import QiaobanError
from qiaoban.formats import read_talks
from qiaoban.formats.hub import local_file
from qiaoban.mix import KINDS, PRESETS, Kind, MixOptions, MixSource, mix
from qiaoban.models.registry import DEFAULT_MODEL
from qiaoban.models.store import ModelStore
from qiaoban.render import EstimatingTokenizer, load_gguf_renderer

_FILES = "A file of any known format, or hf:OWNER/NAME/FILE or ms:OWNER/NAME/FILE; may be given again."


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--companion", multiple=True, metavar="FILE", help=f"Companion talks. {_FILES}")
@click.option("--general", multiple=True, metavar="FILE", help="General talks, likewise.")
@click.option("--instruction", multiple=True, metavar="FILE", help="Single-turn instructions, likewise.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="companion-50", show_default=True, help="Shares of tokens.")
@click.option("--tokens", type=click.IntRange(1), help="Size of train.  [default: the largest that shares and caps allow]")
@click.option("--max-repeats", type=click.IntRange(1), default=3, show_default=True, help="Of one talk in train.")
@click.option(
    "--temperature", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Evens out sources."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Whose tokenizer counts.")
@click.option("--licence", multiple=True, metavar="FILE=LICENCE", help="Written into the manifest; may be given again.")
@click.option("--json", "as_json", is_flag=True, help="The manifest on standard output.")
def command(
    folder: Path,
    companion: tuple[str, ...],
    general: tuple[str, ...],
    instruction: tuple[str, ...],
    preset: str,
    tokens: int | None,
    max_repeats: int,
    temperature: float,
    seed: int,
    model: str,
    licence: tuple[str, ...],
    as_json: bool,
) -> None:
    """Mix companion talks, general talks and instructions into FOLDER: train, valid and test.jsonl, and mix.json.

    Shares are of tokens; without general talks, or without instructions, the other takes its part as well. Talks that share a
    topic, a card or a source dialogue stay in one split.
    """
    env = settings.load()
    licences = dict(pair.partition("=")[::2] for pair in licence)
    sources = []
    for kind, files in zip(KINDS, (companion, general, instruction), strict=True):
        sources += [_source(kind, name, licences.get(name), max_repeats, env) for name in files]
    wanted = _shares(preset, sources)
    options = MixOptions(sources=tuple(sources), shares=wanted, tokens=tokens, temperature=temperature, seed=seed)
    manifest = mix(options, read_talks, _counter(model, env), folder)
    if as_json:
        emit(manifest)
        return
    for split, found in manifest["splits"].items():
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares"].items())
        click.echo(f"{split}: {found['talks']:,} talks, {found['turns']:,} turns, {found['tokens']:,} tokens ({shares})")
    note(f"written: {folder}")


def _shares(preset: str, sources: Sequence[MixSource]) -> dict[Kind, float]:
    """The preset, with the part of a kind that has no source given to the other kind beside the companion."""
    there = {source.kind for source in sources} - {"companion"}
    shares = dict(PRESETS[preset])
    rest = 1 - shares["companion"]
    if there:
        all_of_them = sum(shares[kind] for kind in there)
        shares |= {kind: rest * shares[kind] / all_of_them if kind in there else 0.0 for kind in shares if kind != "companion"}
    return shares


def _source(kind: Kind, name: str, licence: str | None, max_repeats: int, env: settings.Settings) -> MixSource:
    return MixSource(name=name, kind=kind, path=local_file(name, env), max_repeats=max_repeats, licence=licence)


def _counter(model: str, env: settings.Settings) -> Callable[[Sequence[Turn]], int]:
    """Tokens by the model's own tokenizer where it is here, else by an estimate."""
    try:
        renderer = load_gguf_renderer(ModelStore(env.home, settings=env).path(model))
    except QiaobanError as error:
        note(f"tokens are estimated: {error.message}")
        estimate = EstimatingTokenizer()
        return lambda turns: sum(len(estimate.encode(turn.content)) + 4 for turn in turns)
    return lambda turns: renderer.count(turns, open_reply=False)
