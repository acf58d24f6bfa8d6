"""The dataset card: what it says is in the files, what it does not know it says so, and others can read it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlcroissant
import pytest

from qiaoban.cli.main import run as qiaoban
from qiaoban.conversation import read_conversations
from qiaoban.errors import DataError, UsageError
from qiaoban.report.card import write_card
from qiaoban.report.facts import Facts
from qiaoban.report.licences import check_licence, hub_name, licence_url

from .curated import HOSTILE, make

FACTS = Facts(
    name="Small talks",
    licence="CC-BY-4.0",
    creator="The Makers",
    url="https://example.org/talks",
    published="2026-11-23",
    version="1.0.0",
)
# mlcroissant 1.1 calls what rdflib has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("card"))


@pytest.fixture
def folder(curated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(curated, tmp_path / "set")


def card(folder: Path, facts: Facts = FACTS) -> str:
    write_card(folder, facts, force=True)
    return (folder / "README.md").read_text("utf-8")


def front_matter(text: str) -> dict[str, Any]:
    """Every value is written as JSON, which is YAML."""
    head = text.split("---\n")[1]
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in head.splitlines())}


def croissant(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "croissant.json").read_text("utf-8"))
    return document


class TestCard:
    def test_the_front_matter_is_what_the_hub_reads(self, folder: Path) -> None:
        assert front_matter(card(folder)) == {
            "pretty_name": "Small talks",
            "language": ["zh", "en"],
            "license": "cc-by-4.0",
            "size_categories": ["n<1K"],
            "task_categories": ["text-generation"],
            "tags": ["children", "emotional-support", "emotion-coaching", "dialogue", "synthetic"],
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "kept.jsonl"}]}],
        }

    def test_both_languages_tell_the_counts(self, folder: Path) -> None:
        text = card(folder)
        english, chinese = text.split("## 中文说明")
        assert "5 dialogues, 24 turns" in english
        assert "5 段对话，24 句" in chinese
        for part in (english, chinese):
            assert "teacher-a 3" in part
            assert r"missing\_referral | 1 | 0" in part
            assert r"physical\_abuse | 1 | 1 | 0" in part
            assert "CC-BY-NC-4.0" in part
            assert "phone 1" in part
        assert "10 talks went in and 5 came out" in english
        assert "10 段进去，5 段留下" in chinese

    def test_what_was_not_assessed_is_said(self, folder: Path) -> None:
        text = card(folder)
        for sentence in ("Seen by a judge model: not assessed", "评审模型看过：未评估", "Poisoned samples", "暗藏的触发词"):
            assert sentence in text
        assert "| benign | 1 | not assessed | not assessed |" in text
        assert "It does not say that these data are safe" in text

    def test_headings_stand_in_lines_of_their_own(self, folder: Path) -> None:
        """Template blocks must not swallow the blank line that Markdown needs before a heading, a table or a list."""
        lines = card(folder).split("---\n", 2)[2].splitlines()
        for before, line in pairwise(lines):
            if line.startswith("#") or (line.startswith("| ") and not before.startswith("|")):
                assert before == "", line
            if line.startswith("- ") and not before.startswith("- "):
                assert before == "", line

    def test_tables_have_as_many_cells_in_every_row(self, folder: Path) -> None:
        block: list[int] = []
        for line in [*card(folder).splitlines(), ""]:
            if line.startswith("|"):
                block.append(len(re.findall(r"(?<!\\)\|", line)))
            else:
                assert len(set(block)) <= 1, line
                block = []

    def test_hostile_text_stays_text(self, folder: Path) -> None:
        text = card(folder, Facts(name='a"\n---\nb: [*x*](javascript:x) <img>', licence="LicenseRef-Own"))
        body = text.split("---\n", 2)[2]
        assert front_matter(text)["pretty_name"] == 'a"\n---\nb: [*x*](javascript:x) <img>'
        assert (front_matter(text)["license"], front_matter(text)["license_name"]) == ("other", "own")
        assert "<script" not in body
        assert "<img" not in body
        assert "&lt;script&gt;" in body
        assert r"\[\*x\*\](javascript:x)" in body

    def test_an_empty_set_has_a_card_that_claims_nothing(self, tmp_path: Path) -> None:
        empty = make(tmp_path, [])
        text = card(empty)
        assert front_matter(text)["tags"][-1] == "dialogue"
        assert "secrecy | 0 | not assessed" in text
        assert "secrecy | 0 | 未评估" in text
        assert "no talk to assess" in text
        mlcroissant.Dataset(jsonld=empty / "croissant.json")

    def test_a_card_is_not_written_over_by_accident(self, folder: Path) -> None:
        write_card(folder, FACTS)
        with pytest.raises(UsageError, match=r"README\.md is there already"):
            write_card(folder, FACTS)

    def test_the_same_folder_gives_the_same_bytes(self, folder: Path) -> None:
        def both() -> list[bytes]:
            write_card(folder, FACTS, force=True)
            return [(folder / name).read_bytes() for name in ("README.md", "croissant.json")]

        assert both() == both()

    def test_a_folder_that_is_none_gets_no_card(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no stats\.json"):
            write_card(tmp_path, FACTS)
        assert list(tmp_path.iterdir()) == []


class TestCroissant:
    def test_the_library_of_the_standard_finds_no_fault(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        card(folder)
        with caplog.at_level(logging.WARNING):
            dataset = mlcroissant.Dataset(jsonld=folder / "croissant.json")
        assert not caplog.records
        assert dataset.metadata.issues.report() == ""
        assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
        for told in ("data_collection", "data_biases", "data_limitations", "data_use_cases", "personal_sensitive_information"):
            assert getattr(dataset.metadata, told)
        assert dataset.metadata.data_annotation_protocol

    def test_the_talks_can_be_read_through_it(self, folder: Path) -> None:
        card(folder)
        rows = list(mlcroissant.Dataset(jsonld=folder / "croissant.json").records("talks"))
        talks = list(read_conversations(folder / "kept.jsonl"))
        assert [row["talks/id"].decode() for row in rows] == [talk.id for talk in talks]
        for row, talk in zip(rows, talks, strict=True):
            said = [
                (each["talks/messages/role"].decode(), each["talks/messages/content"].decode())
                for each in row["talks/messages"]
            ]
            assert said == [(turn.role, turn.content) for turn in talk.turns]
            acts = [[act.decode() for act in each["talks/turns/acts"]] for each in row["talks/turns"]]
            assert acts == [list(turn.acts) for turn in talk.turns]
            risk = row["talks/meta"]["talks/meta/risk"]
            assert (risk.decode() if risk else None) == talk.meta.risk
            assert row["talks/provenance"]["talks/provenance/synthetic"] is talk.provenance.synthetic

    def test_the_file_is_the_one_described(self, folder: Path) -> None:
        card(folder)
        file = croissant(folder)["distribution"][0]
        raw = (folder / "kept.jsonl").read_bytes()
        assert (file["sha256"], file["contentSize"]) == (hashlib.sha256(raw).hexdigest(), f"{len(raw)} B")

    def test_what_nobody_gave_is_left_out_and_named(self, folder: Path) -> None:
        written = write_card(folder, Facts(name="x", licence="MIT"))
        assert written.missing == ("creator", "url", "published", "version")
        assert written.other_licences == {"Apache-2.0": 3, "CC-BY-NC-4.0": 1}
        assert written.unlicensed == 1
        assert not {"creator", "url", "datePublished", "version"} & croissant(folder).keys()

    def test_limits_name_every_gap_and_never_safety(self, folder: Path) -> None:
        card(folder)
        document = croissant(folder)
        assert document["rai:dataLimitations"][0] == "No count of nought means that the data are safe."
        assert any("person has read" in each for each in document["rai:dataLimitations"])
        assert document["rai:dataCollectionTimeframe"] == ["2026-11-02", "2026-11-02"]
        assert HOSTILE in " ".join(document["rai:dataBiases"])


class TestCommand:
    def test_it_writes_both_and_says_what_is_missing(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["data", "card", str(folder), "--name", "Talks", "--licence", "cc-by-4.0", "--language", "zh"]
        assert qiaoban([*words, "--published", "2026-11-23"]) == 0
        said = capsys.readouterr().err
        assert "--creator, --url, --version" in said
        assert "Apache-2.0 3" in said
        assert "1 talks name no licence" in said
        assert front_matter((folder / "README.md").read_text("utf-8"))["language"] == ["zh"]
        assert croissant(folder)["datePublished"] == "2026-11-23"
        assert qiaoban(words) == 2
        assert qiaoban([*words, "--force"]) == 0

    @pytest.mark.parametrize(
        "words",
        [
            ("--licence", "Apache2"),
            ("--licence", "MIT", "--language", "中文"),
            ("--licence", "MIT", "--version", "1"),
            ("--licence", "MIT", "--published", "yesterday"),
            ("--licence", "LicenseRef-"),
        ],
    )
    def test_a_wrong_call_writes_nothing(self, words: tuple[str, ...], folder: Path) -> None:
        assert qiaoban(["data", "card", str(folder), "--name", "x", *words]) == 2
        assert not (folder / "README.md").exists()


def test_licences() -> None:
    assert check_licence("apache-2.0") == "Apache-2.0"
    assert hub_name("ODC-By-1.0") == "odc-by"
    assert licence_url("MIT") == "https://spdx.org/licenses/MIT.html"
    assert licence_url("LicenseRef-Own") == "LicenseRef-Own"
    with pytest.raises(UsageError) as caught:
        check_licence("CC-BY4.0")
    assert "did you mean CC-BY-4.0?" in caught.value.hint
