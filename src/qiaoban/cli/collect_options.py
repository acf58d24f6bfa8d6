"""Kinds of values that `qiaoban collect` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qiaoban.cluster import Crew

Command = TypeVar("Command", bound=Callable[..., Any])


class Numbers(click.ParamType[tuple[float, ...]]):
    """`0.27,1.1`: so many numbers with commas between them."""

    name = "numbers"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse them, or say how many are wanted."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            found = ()
        if not self._least <= len(found) <= self._most or min(found) < 0:
            self.fail(f"{value!r} is not {self._least} to {self._most} numbers with commas between them", param, ctx)
        return found


class Span(click.ParamType[tuple[int, int]]):
    """`5-17`: two whole numbers with a hyphen between them, or one for both."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse it, or say how it is written."""
        if isinstance(value, tuple):
            return value
        low, _, high = str(value).partition("-")
        if not (low.isdecimal() and (high or low).isdecimal()):
            self.fail(f"{value!r} is not a span such as 5-17", param, ctx)
        return int(low), int(high or low)


class Shares(click.ParamType[dict[str, float]]):
    """`zh=0.8,en=0.2`: names with weights; a name alone weighs 1."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        """Parse them, or say which one is wrong."""
        if isinstance(value, dict):
            return value
        found: dict[str, float] = {}
        for part in str(value).split(","):
            name, _, weight = part.partition("=")
            try:
                found[name.strip()] = float(weight or 1)
            except ValueError:
                self.fail(f"{part!r} is not a name with a weight such as zh=0.8", param, ctx)
        return found


price_option = click.option(
    "--price",
    type=Numbers(2, 3),
    metavar="IN,OUT[,CACHED]",
    help="Money for a million prompt, answer and cached prompt tokens. Without it tokens are counted, and no cost is made up.",
)

_ENGINE = (
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What runs it."),
    click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Of --engine ray."),
    click.option("--ray-address", metavar="ADDRESS", help="A Ray cluster to join; without it one is started here."),
)


def engine_options(command: Command) -> Command:
    """The options of `crew_of`, in this order."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


def crew_of(*, engine: str, workers: int, ray_address: str | None) -> Crew | None:
    """The workers that the options ask for; None for this process."""
    return Crew(workers=workers, address=ray_address) if engine == "ray" else None
