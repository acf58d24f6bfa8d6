"""Decoding speed by `GOMP_SPINCOUNT`, on an idle machine and beside busy neighbours: the table of decision 5.

    python benchmarks/threads.py               about four minutes on two cores
    python benchmarks/threads.py --rounds 1    a quick look

Each measurement is a process of its own, because the variable is read once; settings take turns, so that a noisy minute
hits all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from time import perf_counter

from qiaoban.conversation import Turn
from qiaoban.engine.llamacpp import LlamaCppConfig, LlamaCppEngine, available_cores
from qiaoban.engine.protocol import Options
from qiaoban.models.registry import DEFAULT_MODEL
from qiaoban.models.store import ModelStore
from qiaoban.settings import load

SETTINGS = ("unset", "0", "3000", "10000", "30000", "300000")


async def tokens_per_second(path: Path) -> float:
    """Decode 64 tokens with all cores."""
    engine = await LlamaCppEngine.load(LlamaCppConfig(path=path, slots=1, context_tokens=1024))
    async with aclosing(engine.stream([Turn(role="user", content="讲一个很长的故事")], Options(max_tokens=64))) as deltas:
        times = [perf_counter() async for delta in deltas if delta.text]
    return (len(times) - 1) / (times[-1] - times[0])


def measure(setting: str) -> float:
    """One measurement in a process of its own. `unset` is llama.cpp as it comes: the engine would set its own value."""
    env = dict(os.environ)
    env.pop("GOMP_SPINCOUNT", None)
    if setting != "unset":
        env["GOMP_SPINCOUNT"] = setting
    command = [sys.executable, __file__, "--one", *(["--bare"] if setting == "unset" else [])]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        if given.bare:
            import xllamacpp  # noqa: F401 - loaded before the engine can set the variable

        settings = load()
        print(asyncio.run(tokens_per_second(ModelStore(settings.home, settings=settings).path(DEFAULT_MODEL))))
        return
    print(
        f"median tokens/s of {given.rounds} rounds, {available_cores()} cores\n\n| neighbours | " + " | ".join(SETTINGS) + " |"
    )
    print("|---" * (len(SETTINGS) + 1) + "|")
    for hogs in (0, 1, available_cores()):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hogs)]
        try:
            rounds = [[measure(setting) for setting in SETTINGS] for _ in range(given.rounds)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        print(
            f"| {hogs} | " + " | ".join(f"{statistics.median(column):.1f}" for column in zip(*rounds, strict=True)) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
