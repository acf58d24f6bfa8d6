"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from qiaoban.engine.choose import EngineChoice, engines
from qiaoban.models.registry import DEFAULT_MODEL


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine options as they were given."""

    engine: str
    model: str
    base_url: str | None
    adapter: Path | None
    threads: int | None
    context: int | None

    def choice(self) -> EngineChoice:
        """What to open."""
        return EngineChoice(
            engine=self.engine,
            model=self.model,
            base_url=self.base_url,
            adapter=self.adapter,
            threads=self.threads,
            context_tokens=self.context,
        )


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --engine, --model, --base-url, --adapter, --threads and --context; the command gets one `EngineOptions`."""

    @click.option("--engine", "name", default=EngineChoice.engine, show_default=True, help=f"One of: {', '.join(engines())}.")
    @click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        metavar="ID|PATH",
        help="A model of `qiaoban models list`, a file, or the endpoint's name for it.",
    )
    @click.option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint; implies --engine openai.")
    @click.option("--adapter", type=click.Path(path_type=Path), metavar="FILE", help="A GGUF LoRA adapter.")
    @click.option("--threads", type=click.IntRange(1), help="Threads of the embedded engine.  [default: all cores]")
    @click.option("--context", type=click.IntRange(512), metavar="TOKENS", help="Longest talk the model sees.")
    @wraps(command)
    def wrapped(*args: Any, name: str, model: str, **options: Any) -> Any:
        given = {key: options.pop(key) for key in ("base_url", "adapter", "threads", "context")}
        return command(*args, engine=EngineOptions(engine=name, model=model, **given), **options)

    return wrapped
