"""How the tool speaks on standard error: short lines in lower case, a hint where one helps, a bar for what takes long."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from qiaoban.errors import QiaobanError


def stderr() -> Console:
    """Talk goes here; data goes to standard output. Respects `NO_COLOR` and knows whether a terminal listens."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: QiaobanError) -> None:
    """`error: what and why`, then `hint: what to do`."""
    console = stderr()
    console.print(Text.assemble(("error", "bold red"), f": {error.message}"))
    if error.hint:
        console.print(Text.assemble("\n", ("hint", "bold cyan"), f": {error.hint}"))


def note(message: str) -> None:
    """One line of talk."""
    stderr().print(Text(message))


class DownloadBar:
    """The store's `Progress` on a terminal; without one, a line for each tenth of the way."""

    def __init__(self) -> None:
        self._console = stderr()
        self._bar = Bar(
            TextColumn("  "),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._total = 0
        self._done = 0
        self._told = 0

    def start(self, total: int | None) -> None:
        """Begin, or begin again with another source; `total` in bytes where it is known."""
        self._total, self._done, self._told = total or 0, 0, 0
        if not self._console.is_terminal:
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        else:
            self._bar.reset(self._task, total=total)

    def advance(self, amount: int) -> None:
        """`amount` more bytes are here."""
        self._done += amount
        if self._task is not None:
            self._bar.advance(self._task, amount)
        elif self._total and self._done * 10 // self._total > self._told:
            self._told = self._done * 10 // self._total
            self._console.print(Text(f"  {self._told * 10}% of {self._total / 1e6:.0f} MB"))

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(Text(text))

    def done(self) -> None:
        """Take the bar away."""
        self._bar.stop()
        self._task = None
