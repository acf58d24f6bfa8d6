"""The whole tool on real weights, as a newcomer runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qiaoban.errors import QiaobanError
from qiaoban.models.registry import DEFAULT_MODEL
from qiaoban.models.store import ModelStore
from qiaoban.settings import load

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def weights() -> None:
    settings = load()
    try:
        ModelStore(settings.home, settings=settings).path(DEFAULT_MODEL)
    except QiaobanError as error:
        pytest.skip(f"no weights: {error.message}; run `qiaoban models pull`")


def qiaoban(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qiaoban", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=900,
        check=False,
    )


def test_without_a_terminal_a_talk_of_six_turns_or_more_is_shown() -> None:
    answer = qiaoban("chat")
    assert answer.returncode == 0, answer.stderr
    replies = re.findall(r"^(?:七巧板|Qiaoban): (.+)$", answer.stdout, re.MULTILINE)
    assert len(replies) >= 6
    assert all(len(reply.strip()) > 1 for reply in replies)
    assert "电脑" in replies[0]


def test_the_seed_cases_in_the_batch_form() -> None:
    answer = qiaoban("chat", "--script", str(ROOT / "examples" / "talks" / "seed_cases.jsonl"), "--json", "--seed", "1")
    assert answer.returncode == 0, answer.stderr
    talks = {row["id"]: row for row in map(json.loads, answer.stdout.splitlines())}
    assert list(talks) == ["case1-zh", "case1-en", "case2-zh", "case2-en", "case3-zh", "case3-en"]
    for talk in talks.values():
        assert all(turn["reply"] for turn in talk["turns"])
        assert talk["model"] == DEFAULT_MODEL
        assert not re.search("\ufffd", json.dumps(talk, ensure_ascii=False))
    for name in ("case1-zh", "case1-en", "case2-zh", "case2-en"):
        assert {turn["safety"]["severity"] for turn in talks[name]["turns"]} == {"none"}, name
    for name, fault in (
        ("case3-zh", "不是你的错|不怪你|错不在你"),
        ("case3-en", "not your fault|isn't your fault|nothing wrong"),
    ):
        said = " ".join(turn["reply"] for turn in talks[name]["turns"])
        assert re.search(fault, said, re.IGNORECASE), said
        assert sum(turn["safety"]["guardian_may_be_source"] for turn in talks[name]["turns"]) >= 4


def test_one_message_and_a_pipe() -> None:
    assert qiaoban("chat", "--once", "今天我学会了骑车").stdout.strip()
    piped = qiaoban("chat", "--age", "8", stdin="今天下雨了\n拜拜\n这一句不会再说\n")
    assert piped.returncode == 0
    assert "拜拜" in piped.stdout
    assert "这一句不会再说" not in piped.stdout, "after a goodbye the talk is over"
