"""`qiaoban chat`: a talk at the terminal, one message, or a file of talks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import chain

import click

from qiaoban import bank
from qiaoban.cli.batch import Batch, emit
from qiaoban.cli.options import EngineOptions, engine_options
from qiaoban.cli.voice import note
from qiaoban.companion.script import ScriptedTalk, play
from qiaoban.companion.session import Companion, Session
from qiaoban.conversation import Lang
from qiaoban.engine.choose import open_engine
from qiaoban.engine.protocol import Engine
from qiaoban.settings import load


@dataclass(frozen=True, kw_only=True)
class _Child:
    """Who talks."""

    age: int | None
    lang: Lang | None
    jurisdiction: str | None
    seed: int | None

    def session(self) -> Session:
        return Session(age=self.age, lang=self.lang, jurisdiction=self.jurisdiction, seed=self.seed)


@click.command()
@engine_options
@click.option("--age", type=click.IntRange(3, 17), help="The child's age in years.  [default: unknown, minors' mode]")
@click.option("--lang", type=click.Choice(["zh", "en"]), help="Language of the replies.  [default: the child's]")
@click.option("--jurisdiction", metavar="CODE", help="Country whose help lines are named: CN, GB, US …")
@click.option("--seed", type=int, help="Make the model's choices repeatable.")
@click.option("--once", metavar="TEXT", help="Answer one message and leave.")
@click.option("--script", metavar="FILE", help="Play the talks of a JSONL file (- for standard input).")
@click.option("--json", "as_json", is_flag=True, help="With --script: one JSON object a talk on standard output.")
def command(
    engine: EngineOptions,
    age: int | None,
    lang: Lang | None,
    jurisdiction: str | None,
    seed: int | None,
    once: str | None,
    script: str | None,
    as_json: bool,
) -> int:
    """Talk with the companion.

    At a terminal: type, or /help. With text on standard input: one message a line. With neither: a short talk is shown.
    """
    if as_json and script is None:
        raise click.UsageError("--json goes with --script")
    if once is not None and script is not None:
        raise click.UsageError("--once and --script are two different things to do")
    child = _Child(age=age, lang=lang, jurisdiction=jurisdiction, seed=seed)
    if script is not None:
        return asyncio.run(_play_file(engine, child, script, as_json=as_json))
    if once is not None:
        return asyncio.run(_answer(engine, child, [once]))
    if sys.stdin is None:
        raise click.UsageError("standard input is closed; give --once or --script")
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _converse(engine, child)
    if said := [line.strip() for line in sys.stdin if line.strip()]:
        return asyncio.run(_answer(engine, child, said))
    note("no terminal and nothing on standard input: here is a short talk with the companion\n")
    with as_file(files(bank) / "talks" / "demo.jsonl") as demo:
        return asyncio.run(_play_file(engine, child, str(demo), as_json=False))


@asynccontextmanager
async def _opened(options: EngineOptions, session: Session) -> AsyncIterator[tuple[Companion, Engine]]:
    """A companion that has read its opening for a session like this one; the engine is closed whatever happens."""
    engine = await open_engine(options.choice(), load())
    try:
        companion = Companion(engine)
        await companion.warm(session)
        yield companion, engine
    finally:
        await engine.close()


def _converse(options: EngineOptions, child: _Child) -> int:
    from qiaoban.cli.terminal import talk_at_terminal

    session, opened = child.session(), AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            companion, engine = runner.run(opened.enter_async_context(_opened(options, session)))
            return talk_at_terminal(runner, companion, session, engine.info)
        finally:
            runner.run(opened.aclose())


async def _answer(options: EngineOptions, child: _Child, messages: list[str]) -> int:
    """Answer messages of one talk in plain text."""
    from qiaoban.cli.terminal import PlainTalk

    session = child.session()
    session.language(messages[0])
    async with _opened(options, session) as (companion, _):
        talk = PlainTalk(companion, session, echo=len(messages) > 1)
        for message in messages:
            if (await talk.turn(message)).farewell:
                break
    return 1 if talk.failed else 0


async def _play_file(options: EngineOptions, child: _Child, file: str, *, as_json: bool) -> int:
    batch, failed = Batch(file), False
    talks = batch.records(ScriptedTalk)
    first = next(talks, None)
    if first is None:
        return 1 if batch.failed else 0
    async with _opened(options, Session(id=first.id, age=first.age, lang=first.lang)) as (companion, _):
        for talk in chain([first], talks):
            if as_json:
                row, failures = await play(companion, talk, jurisdiction=child.jurisdiction, seed=child.seed)
                emit(row)
            else:
                failures = await _show(companion, talk, child)
            for failure in failures:
                note(f"{talk.id}: the engine failed: {failure}")
            failed = failed or bool(failures)
    return 1 if failed or batch.failed else 0


async def _show(companion: Companion, talk: ScriptedTalk, child: _Child) -> list[str]:
    from qiaoban.cli.terminal import PlainTalk

    session = Session(id=talk.id, age=talk.age, lang=talk.lang, jurisdiction=child.jurisdiction, seed=child.seed)
    shown = PlainTalk(companion, session, echo=True)
    note(f"── {talk.id} ──")
    for message in talk.child_turns:
        await shown.turn(message)
    return shown.failed
