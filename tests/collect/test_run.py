"""Whole runs through the command line, against the fake teacher in a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qiaoban import settings
from qiaoban.cli.main import run as qiaoban
from qiaoban.conversation import Act, Conversation, Meta, Turn, read_conversations, write_conversations
from qiaoban.errors import QiaobanError
from qiaoban.models.registry import DEFAULT_MODEL
from qiaoban.models.store import ModelStore
from tests.collect.torture import fake_teacher, finish, keys_by_state, plan, requests, start, torture, wait_for_requests

SHORT = ("--modes", "script", "--length", "50-60")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A teacher without faults."""
    with fake_teacher(tmp_path_factory.mktemp("teacher") / "log.jsonl", "--latency", "0.02") as url:
        yield url


def collect(folder: Path, url: str, *options: str) -> int:
    return qiaoban(["collect", "run", str(folder), "--model", "fake-teacher", "--base-url", url, *options])


def talks(folder: Path) -> list[Conversation]:
    return list(read_conversations(folder / "dialogues.jsonl"))


class TestKilled:
    def test_two_kills_lose_no_card_and_pay_for_nothing_twice(self, tmp_path: Path) -> None:
        figures = torture(tmp_path, dialogues=200, seed=11)
        assert figures["dialogues"] == 200
        assert all(0 < count <= 64 for count in figures["in_flight_at_kills"])

    def test_ctrl_c_waits_for_what_is_on_its_way(self, tmp_path: Path) -> None:
        log = tmp_path / "teacher.jsonl"
        plan(tmp_path, "--count", "20", "--turns", "4-4")
        with fake_teacher(log, "--latency", "0.5") as url:
            run = start(tmp_path, url, "--concurrency", "16")
            wait_for_requests(log, 40, run)
            run.send_signal(signal.SIGINT)
            stopped = finish(run)
            assert stopped["code"] == 130
            assert "stopping" in stopped["said"]
            assert stopped["possibly_paid"] == 0
            assert keys_by_state(tmp_path)["answered"] == {row["key"] for row in requests(log) if row["status"] == 200}
            assert finish(start(tmp_path, url))["done"] == 20

    def test_a_second_ctrl_c_leaves_at_once(self, tmp_path: Path) -> None:
        log = tmp_path / "teacher.jsonl"
        plan(tmp_path, "--count", "10")
        with fake_teacher(log, "--hang", "1") as url:
            run = start(tmp_path, url)
            wait_for_requests(log, 10, run)
            run.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert run.poll() is None
            run.send_signal(signal.SIGINT)
            assert finish(run, timeout=20)["code"] == 130
            assert len(keys_by_state(tmp_path)["sent"]) == 10


