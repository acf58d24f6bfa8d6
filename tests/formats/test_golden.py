"""Every format as others write it: small files that a person has read, and the variants that are met in the wild."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from qiaoban.conversation import Conversation, Emotion, Turn
from qiaoban.errors import DataError
from qiaoban.formats import PAIRS, TALKS, Pair, detect, read_pairs, read_talks, write_pairs, write_talks
from qiaoban.formats.words import feeling, feeling_word

GOLDEN = Path(__file__).with_name("golden")
OWN = list(read_talks(GOLDEN / "qiaoban.jsonl"))
TALK_FILES = sorted(path for path in GOLDEN.iterdir() if path.stem in TALKS)
PAIR_FILES = sorted(path for path in GOLDEN.iterdir() if path.stem in PAIRS)


def said(talk: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in talk.turns]


def short(*turns: str) -> list[tuple[str, str]]:
    """Turns that alternate, the user first."""
    return [(("user", "assistant")[n % 2], text) for n, text in enumerate(turns)]


def store(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def only(path: Path, notes: Counter[str] | None = None) -> Conversation:
    (talk,) = read_talks(path, notes=notes)
    return talk


def test_there_is_a_golden_file_for_every_format() -> None:
    assert {path.stem for path in TALK_FILES} == TALKS.keys() - {"parquet"}
    assert {path.stem for path in PAIR_FILES} == set(PAIRS)


@pytest.mark.parametrize("path", [p for p in TALK_FILES if p.is_file()], ids=lambda path: path.stem)
def test_talks_are_written_as_the_golden_file_has_them(path: Path, tmp_path: Path) -> None:
    write_talks(tmp_path / path.name, OWN, path.stem)
    assert (tmp_path / path.name).read_text("utf-8") == path.read_text("utf-8")


@pytest.mark.parametrize("path", TALK_FILES, ids=lambda path: path.stem)
def test_golden_talks_are_read(path: Path) -> None:
    assert detect(path) == path.stem
    keeps_system = path.stem not in {"belle", "qiaoban2023", "cpsycoun"}
    expected = [[turn for turn in said(talk) if keeps_system or turn[0] != "system"] for talk in OWN]
    assert [said(talk) for talk in read_talks(path)] == expected


def test_the_archive_of_texts_is_as_the_folder_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "b.tgz"):
        write_talks(tmp_path / name, OWN, "cpsycoun")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tgz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        texts = {Path(member.name).name: archive.extractfile(member) for member in archive}
        found = {name: file.read() for name, file in texts.items() if file}
    assert found == {path.name: path.read_bytes() for path in (GOLDEN / "cpsycoun").iterdir()}


@pytest.mark.parametrize("path", PAIR_FILES, ids=lambda path: path.stem)
def test_pairs_are_written_and_read_as_the_golden_file_has_them(path: Path, tmp_path: Path) -> None:
    own = list(read_pairs(GOLDEN / "pairs.jsonl"))
    write_pairs(tmp_path / path.name, own, path.stem)
    assert (tmp_path / path.name).read_text("utf-8") == path.read_text("utf-8")
    assert detect(path) == path.stem
    assert [pair.sides() for pair in read_pairs(path)] == [pair.sides() for pair in own]


def test_ids_emotions_and_topics_come_from_the_source() -> None:
    assert [talk.id for talk in read_talks(GOLDEN / "qiaoban2023.json")] == ["1", "en-2"]
    assert [talk.meta.emotion for talk in read_talks(GOLDEN / "qiaoban2023.json")] == ["afraid", "left_out"]
    assert [talk.meta.topic for talk in read_talks(GOLDEN / "baize.json")] == ["宠物", "school bus"]
    ids = [[talk.id for talk in read_talks(GOLDEN / name)] for name in ("openai.jsonl", "alpaca.json")]
    assert ids[0] == ids[1], "ids from the content do not depend on the format"


class TestVariants:
    @pytest.mark.parametrize(
        "row",
        [
            {"conversations": [{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在。"}]},
            {"conversation": [{"from": "human", "value": "在吗"}, {"from": "chatgpt", "value": "在。"}]},
            {"conversations": [{"from": "user", "text": "在吗"}, {"from": "bard", "text": "在。"}], "id": 7},
            {"messages": [{"role": "Human", "content": "在吗"}, {"role": "model", "content": "在。"}], "source": "x"},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "在"}, {"type": "text", "text": "吗"}]}]}
            | {"messages": [{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在。", "name": "a"}]},
            {"instruction": "在吗", "input": "", "output": "在。"},
            {"instruction": "", "input": "在吗", "output": "在。", "history": None},
            {"instruction": "Human: 在吗 \nAssistant: ", "input": "", "output": "在。"},
            {"instruction": "Human：在吗\n\nAssistant：", "output": "在。"},
            {"topic": "x", "input": "The conversation between human and AI assistant.\n[|Human|]在吗\n[|AI|]\n在。\n[|Human|]"},
            {"topic": "x", "input": "孩子：在吗</s>智能助手：在。"},
            {"topic": None, "input": "孩子:在吗\n智能助手:在。"},
            {"dialog_id": "a", "dialog": [{"text": "在吗", "speaker": "孩子"}, {"text": "在。", "speaker": "智能助手"}]},
        ],
    )
    def test_talks_in_the_wild(self, row: dict[str, Any], tmp_path: Path) -> None:
        assert said(only(store(tmp_path / "x.json", row))) == short("在吗", "在。")

    def test_system_beside_the_talk(self, tmp_path: Path) -> None:
        row = {"system": "你是七巧板。", "conversations": [{"from": "human", "value": "在吗"}]}
        assert said(only(store(tmp_path / "x.jsonl", row))) == [("system", "你是七巧板。"), ("user", "在吗")]

    def test_the_input_follows_the_instruction(self, tmp_path: Path) -> None:
        row = {"instruction": "译成英文", "input": "乌龟", "output": "turtle", "history": [["在吗", "在。"]]}
        assert said(only(store(tmp_path / "x.jsonl", row))) == short("在吗", "在。", "译成英文\n乌龟", "turtle")

    def test_what_is_ignored_is_counted(self, tmp_path: Path) -> None:
        notes: Counter[str] = Counter()
        row = {"messages": [{"role": "user", "content": "hi", "weight": 1}], "source": "x", "tools": [], "n": None}
        only(store(tmp_path / "x.jsonl", row), notes)
        assert notes == {"ignored key 'weight'": 1, "ignored key 'source'": 1}

    def test_a_topic_that_is_no_number(self, tmp_path: Path) -> None:
        """The released file of 2023 has one: pandas writes a missing text so."""
        path = tmp_path / "x.json"
        path.write_text(
            '[{"dialog_id": 1, "topic": NaN, "emotion": null, "dialog": [{"text": "哎", "speaker": "孩子"}]}]', "utf-8"
        )
        assert only(path).meta.topic is None

    def test_a_mother_is_not_the_counsellor(self, tmp_path: Path) -> None:
        text = (
            "来访者：你好，\r\n我带女儿来的。\r\n\r\n心理咨询师：请坐。可以试试：\r\n\r\n1. 深呼吸：慢一点。\r\n\r\n"
            "（停顿）\r\n\r\n女儿：嗯。\r\n\r\n来访者（李女士）：她不爱说话。\r\n"
        )
        (tmp_path / "case_3.txt").write_text(text, "utf-8", newline="")
        notes: Counter[str] = Counter()
        for place in (tmp_path, tmp_path / "case_3.txt"):
            talk = only(place, notes)
            assert said(talk) == [
                ("user", "你好，\n我带女儿来的。"),
                ("assistant", "请坐。可以试试：\n\n1. 深呼吸：慢一点。\n\n（停顿）"),
                ("user", "女儿：嗯。"),
                ("user", "李女士：她不爱说话。"),
            ]
            assert talk.id == "case_3"
        assert notes == {"named speakers, read as the client": 2, "clients told apart by name": 2}

    def test_parquet_of_others(self, tmp_path: Path) -> None:
        talk = [{"from": "human", "value": "在吗"}, {"from": "gpt", "value": "在。"}]
        pl.DataFrame({"conversations": [talk], "extra": [1.5]}).write_parquet(tmp_path / "a.parquet")
        assert detect(tmp_path / "a.parquet") == "sharegpt"
        assert said(only(tmp_path / "a.parquet")) == short("在吗", "在。")
        messages = [[{"role": "user", "content": "在吗", "name": "x"}], [{"role": "user", "content": "hi", "name": None}]]
        pl.DataFrame({"messages": messages, "split": ["validation", None]}).write_parquet(tmp_path / "b.parquet")
        notes: Counter[str] = Counter()
        assert [said(each) for each in read_talks(tmp_path / "b.parquet", notes=notes)] == [short("在吗"), short("hi")]
        assert notes == {"ignored key 'split'": 1, "ignored key 'name'": 1}


class TestPairVariants:
    REPLIES = ("在。", "不在。")

    def check(self, row: dict[str, Any], tmp_path: Path, form: str = "trl") -> Pair:
        path = store(tmp_path / "x.jsonl", row)
        assert detect(path) == form
        (pair,) = read_pairs(path)
        assert [[turn.content for turn in side] for side in pair.sides().values()] == [["在吗"], ["在。"], ["不在。"]]
        return pair

    def test_plain_text(self, tmp_path: Path) -> None:
        self.check({"prompt": "在吗", "chosen": "在。", "rejected": "不在。"}, tmp_path)

    def test_an_implicit_prompt(self, tmp_path: Path) -> None:
        good, bad = ([{"role": "user", "content": "在吗"}, {"role": "assistant", "content": text}] for text in self.REPLIES)
        self.check({"chosen": good, "rejected": bad}, tmp_path)
        self.check({"prompt": "在吗", "chosen": good, "rejected": bad}, tmp_path)

    def test_system_beside_the_talk(self, tmp_path: Path) -> None:
        good, bad = ({"from": "gpt", "value": text} for text in self.REPLIES)
        talk = [{"from": "human", "value": "在吗"}]
        path = store(tmp_path / "x.json", {"conversations": talk, "chosen": good, "rejected": bad, "system": "你好"})
        (pair,) = read_pairs(path)
        assert pair.prompt[0] == Turn(role="system", content="你好")

    def test_judged_replies_find_each_other(self, tmp_path: Path) -> None:
        def row(ask: str, reply: str, label: bool) -> dict[str, Any]:
            return {"prompt": ask, "completion": reply, "label": label}

        rows = [row("a", "a1", True), row("b", "b0", False), row("c", "c1", True), row("b", "b1", True), row("a", "a0", False)]
        notes: Counter[str] = Counter()
        found = list(read_pairs(store(tmp_path / "x.jsonl", *rows), notes=notes))
        assert [(pair.chosen[0].content, pair.rejected[0].content) for pair in found] == [("b1", "b0"), ("a1", "a0")]
        assert notes == {"replies without a counterpart": 1}

    def test_replies_do_not_wait_for_ever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qiaoban.formats.pairs._WAITING", 3)
        rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "completion": "good", "label": True} for n in range(5)]
        rows += [{"prompt": f"p{n}", "completion": "bad", "label": False} for n in reversed(range(5))]
        notes: Counter[str] = Counter()
        found = list(read_pairs(store(tmp_path / "x.jsonl", *rows), notes=notes))
        assert len(found) * 2 + notes["replies without a counterpart"] == 10
        assert [pair.prompt[0].content for pair in found] == ["p4", "p3", "p2"]

    @pytest.mark.parametrize("form", ["llamafactory", "llamafactory-kto"])
    @pytest.mark.parametrize(
        ("prompt", "chosen", "reason"),
        [
            (("user", "user"), ("assistant",), "alternate"),
            (("user", "assistant"), ("assistant",), "alternate"),
            (("system",), ("assistant",), "alternate"),
            (("user",), ("assistant", "user"), "several turns"),
            (("user",), ("user",), "no reply of the assistant"),
        ],
    )
    def test_what_llamafactory_would_skip_without_a_word_is_left_out(
        self, form: str, prompt: tuple[Any, ...], chosen: tuple[Any, ...], reason: str, tmp_path: Path
    ) -> None:
        said, reply = (tuple(Turn(role=role, content="a") for role in roles) for roles in (prompt, chosen))
        pair = Pair(id="x", prompt=said, chosen=reply, rejected=(Turn(role="assistant", content="b"),))
        loss = write_pairs(tmp_path / "x.json", [pair], form)
        assert (loss.talks, sum(loss.left_out.values())) == (0, 1)
        assert reason in next(iter(loss.left_out))

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"chosen": "a", "rejected": "b"}, "no key 'prompt'"),
            ({"prompt": "a", "completion": "b", "label": 1}, "label: true or false"),
            ({"messages": [{"role": "user", "content": "a"}], "label": True}, "a question and a reply"),
            ({"prompt": "a", "chosen": "b", "rejected": "c", "lang": "fr", "pair_type": "x"}, "lang: Input should be"),
            ({"prompt": "a", "chosen": [], "rejected": "c"}, "chosen: a list with at least one entry"),
        ],
    )
    def test_a_wrong_pair_is_named(self, row: dict[str, Any], words: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=rf"x\.jsonl:1: .*{words}"):
            list(read_pairs(store(tmp_path / "x.jsonl", row)))


@pytest.mark.parametrize("leaf", Emotion)
def test_every_emotion_has_a_word_that_is_read_again(leaf: Emotion) -> None:
    notes: Counter[str] = Counter()
    assert feeling(feeling_word(leaf), notes) is leaf
    assert not notes


def test_emotion_words_without_a_counterpart_go_nowhere_and_are_counted() -> None:
    notes: Counter[str] = Counter()
    words = ["开心", "愤怒", "Surprise", " fear ", "爱", "焦虑", "", None]
    assert [feeling(word, notes) for word in words] == ["happy", "angry", "surprised", "afraid", None, None, None, None]
    assert notes == {"emotion '爱' has no counterpart": 1, "emotion '焦虑' has no counterpart": 1}
