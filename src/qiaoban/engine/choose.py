"""Which engine to open, and the plug-in point through which all of them are found.

An engine is published under the entry-point group `qiaoban.plugins` with the name `engine.<name>`; the entry point is an
`async (EngineChoice, Settings) -> Engine`. The built-in ones are registered the same way, in `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from qiaoban.engine.protocol import Engine
from qiaoban.errors import UsageError
from qiaoban.models.registry import DEFAULT_MODEL, ModelSpec, Sampling, load_registry
from qiaoban.models.store import ModelStore
from qiaoban.settings import Settings

GROUP = "qiaoban.plugins"
_PREFIX = "engine."


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What the caller asked for.

    `model` is an id of the registry, a path, or the endpoint's name for its model; without one, local engines take the
    default model. `slots` is how many talks the embedded engine keeps in memory; `extra_body` goes into an endpoint's requests.
    """

    engine: str = "llamacpp"
    model: str | None = None
    base_url: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    adapter: Path | None = None
    threads: int | None = None
    context_tokens: int | None = None
    slots: int = 1

    def local_path(self, settings: Settings) -> Path:
        """The file or folder that `model` means. `UsageError` when it is neither a path nor installed."""
        model = self.model or DEFAULT_MODEL
        path = Path(model).expanduser()
        if self.spec is None and path.exists():
            return path
        return ModelStore(settings.home, settings=settings).path(model)

    @property
    def spec(self) -> ModelSpec | None:
        """The registry's entry, if `model` is one."""
        return load_registry().get(self.model or DEFAULT_MODEL)

    @property
    def sampling(self) -> Sampling:
        """The sampling that suits the model."""
        return self.spec.sampling if self.spec else Sampling()

    def refuse(self, **given: object) -> None:
        """`UsageError` when an option was given that this engine cannot honour."""
        for name, value in given.items():
            if value:
                raise UsageError(f"the {self.engine} engine cannot take {name} ({value})", hint="leave the option out")


def engines() -> Mapping[str, EntryPoint]:
    """Every engine that is installed, by name, sorted."""
    found = {p.name.removeprefix(_PREFIX): p for p in entry_points(group=GROUP) if p.name.startswith(_PREFIX)}
    return dict(sorted(found.items()))


async def open_engine(choice: EngineChoice, settings: Settings) -> Engine:
    """Open the engine that `choice` names; a base URL alone means the `openai` engine. `UsageError` for an unknown name."""
    if choice.base_url and choice.engine == EngineChoice.engine:
        choice = replace(choice, engine="openai")
    known = engines()
    if choice.engine not in known:
        near = get_close_matches(choice.engine, known, n=1)
        raise UsageError(
            f"no engine {choice.engine!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"installed: {', '.join(known)}",
        )
    engine: Engine = await known[choice.engine].load()(choice, settings)
    return engine
