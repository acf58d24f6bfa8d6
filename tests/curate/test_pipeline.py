"""The stages in a row: every dialogue comes out once, kept or dropped with a reason, and the same way every time."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qiaoban.cli.main import run as qiaoban
from qiaoban.conversation import Act, AgeBand, Conversation, Meta, Turn, read_conversations, write_conversations
from qiaoban.curate.decontaminate import HeldOut
from qiaoban.curate.pipeline import CurateOptions, curate

STAGES = ("1-rules", "2-duplicates", "3-held-out", "4-personal-data")


def talk(name: str, *lines: str) -> Conversation:
    turns = tuple(
        Turn(role="user", content=line) if n % 2 == 0 else Turn(role="assistant", content=line, acts=(Act.EMPATHISE,))
        for n, line in enumerate(lines)
    )
    return Conversation(id=name, turns=turns, meta=Meta(lang="zh", age_band=AgeBand.B9_11))


GOOD = talk(
    "good", "积木塔倒了", "搭了一下午，哗啦一声就没了。", "我妹撞的", "又心疼又气，两样挤在一起。", "嗯", "想先歇会儿也行。"
)
OTHER = talk(
    "other",
    "明天轮到我讲故事",
    "站到前面去的那几步，腿会不会发软？",
    "会",
    "好多人走那几步都会。",
    "那我带上小熊",
    "带着它，手里有个东西抓着。",
)
TALKS = [
    GOOD,
    GOOD.model_copy(update={"id": "copy"}),
    OTHER,
    talk("mum", "妈妈，我考了一百分！", "好高兴呀。", "谢谢妈妈！", "想先告诉谁？"),
    talk("phone", "我的号码是13912345678", "号码别告诉别人，这里也不用。", "哦", "刚才说到哪儿了，接着讲。"),
    talk("tested", "火车模型少了一节车厢找了三天", "三天都惦记着那一节。", "嗯", "它要是会说话，会说自己在哪儿？"),
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_conversations(tmp_path / "raw.jsonl", TALKS)
    return tmp_path / "raw.jsonl"


def dropped(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in STAGES:
        for line in (folder / stage / "dropped.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            found[row["id"]] = row["reason"]
    return found


def options(**more: Any) -> CurateOptions:
    return CurateOptions(against=(HeldOut("test", ("火车模型少了一节车厢找了三天",)),), **more)


def test_every_dialogue_comes_out_once_and_for_a_reason(raw: Path, tmp_path: Path) -> None:
    counts = curate(partial(read_conversations, raw), tmp_path / "out", options())
    kept = [each.id for each in read_conversations(tmp_path / "out" / "kept.jsonl")]
    gone = dropped(tmp_path / "out")
    assert kept == ["good", "other"]
    assert gone["mum"] == "kinship_vocative"
    assert gone["copy"] == "exact"
    assert gone["tested"] in ("ngram_of_test", "near_test")
    assert sorted([*kept, *gone]) == sorted(each.id for each in TALKS)
    assert [count.stage for count in counts] == list(STAGES)
    for before, after in pairwise(counts):
        assert before.kept == after.read
    assert all(count.read == count.kept + sum(count.dropped.values()) for count in counts)


def test_the_same_input_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        curate(partial(read_conversations, raw), tmp_path / name, options())
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 14
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_personal_data_can_be_redacted_instead(raw: Path, tmp_path: Path) -> None:
    curate(partial(read_conversations, raw), tmp_path / "out", options(redact=True))
    text = (tmp_path / "out" / "kept.jsonl").read_text("utf-8")
    assert '"id": "phone"' in text
    assert "13912345678" not in text


def test_the_command_line(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_conversations(tmp_path / "held.jsonl", [TALKS[-1]])
    assert qiaoban(["curate", str(raw), str(tmp_path / "out"), "--against", str(tmp_path / "held.jsonl"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["stage"] for row in rows] == list(STAGES)
    assert rows[-1]["kept"] == 2


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    counts = curate(partial(read_conversations, tmp_path / "empty.jsonl"), tmp_path / "out", CurateOptions())
    assert all(count.read == 0 for count in counts)
    assert (tmp_path / "out" / "kept.jsonl").read_bytes() == b""
