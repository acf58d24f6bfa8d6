"""The benchmarks run, in their short form; what they say about counts is checked, what they say about time is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qiaoban.errors import QiaobanError
from qiaoban.models.registry import DEFAULT_MODEL
from qiaoban.models.store import ModelStore
from qiaoban.settings import load

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_chat_against_bare_llama_cpp(tmp_path: Path) -> None:
    settings = load()
    try:
        ModelStore(settings.home, settings=settings).path(DEFAULT_MODEL)
    except QiaobanError as error:
        pytest.skip(f"no weights: {error.message}; run `qiaoban models pull`")
    out = tmp_path / "chat.json"
    command = [sys.executable, str(BENCHMARKS / "chat.py"), "--pairs", "1", "--talks", "3", "--out", str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(out.read_text("utf-8"))
    assert 0 < result["second_turn_fresh_tokens"] <= 30, "the second turn reads more than what is new in it"
    assert all(0 < fresh <= 30 for fresh in result["interleaved_fresh_tokens"])
    assert result["growth_over_talks"] < 1.1
    assert {"first_token_ratio", "first_sentence_extra_ms", "decode_ratio", "rss_ratio", "cancel_prefill_ms"} <= set(result)


def test_collect_against_a_bare_gather_and_the_2023_loop() -> None:
    command = [sys.executable, str(BENCHMARKS / "collect.py"), "--latency", "0.05", "--rounds", "1", "--at-once", "8"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert (result["at_once"], result["dialogues"]) == (8, 64)
    assert {"ratio_to_bare", "dialogues_per_second", "times_the_2023_loop"} <= set(result)


def test_the_memory_of_a_run() -> None:
    command = [sys.executable, str(BENCHMARKS / "collect.py"), "--latency", "0", "--memory", "20"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["cards"] == 20


def test_curation_beside_its_peers() -> None:
    command = [sys.executable, str(BENCHMARKS / "curate.py"), "--talks", "120", "--rounds", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr  # also when the hits of the two engines differ
    rows = {row.get("measured"): row for row in map(json.loads, answer.stdout.splitlines())}
    assert rows["word rules"]["equal_hits"] > 0
    assert {"rules: words", "duplicates", "held-out texts", "personal data"} <= set(rows["stages"]["dialogues_per_second"])
    assert rows["near-duplicates"]["skipped"] == "not asked for: --datasketch"
    assert rows["operators"]["skipped"] == "not asked for: --data-juicer"


def test_the_cost_of_whole_curations(tmp_path: Path) -> None:
    picture = tmp_path / "scale.svg"
    command = [sys.executable, str(BENCHMARKS / "curate.py"), "--scale", "30", "60", "--plot", str(picture)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr
    runs = [json.loads(line) for line in answer.stdout.splitlines()][1:]
    assert [run["dialogues"] for run in runs] == [30, 60]
    assert all(0 < run["kept"] < run["dialogues"] for run in runs)
    assert picture.read_text("utf-8").rstrip().endswith("</svg>")
