"""A Ray cluster to work on: one that is there, or one that is started on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qiaoban.errors import EngineError, UsageError

_ADDRESS = "start one with `ray start --head`, or leave out --ray-address"


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many workers, and the Ray cluster to join (None: a local one)."""

    workers: int = 2
    address: str | None = None


@contextmanager
def ray_data(crew: Crew, *, hint: str) -> Iterator[Any]:
    """The module `ray.data`, connected. `UsageError` without Ray, `EngineError` with `hint` where a worker is lost."""
    try:  # heavy, and only here
        import ray  # noqa: PLC0415
        import ray.data  # noqa: PLC0415
    except ImportError:
        raise UsageError("--engine ray needs Ray", hint="pip install 'qiaoban[scale]'") from None
    try:
        ray.init(address=crew.address, num_cpus=None if crew.address else crew.workers + 1, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster at {crew.address!r}: {str(error).splitlines()[0][:200]}", hint=_ADDRESS) from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray.data
    except ray.exceptions.RayTaskError as error:
        raise EngineError(f"a worker failed: {str(error.cause or error).splitlines()[0][:200]}", hint=hint) from None
    except ray.exceptions.RayError as error:
        raise EngineError(f"a worker was lost: {str(error).splitlines()[0][:200]}", hint=hint) from None
    finally:
        ray.shutdown()
