"""`convert`, `show` and `stats` as a person calls them, and LLaMA-Factory's index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from qiaoban.cli.data_convert import convert, show, stats
from qiaoban.cli.main import cli
from qiaoban.errors import DataError, UsageError
from qiaoban.formats import PAIRS, TALKS, detect, read_talks
from qiaoban.formats.figures import Lengths, measure
from qiaoban.formats.llamafactory import NAME

GOLDEN = Path(__file__).with_name("golden")
OWN = GOLDEN / "qiaoban.jsonl"


def call(command: click.Command, *words: object) -> int:
    return int(cli.main(["data", str(command.name), *map(str, words)], standalone_mode=False) or 0)


class TestConvert:
    def test_it_says_what_is_lost(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "new" / "x.jsonl"
        assert call(convert, OWN, out, "--to", "belle", "--json") == 0
        answer = capsys.readouterr()
        found = json.loads(answer.out)
        assert (found["from"], found["to"], found["talks"], found["turns"]) == ("qiaoban", "belle", 2, 6)
        assert found["lost"] == {
            "id": 2,
            "turn acts": 3,
            "turn emotion": 2,
            "turn distress": 2,
            "meta.lang": 2,
            "meta.topic": 2,
            "meta.emotion": 2,
            "meta.domain": 1,
            "meta.age_band": 1,
            "meta.outcome": 1,
            "meta.relation": 1,
            "provenance": 1,
            "split": 1,
            "system turns": 1,
        }
        assert "2 talks, 6 turns: qiaoban → belle" in answer.err
        assert "belle cannot hold: turn acts 3, " in answer.err
        assert out.read_text("utf-8") == (GOLDEN / "belle.jsonl").read_text("utf-8")

    @pytest.mark.parametrize(
        ("source", "name", "form"),
        [
            (OWN, "x.parquet", "parquet"),
            (OWN, "x.tar.gz", "cpsycoun"),
            (GOLDEN / "sharegpt.json", "x.jsonl", "qiaoban"),
            (GOLDEN / "trl-kto.jsonl", "x.jsonl", "pairs"),
        ],
    )
    def test_the_suffix_says_the_format(self, source: Path, name: str, form: str, tmp_path: Path) -> None:
        assert call(convert, source, tmp_path / name) == 0
        assert detect(tmp_path / name) == form

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((OWN, "x.json"), "does not say which format"),
            ((OWN, "there.jsonl"), "is there already"),
            ((OWN, "x.jsonl", "--to", "trl"), "trl holds pairs, not talks"),
            ((GOLDEN / "trl.jsonl", "x.parquet"), "does not say which format"),
            ((GOLDEN / "trl.jsonl", "x.jsonl", "--to", "openai"), "openai holds talks, not pairs"),
            ((OWN, "x.jsonl", "--to", "baize", "--dataset-info"), "does not read baize"),
        ],
    )
    def test_a_wrong_call_writes_nothing(
        self, words: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("there.jsonl").write_text("old", "utf-8")
        with pytest.raises(UsageError, match=message):
            call(convert, *words)
        assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]

    def test_force_writes_over_even_the_source(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(OWN.read_bytes())
        assert call(convert, path, path, "--to", "openai", "--force") == 0
        assert path.read_text("utf-8") == (GOLDEN / "openai.jsonl").read_text("utf-8")

    def test_bad_records(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        source.write_bytes((GOLDEN / "openai.jsonl").read_bytes() + b"oops\n" * 30)
        with pytest.raises(DataError, match=r"a.jsonl:3: not JSON"):
            call(convert, source, out)
        assert not out.exists()
        assert call(convert, source, out, "--skip-bad") == 1
        err = capsys.readouterr().err
        assert "30 bad records skipped" in err
        assert err.count("not JSON") == 20
        assert len(list(read_talks(out))) == 2

    def test_the_limit_can_be_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]}), "utf-8")
        with pytest.raises(DataError, match=r"a\.jsonl:1: the record is longer than 0\.01 MB"):
            call(convert, path, tmp_path / "b.jsonl", "--max-record", "0.01", "--from", "openai")
        assert call(convert, path, tmp_path / "b.jsonl", "--max-record", "0.02") == 0

    def test_left_out_talks_are_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        row = {"messages": [{"role": "user", "content": "他说 Human: 真怪"}, {"role": "assistant", "content": "怪在哪儿？"}]}
        (tmp_path / "a.jsonl").write_text(json.dumps(row), "utf-8")
        assert call(convert, tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--to", "belle") == 0
        assert "1 talks left out: a turn holds a speaker's mark" in capsys.readouterr().err


class TestDatasetInfo:
    @pytest.mark.parametrize("form", [*(n for n in TALKS if TALKS[n].info), *(n for n in PAIRS if PAIRS[n].info)])
    def test_its_columns_and_tags_are_in_the_file(self, form: str, tmp_path: Path) -> None:
        """What LLaMA-Factory is told to look for is there, under the names that it is told."""
        out = tmp_path / "set.json"
        assert call(convert, GOLDEN / "pairs.jsonl" if form in PAIRS else OWN, out, "--to", form, "--dataset-info") == 0
        entry = json.loads((tmp_path / NAME).read_text("utf-8"))["set"]
        text = out.read_text("utf-8")
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        assert entry["file_name"] == "set.json"
        for row in rows:
            assert set(entry["columns"].values()) <= row.keys()
            if entry.get("formatting") == "sharegpt":
                self.check_messages(row[entry["columns"]["messages"]], entry.get("tags", {}))

    def check_messages(self, messages: list[dict[str, str]], tags: dict[str, str]) -> None:
        said = [message[tags.get("role_tag", "from")] for message in messages]
        said = said[1:] if said[0] == tags.get("system_tag", "system") else said
        roles = [tags.get("user_tag", "human"), tags.get("assistant_tag", "gpt")]
        assert said == [roles[place % 2] for place in range(len(said))]

    def test_other_entries_stay_and_pairs_are_entered_unasked(self, tmp_path: Path) -> None:
        index = tmp_path / NAME
        index.write_text('{"other": {"file_name": "o.json"}}', "utf-8")
        assert call(convert, GOLDEN / "pairs.jsonl", tmp_path / "dpo.json", "--to", "llamafactory") == 0
        entries = json.loads(index.read_text("utf-8"))
        assert list(entries) == ["other", "dpo"]
        assert entries["dpo"]["ranking"] is True

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_damaged_index_stops_before_anything_is_written(self, content: str, tmp_path: Path) -> None:
        (tmp_path / NAME).write_text(content, "utf-8")
        with pytest.raises(DataError, match=r"dataset_info\.json"):
            call(convert, GOLDEN / "pairs.jsonl", tmp_path / "dpo.json", "--to", "llamafactory")
        assert not (tmp_path / "dpo.json").exists()


class TestShow:
    def test_by_place_and_by_id(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert call(show, OWN) == 0
        first = capsys.readouterr().out
        assert all(
            word in first for word in ("child", "companion", "乌龟一动不动", "NOTICE INVITE", "distress 4", "宠物", "test")
        )
        assert call(show, OWN, "--number", 2, "--json") == 0
        assert json.loads(capsys.readouterr().out)["id"] == "en-2"
        assert call(show, OWN, "en-2") == 0
        assert "That sounds lonely." in capsys.readouterr().out

    def test_wide_characters_stand_in_their_column(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        row = {"messages": [{"role": "user", "content": "长" * 100}, {"role": "assistant", "content": "z" * 100}]}
        (tmp_path / "x.jsonl").write_text(json.dumps(row), "utf-8")
        assert call(show, tmp_path / "x.jsonl") == 0
        lines = capsys.readouterr().out.splitlines()
        starts = {line.index(letter) for line in lines for letter in "长z" if letter in line}
        assert starts == {11}
        widths = {sum(1 + (character == "长") for character in line.rstrip()) for line in lines if "长" in line}
        assert max(widths) <= 80

    def test_pairs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert call(show, GOLDEN / "llamafactory.json", "--number", 2) == 0
        out = capsys.readouterr().out
        assert out.index("chosen") < out.index("now you're worried") < out.index("rejected") < out.index("more careful")
        assert call(show, GOLDEN / "pairs.jsonl", "b-2", "--json") == 0
        assert json.loads(capsys.readouterr().out)["pair_type"] == "disapproving"

    def test_a_file_cannot_steer_the_terminal(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        row = {"messages": [{"role": "user", "content": "\x1b[2J\x9b31m[bold]x[/bold]\r\x07"}]}
        (tmp_path / "x.jsonl").write_text(json.dumps(row), "utf-8")
        assert call(show, tmp_path / "x.jsonl") == 0
        out = capsys.readouterr().out
        assert not set("\x1b\x9b\r\x07") & set(out)
        assert "[bold]x[/bold]" in out

    @pytest.mark.parametrize("words", [("nope",), ("--number", 3), ("en-2", "--number", 1)])
    def test_what_is_not_there_is_a_wrong_call(self, words: tuple[object, ...]) -> None:
        with pytest.raises(UsageError):
            call(show, OWN, *words)


class TestStats:
    def figures(self, capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
        assert call(stats, path, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
        return found

    def test_talks(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = self.figures(capsys, OWN)
        assert (found["talks"], found["turns"], found["repeated ids"], found["bad"]) == (2, 7, 0, 0)
        assert found["lengths"]["user"] == {
            "characters": {"count": 2, "median": 8, "p95": 9, "max": 9},
            "words": {"count": 1, "median": 9, "p95": 9, "max": 9},
        }
        assert found["labels"]["acts"] == {"NOTICE": 1, "INVITE": 1, "LABEL": 1, "ACCEPT": 1, "EMPATHISE": 1}
        assert found["labels"]["age_band"] == {"6-8": 1, "(none)": 1}
        assert found["labels"]["lang"] == {"zh": 1, "en": 1}

    def test_pairs(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = self.figures(capsys, GOLDEN / "pairs.jsonl")
        assert (found["pairs"], found["turns"]) == (2, 7)
        assert found["labels"]["pair_type"] == {"dismissing": 1, "disapproving": 1}

    def test_plain_output(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(OWN.read_bytes() * 2 + b"oops\n")
        assert call(stats, path) == 1
        answer = capsys.readouterr()
        assert "qiaoban: 4 talks, 14 turns" in answer.out
        assert "domain: daily_life 2, (none) 2" in answer.out
        assert "repeated ids, made unique 2" in answer.err
        assert "x.jsonl:5:" in answer.err

    def test_an_empty_set(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_bytes(b"")
        assert call(stats, tmp_path / "x.jsonl", "--from", "openai") == 0
        assert "0 talks, 0 turns" in capsys.readouterr().out


def test_lengths_are_exact() -> None:
    lengths = Lengths()
    for length in range(1, 101):
        lengths.add(length)
    assert lengths.summary() == {"count": 100, "median": 50, "p95": 95, "max": 100}


@pytest.mark.parametrize(
    ("text", "measured"),
    [("我 没事。", ("characters", 4)), ("I don't know!", ("words", 3)), ("……", ("words", 0)), ("my 猫", ("characters", 3))],
)
def test_turns_are_measured_in_what_their_language_counts(text: str, measured: tuple[str, int]) -> None:
    assert measure(text) == measured
