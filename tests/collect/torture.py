"""Collect many dialogues from a misbehaving teacher, kill the run twice without warning, and prove from the teacher's own log
that nothing which had arrived was asked for again and that no card was lost.

`python -m tests.collect.torture --dialogues 2000` is the long form of the test that CI runs with 200.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QIAOBAN = [sys.executable, "-m", "qiaoban", "collect"]
CONCURRENCY = 64
PATIENT = ("--concurrency", str(CONCURRENCY), "--tries", "6")  # one answer in twenty is bad: three in a row do happen


@contextmanager
def fake_teacher(log: Path, *faults: str) -> Iterator[str]:
    """A fake teacher in a process of its own; gives its base URL."""
    command = [*QIAOBAN, "serve-fake", "--port", "0", "--log", str(log), *faults]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(timeout=20)
        if server.stdout is not None:
            server.stdout.close()


def requests(log: Path) -> list[dict[str, Any]]:
    """Every request that the teacher has seen, in order."""
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []


def wait_for_requests(log: Path, count: int, run: subprocess.Popen[str]) -> None:
    """Wait until the teacher has seen so many; cheap, for it shares the machine with what it watches."""
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert run.poll() is None, finish(run)
        time.sleep(0.05)


def plan(folder: Path, *options: str) -> None:
    """Plan into `folder` with the command line."""
    subprocess.run([*QIAOBAN, "plan", str(folder), *options], check=True, capture_output=True, timeout=300)


def start(folder: Path, url: str, *options: str) -> subprocess.Popen[str]:
    """Start a run."""
    command = [*QIAOBAN, "run", str(folder), "--model", "fake-teacher", "--base-url", url, "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen[str], *, timeout: float = 900) -> dict[str, Any]:
    """Wait for a run; its outcome as it reports it, with `code` and `said`."""
    out, said = run.communicate(timeout=timeout)
    found: dict[str, Any] = json.loads(out) if out.strip() else {}
    return found | {"code": run.returncode, "said": said}


def keys_by_state(folder: Path) -> dict[str, set[str]]:
    """Keys of calls in a ledger that nobody has open."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        found: dict[str, set[str]] = {"answered": set(), "sent": set()}
        for key, state in db.execute("SELECT key, state FROM calls"):
            found.setdefault(state, set()).add(key)
    db.close()
    return found


def torture(folder: Path, *, dialogues: int, seed: int, turns: str = "4-6") -> dict[str, Any]:
    """The whole ordeal; `AssertionError` where a promise is broken. Returns figures."""
    log, rng = folder / "teacher.jsonl", random.Random(seed)
    plan(folder, "--count", str(dialogues), "--turns", turns, "--seed", str(seed))
    calls = sum(2 * json.loads(line)["turns"] + 1 for line in (folder / "plan.jsonl").read_text("utf-8").splitlines())
    faults = ["--latency", "0.2", "--jitter", "0.2", "--too-many", "0.005", "--retry-after", "0.05"]
    faults += ["--server-error", "0.02", "--bad-json", "0.02", "--cut", "0.02", "--empty", "0.01", "--seed", str(seed)]
    began, kills = time.monotonic(), sorted(rng.sample(range(calls // 10, calls * 8 // 10), 2))
    at_kill: list[tuple[dict[str, set[str]], int]] = []  # the ledger, and how many requests the teacher had seen
    with fake_teacher(log, *faults) as url:
        for mark in kills:
            run = start(folder, url, *PATIENT)
            wait_for_requests(log, mark, run)
            time.sleep(rng.random() * 0.1)
            run.send_signal(signal.SIGKILL)
            run.communicate(timeout=30)
            time.sleep(0.5)  # what the teacher was about to say, it has said
            at_kill.append((keys_by_state(folder), len(requests(log))))
        outcome = finish(start(folder, url, *PATIENT))
        again = finish(start(folder, url, *PATIENT))
    seen, in_flight = requests(log), [states["sent"] for states, _ in at_kill]
    for states, before in at_kill:
        assert len(states["sent"]) <= CONCURRENCY
        assert states["answered"] <= {row["key"] for row in seen[:before] if row["status"] == 200}
        sent_again = {row["key"] for row in seen[before:]} & states["answered"]
        assert not sent_again, f"{len(sent_again)} answers were in the ledger and asked for again"
    _check_end(folder, dialogues, (outcome, again), set().union(*in_flight), seen)
    assert outcome["possibly_paid"] == sum(map(len, in_flight)), "what was on its way at a kill is reported"
    return {
        "dialogues": dialogues,
        "kills_at": kills,
        "calls": outcome["answered"],
        "in_flight_at_kills": [len(keys) for keys in in_flight],
        "possibly_paid": outcome["possibly_paid"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _check_end(
    folder: Path,
    dialogues: int,
    outcomes: tuple[dict[str, Any], dict[str, Any]],
    in_flight: set[str],
    seen: list[dict[str, Any]],
) -> None:
    outcome, again = outcomes
    assert outcome["code"] == again["code"] == 0, outcome
    assert outcome["done"] == dialogues, outcome
    assert outcome["open"] == outcome["failed"] == 0
    assert again["answered"] == outcome["answered"], "a run over a finished plan asks for nothing"
    answered = Counter(row["key"] for row in seen if row["status"] == 200)
    twice = {key for key, count in answered.items() if count > 1}
    assert twice <= in_flight, "a call was paid for twice that was not on its way at a kill"
    assert in_flight <= keys_by_state(folder)["answered"], "what was on its way is sent again under the same key"
    records = (folder / "dialogues.jsonl").read_text("utf-8").splitlines()
    cards = [json.loads(line)["id"] for line in (folder / "plan.jsonl").read_text("utf-8").splitlines()]
    assert [json.loads(line)["id"] for line in records] == cards


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(torture(Path(folder), dialogues=options.dialogues, seed=options.seed)))


if __name__ == "__main__":
    main()
