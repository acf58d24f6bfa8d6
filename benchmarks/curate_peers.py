"""The peers of `curate.py` in virtual environments of their own: installed when asked for, run as their users run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from qiaoban.conversation import Conversation
from qiaoban.curate.near import PERMUTATIONS, Folded
from qiaoban.settings import load

DATASKETCH = ("datasketch==2.0.0",)
DATA_JUICER = ("py-data-juicer==1.6.1", "aiohttp>=3,<4")  # it imports aiohttp and does not say so
_DONE = re.compile(r"OP \[(\w+)\] Done in ([\d.]+)s")

# What does the same work here and there. The tests inside differ; the work (every text, once) is the same.
GROUPS: dict[str, tuple[str, ...]] = {
    "duplicates": ("document_deduplicator", "document_minhash_deduplicator"),
    "personal data": ("clean_email_mapper", "clean_links_mapper", "clean_ip_mapper", "pii_redaction_mapper"),
    "length, repetition, odd characters": ("text_length_filter", "character_repetition_filter", "special_characters_filter"),
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "document_deduplicator": {"lowercase": True, "ignore_non_character": True},
    "document_minhash_deduplicator": {
        "tokenization": "character",
        "window_size": 5,
        "num_permutations": PERMUTATIONS,
        "jaccard_threshold": 0.7,
        "lowercase": True,
    },
}


class MissingError(Exception):
    """A peer that cannot be had here, and why."""


class Spent(NamedTuple):
    """What a command cost, its own processes included, and what it said."""

    seconds: float
    processor: float
    said: str


def spent(command: Sequence[str]) -> Spent:
    """Run a command to its end. `MissingError` where it fails."""
    before, began = os.times(), perf_counter()
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds, after = perf_counter() - began, os.times()
    if run.returncode:
        last = [line for line in run.stdout.splitlines() if line.strip()][-1:]
        raise MissingError(f"{Path(command[0]).name} ended with {run.returncode}: {' '.join(last)}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Spent(seconds, processor, run.stdout)


def environment(name: str, packages: Sequence[str]) -> Path:
    """The folder of programs of an environment that holds `packages`, made at the first call. `MissingError` says why not."""
    folder = load().home / "bench" / name
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    done = folder / "installed"
    if not done.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
            command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise MissingError(f"{packages[0]} could not be installed: {reason[-1]}") from None
        done.touch()
    return programs


def datasketch(programs: Path, texts: Iterable[Folded], threshold: float) -> dict[str, Any]:
    """Processor seconds `usual` and `fast`, and the places of the texts that are `near` to an earlier one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("".join(json.dumps(text) + "\n" for text in texts), "utf-8")
        script = Path(__file__).with_name("curate_datasketch.py")
        command = [str(programs / "python"), str(script), str(path), str(threshold), str(PERMUTATIONS)]
        result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return result


def data_juicer(programs: Path, talks: Iterable[Conversation]) -> tuple[dict[str, float], Spent]:
    """Every operator of `GROUPS` over the talks, one text each, by its command line with two processes; seconds by its log."""
    operators = [operator for group in GROUPS.values() for operator in group]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ({"text": "\n".join(turn.content for turn in talk.turns)} for talk in talks)
        (folder / "in.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        recipe = {
            "project_name": "bench",
            "dataset_path": str(folder / "in.jsonl"),
            "export_path": str(folder / "out" / "out.jsonl"),
            "np": 2,
            "use_cache": False,
            "process": [{operator: _SETTINGS.get(operator, {})} for operator in operators],
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
        run = spent([str(programs / "dj-process"), "--config", str(folder / "recipe.yaml")])
        seconds = {operator: float(took) for operator, took in _DONE.findall(run.said)}
        if missing := set(operators) - set(seconds):
            raise MissingError(f"Data-Juicer said nothing of {min(missing)}")
        return seconds, run
