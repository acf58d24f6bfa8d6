"""Write docs/cli.md from the help texts of every command: `python docs/generate_cli.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from qiaoban.cli.main import cli

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100

_HEAD = """\
# Command line

Data goes to standard output, talk to standard error. `NO_COLOR` is respected. Exit codes: 0 ok, 1 failed, 2 wrong use,
130 interrupted. This page is written by `python docs/generate_cli.py` from the help texts; do not edit it by hand.
"""


def render() -> str:
    """The whole page."""
    sections = [f"## `{name}`\n\n```text\n{text}\n```\n" for name, text in _helps(cli, "qiaoban", None)]
    return "\n".join([_HEAD, *sections])


def _helps(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Path and help text of `command` and of everything below it, at a fixed width."""
    context = click.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **command.context_settings,
    )
    yield context.command_path, click.unstyle(command.get_help(context)).rstrip()
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            inner = command.get_command(context, below)
            assert inner is not None, below  # noqa: S101 - the group has just named it
            yield from _helps(inner, below, context)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
