"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from qiaoban.engine.choose import EngineChoice
from qiaoban.models.registry import DEFAULT_MODEL


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine options as they were given."""

    engine: str
    model: str | None
    base_url: str | None
    extra_body: dict[str, Any]
    adapter: Path | None
    threads: int | None
    context: int | None

    def choice(self) -> EngineChoice:
        """What to open."""
        return EngineChoice(
            engine=self.engine,
            model=self.model,
            base_url=self.base_url,
            extra_body=self.extra_body,
            adapter=self.adapter,
            threads=self.threads,
            context_tokens=self.context,
        )


class JsonObject(click.ParamType[dict[str, Any]]):
    """An option whose value is a JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Parse it, or say where it is wrong."""
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is not a JSON object", param, ctx)
        return parsed


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of `EngineOptions`; the command gets them as one `engine`."""

    @click.option(
        "--engine",
        "name",
        default=EngineChoice.engine,
        show_default=True,
        help="llamacpp, openai, transformers, or the name of a plug-in.",
    )
    @click.option(
        "--model",
        metavar="ID|PATH",
        help=f"A model of `qiaoban models list`, a file, or the endpoint's name for it.  [default: {DEFAULT_MODEL}]",
    )
    @click.option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint; implies --engine openai.")
    @click.option(
        "--extra-body",
        type=JsonObject(),
        default="{}",
        metavar="JSON",
        help="Goes into every request to the endpoint, e.g. to switch thinking off.",
    )
    @click.option("--adapter", type=click.Path(path_type=Path), metavar="FILE", help="A GGUF LoRA adapter.")
    @click.option("--threads", type=click.IntRange(1), help="Threads of the embedded engine.  [default: all cores, at most 8]")
    @click.option("--context", type=click.IntRange(512), metavar="TOKENS", help="Longest talk the model sees.")
    @wraps(command)
    def wrapped(*args: Any, name: str, model: str | None, **options: Any) -> Any:
        given = {key: options.pop(key) for key in ("base_url", "extra_body", "adapter", "threads", "context")}
        return command(*args, engine=EngineOptions(engine=name, model=model, **given), **options)

    return wrapped
