"""The root command. Groups are loaded when they are called, so that `qiaoban --help` is instant."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from qiaoban import __version__
from qiaoban.errors import QiaobanError, UsageError

# name → (module, one line for --help)
_COMMANDS = {
    "bank": ("qiaoban.cli.bank", "Show and check the topic bank: scenes, emotions, people."),
    "chat": ("qiaoban.cli.chat", "Talk with the companion, or play talks from a file."),
    "collect": ("qiaoban.cli.collect", "Plan and collect dialogues from a strong model."),
    "curate": ("qiaoban.cli.curate", "Leave out what is not fit to learn from."),
    "data": ("qiaoban.cli.data", "Check, convert, show, count and describe data sets."),
    "doctor": ("qiaoban.cli.doctor", "Say what is installed, what is missing and how to get it."),
    "judge": ("qiaoban.cli.judge", "Have a strong model judge talks, or compare two systems."),
    "mix": ("qiaoban.cli.mix", "Put several sources into one training set."),
    "models": ("qiaoban.cli.models", "List, pull and verify models."),
    "safety": ("qiaoban.cli.safety", "See what the guard makes of a message."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the alphabet."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of `name`; its command is the attribute `command`."""
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for --help, from the table above and without an import."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="qiaoban %(version)s")
def cli() -> None:
    """Qiaoban (七巧板): a children's emotional companion, with a guard on both sides of the model.

    It is a computer program: no therapy, no diagnosis, no emergency service. In danger call your local emergency number.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit code 0 ok · 1 failed · 2 wrong use · 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """As `main`, but the exit code is returned."""
    _speak_utf8()
    try:
        result: Any = cli.main(arguments, prog_name="qiaoban", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except QiaobanError as error:
        from qiaoban.cli.voice import show_error

        show_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        from qiaoban.cli.voice import show_error

        where = f"{error.filename}: " if error.filename else ""
        show_error(QiaobanError(f"{where}{error.strerror or error}", hint="look at the disk and its permissions"))
        return 1
    return result if isinstance(result, int) else 0


def _speak_utf8() -> None:
    """Chinese must come out right on a terminal or a pipe that claims another encoding."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
