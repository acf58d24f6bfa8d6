"""The public sets are read to the end, written in every format and read back. Only measured: nothing of them is kept."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from qiaoban.cli.main import run as qiaoban
from qiaoban.conversation import Conversation, write_conversations
from qiaoban.curate.pipeline import CurateOptions, curate
from qiaoban.formats import detect, read_talks, write_talks
from qiaoban.formats.record import SHORTER
from tests.formats.talks import PUBLIC, TALK_FORMATS, file_name

CHILD_CHAT = PUBLIC / "qiaoban_2023" / "child_chat_100.json"
CPSYCOUN = PUBLIC / "cpsycoun" / "CPsyCounD.tar.gz"


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"the public set {path.parent.name} is not on this machine")


def there_and_back(talks: list[Conversation], form: str, folder: Path) -> None:
    path = folder / file_name(form)
    loss = write_talks(path, talks, form)
    assert not loss.left_out
    assert (loss.talks, detect(path)) == (len(talks), form)
    back = list(read_talks(path))
    assert len(back) == len(talks)
    assert sum(len(talk.turns) for talk in back) == loss.turns
    if not any(loss.lost[key] for key in SHORTER):
        assert [talk.turns for talk in back] == [talk.turns for talk in talks]


@needs(CHILD_CHAT)
def test_qiaoban_2023_is_read_as_it_stands() -> None:
    notes: Counter[str] = Counter()
    talks = list(read_talks(CHILD_CHAT, notes=notes))
    assert (detect(CHILD_CHAT), len(talks), sum(len(talk.turns) for talk in talks)) == ("qiaoban2023", 100, 1577)
    assert Counter(talk.meta.emotion for talk in talks) == {
        "happy": 40,
        "sad": 22,
        "afraid": 12,
        "angry": 9,
        "surprised": 9,
        "disgusted": 8,
    }
    assert {"46", "69", "94"} < {talk.id for talk in talks}
    assert sum(turn.role == "assistant" for talk in talks for turn in talk.turns) == 760
    assert not notes


@needs(CHILD_CHAT)
@pytest.mark.parametrize("form", TALK_FORMATS)
def test_qiaoban_2023_goes_into_every_format_and_back(form: str, tmp_path: Path) -> None:
    there_and_back(list(read_talks(CHILD_CHAT)), form, tmp_path)


@needs(CPSYCOUN)
def test_all_of_cpsycoun_is_read() -> None:
    notes: Counter[str] = Counter()
    talks = list(read_talks(CPSYCOUN, notes=notes))
    assert (len(talks), sum(len(talk.turns) for talk in talks)) == (3084, 49841)
    assert notes == {"named speakers, read as the client": 40, "clients told apart by name": 21}


@needs(CPSYCOUN)
@pytest.mark.parametrize("form", TALK_FORMATS)
def test_cpsycoun_goes_into_every_format_and_back(form: str, tmp_path: Path) -> None:
    there_and_back([talk for place, talk in enumerate(read_talks(CPSYCOUN)) if place % 4 == 0], form, tmp_path)


@needs(CPSYCOUN)
def test_cpsycoun_is_linted_curated_and_mixed(tmp_path: Path) -> None:
    """A part of it, for time; the whole takes the same road by hand."""
    talks = list(islice(read_talks(CPSYCOUN), 300))
    write_conversations(tmp_path / "some.jsonl", talks)
    counts = curate(lambda: read_talks(tmp_path / "some.jsonl"), tmp_path / "curated", CurateOptions(redact=True))
    assert [count.stage for count in counts] == ["1-rules", "2-duplicates", "3-held-out", "4-personal-data"]
    assert [later.read for later in counts[1:]] == [earlier.kept for earlier in counts[:-1]]
    found = Counter(
        json.loads(row)["rule"] for row in (tmp_path / "curated" / "findings.jsonl").read_text("utf-8").splitlines()
    )
    assert found["coaching_jargon"] > 50, "they are adult counselling"
    kept = tmp_path / "curated" / "kept.jsonl"
    given = ["--companion", str(kept), "--general", str(tmp_path / "some.jsonl")]
    assert qiaoban(["mix", str(tmp_path / "mixed"), *given]) == 0
    assert (tmp_path / "mixed" / "train.jsonl").stat().st_size > 100_000