class TestLimits:
    def test_a_storm_of_429_loses_nothing(self, tmp_path: Path) -> None:
        log = tmp_path / "teacher.jsonl"
        plan(tmp_path, "--count", "40")
        with fake_teacher(log, "--latency", "0.02", "--too-many", "0.2", "--retry-after", "0.05") as url:
            outcome = finish(start(tmp_path, url))
        assert (outcome["code"], outcome["done"]) == (0, 40)
        share = sum(row["status"] == 429 for row in requests(log)) / len(requests(log))
        assert 0.12 < share < 0.28

    def test_a_limit_of_requests_is_used_and_never_passed(self, tmp_path: Path) -> None:
        log = tmp_path / "teacher.jsonl"
        plan(tmp_path, "--count", "660", *SHORT)
        with fake_teacher(log, "--latency", "0.1", "--rpm", "1800", "--window", "20") as url:
            outcome = finish(start(tmp_path, url, "--rpm", "1800"))
        assert (outcome["code"], outcome["done"]) == (0, 660)
        seen = requests(log)
        assert [row["status"] for row in seen] == [200] * 660, "in no window were there more than the limit"
        arrivals = sorted(row["t"] - 0.1 for row in seen)
        per_minute = 60 * (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
        assert per_minute >= 0.97 * 1800

    def test_a_budget_stops_before_it_is_passed_and_can_be_raised(self, tmp_path: Path, teacher: str) -> None:
        plan(tmp_path, "--count", "6")
        stopped = finish(start(tmp_path, teacher, "--budget-tokens", "30000"))
        assert stopped["code"] == 1
        assert "budget is spent" in stopped["stopped"]
        assert 0 < stopped["prompt_tokens"] + stopped["completion_tokens"] <= 30000
        raised = finish(start(tmp_path, teacher, "--budget-tokens", "3000000"))
        assert (raised["code"], raised["done"]) == (0, 6)

    def test_money_needs_a_price(self, tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
        plan(tmp_path, "--count", "2")
        assert collect(tmp_path, teacher, "--budget", "1") == 2
        assert "--price" in capsys.readouterr().err


class TestTwoProcesses:
    def test_status_reads_while_a_run_writes_and_a_second_run_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = tmp_path / "teacher.jsonl"
        plan(tmp_path, "--count", "20")
        with fake_teacher(log, "--latency", "0.4") as url:
            run = start(tmp_path, url)
            wait_for_requests(log, 40, run)
            found: dict[str, Any] = {}
            while not found or found["live"]["in_flight"] == 0:  # the first beat is written before anything is sent
                assert qiaoban(["collect", "status", str(tmp_path), "--json"]) == 0
                found = json.loads(capsys.readouterr().out)
                assert (found["state"], found["total"]) == ("running", 20)
                time.sleep(0.2)
            assert collect(tmp_path, url) == 2
            assert "another run" in capsys.readouterr().err
            assert finish(run)["code"] == 0
        assert qiaoban(["collect", "status", str(tmp_path)]) == 0
        assert "finished: 20 of 20 done" in capsys.readouterr().out


class TestWrongInput:
    """Each is named, with what to do, and costs nothing."""

    def _said(self, folder: Path, capsys: pytest.CaptureFixture[str], *options: str, url: str) -> str:
        plan(folder, "--count", "3")
        assert collect(folder, url, *options) == 1
        return capsys.readouterr().err

    def test_nobody_listens(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert "cannot be reached" in self._said(tmp_path, capsys, url=f"http://127.0.0.1:{port}/v1")

    def test_no_key(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        plan(tmp_path, "--count", "3")
        assert collect(tmp_path, "https://api.example.org/v1") == 2
        assert "OPENAI_API_KEY" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (("--api-key", "secret"), "refused the key"),
            (("--model", "another"), "does not know this model"),
            (("--quota-after", "1"), "top up"),
            (("--html", "1"), "not as a chat endpoint"),
        ],
    )
    def test_the_endpoint_says_no(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: tuple[str, ...], words: str
    ) -> None:
        with fake_teacher(tmp_path / "teacher.jsonl", *fault) as url:
            assert words in self._said(tmp_path, capsys, url=url)

    def test_answers_that_cannot_be_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plan(tmp_path, "--count", "4", *SHORT)
        with fake_teacher(tmp_path / "teacher.jsonl", "--empty", "1") as url:
            assert collect(tmp_path, url) == 1
            assert "4 cards failed" in capsys.readouterr().err
            reasons = [json.loads(line)["reason"] for line in (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()]
            assert reasons == ["script: it was empty (3 tries)"] * 4
            assert collect(tmp_path, url) == 1
            assert len(requests(tmp_path / "teacher.jsonl")) == 12, "the second run paid nothing"
        with fake_teacher(tmp_path / "other.jsonl") as url:
            assert collect(tmp_path, url, "--retry-failed") == 0
        assert not (tmp_path / "failed.jsonl").exists()

    def test_no_plan_an_empty_one_and_a_broken_one(
        self, tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert collect(tmp_path, teacher) == 1
        assert "there is no plan" in capsys.readouterr().err
        (tmp_path / "plan.jsonl").write_text("\n")
        assert collect(tmp_path, teacher) == 1
        assert "the plan is empty" in capsys.readouterr().err
        plan(tmp_path, "--count", "3")
        lines = (tmp_path / "plan.jsonl").read_text("utf-8").splitlines()
        (tmp_path / "plan.jsonl").write_text("\n".join([lines[0], lines[1].replace('"mode"', '"mood"'), lines[2]]), "utf-8")
        assert collect(tmp_path, teacher) == 1
        assert "plan.jsonl:2: unknown key 'mood'; did you mean 'mode'?" in " ".join(capsys.readouterr().err.split())

    def test_a_plan_that_was_begun_is_not_changed(
        self, tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plan(tmp_path, "--count", "3", *SHORT)
        assert collect(tmp_path, teacher) == 0
        assert qiaoban(["collect", "plan", str(tmp_path), "--count", "4"]) == 2
        assert "was begun" in capsys.readouterr().err
        lines = (tmp_path / "plan.jsonl").read_text("utf-8").splitlines()
        (tmp_path / "plan.jsonl").write_text("\n".join([lines[0].replace('"seed": ', '"seed": 1'), *lines[1:]]), "utf-8")
        assert collect(tmp_path, teacher) == 1
        (tmp_path / "plan.jsonl").write_text("\n".join([lines[0], *lines]), "utf-8")
        assert collect(tmp_path, teacher) == 1
        assert "two records are called" in capsys.readouterr().err

    def test_a_typo_in_ones_own_topics(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        topics = tmp_path / "own.toml"
        topics.write_text('id = "own"\nnaem = { zh = "自己", en = "Own" }\n', "utf-8")
        assert qiaoban(["collect", "plan", str(tmp_path / "run"), "--topics", str(topics)]) == 1
        assert "own.toml" in " ".join(capsys.readouterr().err.split())


class TestModes:
    def test_all_modes_of_the_bank_and_then_of_what_they_made(self, tmp_path: Path, teacher: str) -> None:
        first = tmp_path / "first"
        plan(first, "--count", "30", "--modes", "roleplay=0.4,script=0.3,general=0.3", "--length", "50-60")
        assert collect(first, teacher) == 0
        made = talks(first)
        assert {talk.provenance.mode for talk in made} == {"roleplay", "script", "general"}
        assert all(talk.turns[0].role == "user" and talk.turns[-1].role == "assistant" for talk in made)

        branched = tmp_path / "branched"
        plan(branched, "--from", str(first / "dialogues.jsonl"), "--mode", "branch", "--per-talk", "1")
        assert collect(branched, teacher) == 0
        pairs = [json.loads(line) for line in (branched / "pairs.jsonl").read_text("utf-8").splitlines()]
        assert talks(branched) == [], "what fails on purpose is no dialogue"
        assert {pair["pair_type"] for pair in pairs} == {"dismissing", "disapproving", "laissez_faire"}
        assert all(pair["chosen"] != pair["rejected"] and pair["prompt"][-1]["role"] == "user" for pair in pairs)

    def test_expand_keeps_the_message(self, tmp_path: Path, teacher: str) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "a", "text": "我的仓鼠今天不动了", "lang": "zh", "age": 8},
            {"id": "b", "text": "nobody sat with me"},
        ]
        (tmp_path / "messages.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
        plan(tmp_path / "run", "--from", str(tmp_path / "messages.jsonl"), "--mode", "expand")
        assert collect(tmp_path / "run", teacher) == 0
        assert [talk.turns[0].content for talk in talks(tmp_path / "run")] == [row["text"] for row in rows]

    def test_repair_mends_only_what_was_found(self, tmp_path: Path, teacher: str) -> None:
        first = tmp_path / "first"
        plan(first, "--count", "3", "--langs", "zh")
        assert collect(first, teacher) == 0
        old = talks(first)
        finding = {"id": old[1].id, "turn": 3, "rule": "length", "severity": "repair", "message": "too long"}
        (tmp_path / "found.jsonl").write_text(json.dumps(finding) + '\n{"summary": {"length": 1}, "dialogues": 3}\n', "utf-8")
        source, findings = str(first / "dialogues.jsonl"), str(tmp_path / "found.jsonl")
        plan(tmp_path / "run", "--from", source, "--mode", "repair", "--findings", findings)
        assert collect(tmp_path / "run", teacher) == 0
        (new,) = talks(tmp_path / "run")
        assert new.provenance.source == old[1].id
        assert [a != b for a, b in zip(old[1].turns, new.turns, strict=True)].count(True) == 1
        assert old[1].turns[3] != new.turns[3]

    def test_the_prompt_of_2023(self, tmp_path: Path, teacher: str) -> None:
        plan(tmp_path, "--count", "4", *SHORT, "--template", "seed2023")
        assert collect(tmp_path, teacher) == 0
        assert len(talks(tmp_path)) == 4

    def test_ones_own_topics(self, tmp_path: Path, teacher: str) -> None:
        topics = tmp_path / "own.toml"
        scene = """
        [[scene]]
        id = "camp.rain"
        zh = "露营下雨了，帐篷里全是水"
        en = "It rained on our camp and the tent filled up"
        ages = [6, 12]
        emotions = ["disappointed"]
        positive = false
        risk = ""
        hidden = { zh = "其实有点好玩", en = "it was a bit of fun really" }
        """
        head = 'id = "camp"\nname = { zh = "露营", en = "Camp" }\nabout = { zh = "露营的事", en = "Camping" }\n'
        topics.write_text(head + scene, "utf-8")
        run = tmp_path / "run"
        plan(run, "--count", "2", "--topics", str(topics), "--domain", "camp", "--risks", "everyday", "--ages", "6-12")
        topics.unlink()
        assert collect(run, teacher) == 0
        assert {talk.meta.topic for talk in talks(run)} == {"camp.rain"}


class TestScale:
    def test_two_ray_workers_make_the_same_dialogues(self, tmp_path: Path, teacher: str) -> None:
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'qiaoban[scale]'")
        here, there = tmp_path / "here", tmp_path / "there"
        for folder in (here, there):
            plan(folder, "--count", "16", "--modes", "roleplay=0.5,script=0.5", "--length", "50-60", "--turns", "4-4")
        assert collect(here, teacher) == 0
        outcome = finish(start(there, teacher, "--engine", "ray", "--workers", "2"))
        assert outcome["code"] == 0, outcome
        assert [(talk.id, talk.turns) for talk in talks(there)] == [(talk.id, talk.turns) for talk in talks(here)]
        assert not (there / "shards").exists()

    def test_a_batch_job_is_picked_up_again_after_a_kill(self, tmp_path: Path) -> None:
        log = tmp_path / "teacher.jsonl"
        plan(tmp_path, "--count", "20", *SHORT)
        with fake_teacher(log, "--batch-delay", "3", "--bad-json", "0.2") as url:
            run = start(tmp_path, url, "--batch", "--poll", "0.2")
            time.sleep(2.5)
            run.send_signal(signal.SIGKILL)
            run.communicate(timeout=30)
            outcome = finish(start(tmp_path, url, "--batch", "--poll", "0.2"))
        assert (outcome["code"], outcome["done"]) == (0, 20)
        keys = [row["key"] for row in requests(log)]
        assert len(keys) == len(set(keys)), "no request was handed in twice"
        assert len(keys) > 20, "what could not be read went into a second round"


@pytest.mark.slow
def test_a_model_on_this_machine_is_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = settings.load()
    try:
        ModelStore(env.home, settings=env).path(DEFAULT_MODEL)
    except QiaobanError as error:
        pytest.skip(f"no weights: {error.message}; run `qiaoban models pull`")
    turns = (
        Turn(role="user", content="我的仓鼠今天早上不动了"),
        Turn(role="assistant", content="它陪了你那么久，一下子不动了，心里一定空空的。", acts=(Act.EMPATHISE,)),
    )
    write_conversations(tmp_path / "talk.jsonl", [Conversation(id="hamster", turns=turns, meta=Meta(lang="zh"))])
    run = tmp_path / "run"
    plan(run, "--from", str(tmp_path / "talk.jsonl"), "--mode", "branch", "--per-talk", "1")
    first = (run / "plan.jsonl").read_text("utf-8").splitlines()[0]
    (run / "plan.jsonl").write_text(first, "utf-8")
    assert qiaoban(["collect", "run", str(run), "--embedded", "--model", DEFAULT_MODEL]) == 0, capsys.readouterr().err
    (pair,) = [json.loads(line) for line in (run / "pairs.jsonl").read_text("utf-8").splitlines()]
    assert pair["prompt"] == [{"role": "user", "content": turns[0].content}]
    assert pair["chosen"] == [{"role": "assistant", "content": turns[1].content}]
    assert pair["rejected"][0]["content"] not in ("", turns[1].content)
    assert len(keys_by_state(run)["answered"]) >= 1
    assert qiaoban(["collect", "run", str(run), "--embedded", "--model", DEFAULT_MODEL]) == 0
