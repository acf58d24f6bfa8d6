"""The linter as a stream: order, places, corpus rules, odd input, the command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qiaoban.cli.main import cli
from qiaoban.conversation import Conversation, Lang, Meta, Role, Turn, write_conversations
from qiaoban.curate import table
from qiaoban.curate.lint import lint
from qiaoban.curate.rules import load_rules
from tests.curate.talks import parse_talk

CLEAN = "孩子：我怕黑|七巧板：灯一关，心就提起来了？|孩子：嗯|七巧板：怕是可以的。屋里哪儿最黑？"


def _talk(*turns: tuple[Role, str], name: str = "t", lang: Lang = "zh") -> Conversation:
    return Conversation(id=name, turns=tuple(Turn(role=r, content=c) for r, c in turns), meta=Meta(lang=lang))


def _rules(talk: Conversation) -> set[str]:
    return {finding.rule for finding in lint([talk])}


def test_a_clean_talk_is_clean() -> None:
    assert list(lint([parse_talk(CLEAN, lang="zh")])) == []


def test_no_talks() -> None:
    assert list(lint([])) == []


def test_a_finding_says_where_and_why() -> None:
    talk = parse_talk(CLEAN.replace("怕是可以的", "宝贝，别怕黑"), lang="zh", name="night-1")
    found = next(f for f in lint([talk]) if f.rule == "pet_names")
    assert (found.id, found.turn, found.severity) == ("night-1", 3, "repair")
    assert "宝贝" in found.message
    assert "叫孩子" in found.message


def test_messages_speak_the_language_of_the_talk() -> None:
    talk = _talk(("user", "i lost it"), ("assistant", "Oh sweetie, where was it?"), lang="en")
    found = next(f for f in lint([talk], rules=["pet_names"]))
    assert "sweetie" in found.message
    assert found.message.startswith("It calls the child")


def test_system_turns_count_but_are_not_judged() -> None:
    talk = _talk(("system", "You are a companion. **Be kind.**"), ("user", "我怕"), ("assistant", "宝贝，怕什么？"))
    found = {(f.rule, f.turn) for f in lint([talk])}
    assert ("pet_names", 2) in found
    assert not any(turn == 0 for _, turn in found)
    assert not any(rule == "first_turn" for rule, _ in found)


def test_findings_come_in_order_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [parse_talk(CLEAN.replace("屋里", "宝贝，屋里"), lang="zh", name=f"t{i}") for i in range(7)]
    chosen = [rule.id for rule in load_rules() if rule.scope != "corpus"]
    whole = list(lint(talks, rules=chosen))
    monkeypatch.setattr(table, "CHUNK_TALKS", 2)
    assert list(lint(talks, rules=chosen)) == whole
    assert [f.id for f in whole] == [f"t{i}" for i in range(7)]


def test_it_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first findings come before the last talk has been read."""
    monkeypatch.setattr(table, "CHUNK_TALKS", 1)
    read = 0

    def talks() -> Iterator[Conversation]:
        nonlocal read
        for read in range(1, 6):
            yield parse_talk(CLEAN.replace("怕是", "宝贝，怕是"), lang="zh", name=str(read))

    next(iter(lint(talks(), rules=["pet_names"])))
    assert read == 1


def test_the_language_is_guessed() -> None:
    zh = parse_talk(CLEAN.replace("怕是", "宝贝，怕是"))
    en = parse_talk("child: i lost it|companion: oh honey, where was it?")
    assert [f.rule for f in lint([zh, en], rules=["pet_names"])] == ["pet_names", "pet_names"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        " \n ",
        "\x00\x01",
        "\u200d",
        "\ufeff",
        "（" * 5000,
        "**" * 4000,
        "我" * 200_000,
        "a " * 100_000,
        "😀" * 9000,
        "\U000e0001",
        "?" * 999,
    ],
)
def test_odd_turns(content: str) -> None:
    for role in ("user", "assistant"):
        list(lint([_talk(("user", "嗯"), (role, content))]))


def test_a_talk_without_words() -> None:
    assert _rules(_talk(("system", "只有设定"))) == {"turn_count"}
    assert {"empty_turn", "turn_count"} <= _rules(_talk(("user", ""), ("assistant", "")))


def test_a_talk_of_five_thousand_turns() -> None:
    turns: list[tuple[Role, str]] = [
        ("user" if i % 2 == 0 else "assistant", f"这是第 {i} 句，说说今天的事") for i in range(5000)
    ]
    assert "turn_count" in _rules(_talk(*turns))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=60)), min_size=1, max_size=8))
def test_any_talk_is_judged(turns: list[tuple[Role, str]]) -> None:
    for finding in lint([_talk(*turns)]):
        assert finding.turn is None or 0 <= finding.turn < len(turns)


# ── the corpus as a whole ──


def _varied(count: int, lang: Lang = "zh") -> list[Conversation]:
    """Talks whose companion never says the same: letters and colours in no order."""
    letters = "甲乙丙丁戊己庚辛壬癸" if lang == "zh" else [f"{a}{b}n " for a in "bdfgklmrst" for b in "aeio"]

    def words(i: int) -> str:
        return "".join(Random(i).choices(letters, k=14)).strip()

    return [_talk(("user", f"嗯{i}"), ("assistant", words(i)), name=f"{lang}{i}", lang=lang) for i in range(count)]


def _corpus(talks: list[Conversation]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"template_opening": set(), "template_ngram": set(), "duplicate_turn": set()}
    for finding in lint(talks, rules=list(found)):
        found[finding.rule].add(finding.id)
    return found


@pytest.mark.parametrize(
    ("lang", "opening", "phrase"),
    [("zh", "今天天气", "窗外的麻雀排成一排"), ("en", "once more", "seven small birds sat on the fence")],
)
def test_templates(lang: Lang, opening: str, phrase: str) -> None:
    gap = "" if lang == "zh" else " "
    talks = _varied(150, lang)
    assert _corpus(talks) == {"template_opening": set(), "template_ngram": set(), "duplicate_turn": set()}
    for i in range(4):
        said = talks[i].turns[1].content
        talks[i] = _talk(("user", "嗯"), ("assistant", opening + gap + said), name=f"o{i}", lang=lang)
        said = talks[50 + i].turns[1].content
        talks[50 + i] = _talk(("user", "嗯"), ("assistant", said + gap + phrase), name=f"p{i}", lang=lang)
    found = _corpus(talks)
    assert found["template_opening"] == {f"o{i}" for i in range(4)}
    assert found["template_ngram"] == {f"p{i}" for i in range(4)}
    assert _corpus(talks[:99])["template_opening"] == set()


def test_a_phrase_in_two_talks_is_no_template() -> None:
    talks = _varied(120)
    for i in range(2):
        talks[i] = _talk(("user", "嗯"), ("assistant", talks[i].turns[1].content + "窗外的麻雀排成一排"), name=f"p{i}")
    assert _corpus(talks)["template_ngram"] == set()


def test_a_phrase_twice_in_one_talk_is_one_talk() -> None:
    talks = _varied(120)
    line = "窗外的麻雀排成一排"
    talks[0] = _talk(*[("user", "嗯"), ("assistant", line)] * 5, name="p")  # type: ignore[arg-type]
    assert _corpus(talks)["template_ngram"] == set()


def test_copied_turns() -> None:
    line = "七个一模一样的字，不，是十四个。"
    talks = [
        *_varied(3),
        _talk(("user", "嗯"), ("assistant", line), name="a"),
        _talk(("user", "哦"), ("assistant", line), name="b"),
    ]
    found = list(lint(talks, rules=["duplicate_turn"]))
    assert [(f.id, f.turn) for f in found] == [("a", 1), ("b", 1)]
    short = [_talk(("user", "嗯"), ("assistant", "后来呢？"), name=n) for n in "ab"]
    assert _corpus(short)["duplicate_turn"] == set()


def test_corpus_rules_see_through_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    talks = _varied(130)
    for i in (0, 60, 129):
        talks[i] = _talk(("user", "嗯"), ("assistant", talks[i].turns[1].content + "窗外的麻雀排成一排"), name=f"p{i}")
    monkeypatch.setattr(table, "CHUNK_TALKS", 4)
    assert _corpus(talks)["template_ngram"] == {"p0", "p60", "p129"}


# ── the command ──


def _file(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def _run(*arguments: str) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(cli, ["data", "lint", *arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return int(result.return_value or 0), result.stdout.splitlines(), result.stderr


def _line(line: str, name: str) -> str:
    return parse_talk(line, lang="zh", name=name).to_json()


def test_the_batch_form(tmp_path: Path) -> None:
    bad = CLEAN.replace("怕是", "宝贝，怕是")
    code, out, _ = _run(_file(tmp_path, _line(bad, "a"), _line(CLEAN, "b")), "--json")
    rows = [json.loads(line) for line in out]
    assert code == 1
    assert list(rows[0]) == ["id", "turn", "rule", "severity", "message"]
    assert (rows[0]["id"], rows[0]["turn"], rows[0]["rule"]) == ("a", 3, "pet_names")
    assert rows[-1] == {"summary": {"pet_names": 1}, "dialogues": 2}


def test_a_clean_file_ends_well(tmp_path: Path) -> None:
    assert _run(_file(tmp_path, _line(CLEAN, "a")), "--json") == (0, ['{"summary": {}, "dialogues": 1}'], "")
    assert _run(_file(tmp_path), "--json")[0] == 0


def test_a_tag_is_no_error(tmp_path: Path) -> None:
    path = _file(tmp_path, _line(CLEAN.replace("怕是", "你是最棒的，我相信你一定可以！怕是"), "a"))
    code, out, _ = _run(path, "--json")
    assert code == 0
    assert json.loads(out[0])["severity"] == "tag"
    assert _run(path, "--json", "--level", "error")[1] == ['{"summary": {}, "dialogues": 1}']


def test_a_malformed_line_is_named_and_skipped(tmp_path: Path) -> None:
    code, out, err = _run(_file(tmp_path, _line(CLEAN, "a"), "{not json", _line(CLEAN, "c")), "--json")
    assert code == 1
    assert json.loads(out[-1])["dialogues"] == 2
    assert ":2:" in err


def test_only_the_rules_that_are_asked_for(tmp_path: Path) -> None:
    path = _file(tmp_path, _line("七巧板：宝贝，早|孩子：嗯", "a"))
    rows = [json.loads(line) for line in _run(path, "--json", "--rule", "first_turn", "--rule", "last_turn")[1]]
    assert rows[-1]["summary"] == {"first_turn": 1, "last_turn": 1}


def test_for_people(tmp_path: Path) -> None:
    bad = [_line(CLEAN.replace("怕是", "宝贝，怕是"), f"t{i}") for i in range(3)]
    code, out, _ = _run(_file(tmp_path, *bad))
    assert code == 1
    assert any("pet_names" in line and "3 in 3 dialogues" in line for line in out)
    assert sum("宝贝" in line for line in out) == 2
    assert out[-1].startswith("3 dialogues, ")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class _In:
        buffer = io.BytesIO(_line(CLEAN, "a").encode())

    monkeypatch.setattr(sys, "stdin", _In())
    from qiaoban.cli.data import TalkFile

    assert [talk.id for talk in TalkFile("-").read()] == ["a"]


def test_other_formats_are_read_too(tmp_path: Path) -> None:
    rows = [{"from": "human", "value": "我怕黑"}, {"from": "gpt", "value": "宝贝，别怕。"}]
    path = tmp_path / "sharegpt.jsonl"
    path.write_text(json.dumps({"conversations": rows}, ensure_ascii=False), "utf-8")
    assert any('"pet_names"' in line for line in _run(str(path), "--json")[1])


def test_files_of_our_own_keep_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    write_conversations(path, [parse_talk(CLEAN.replace("怕是", "宝贝，怕是"), lang="zh", name=n) for n in ("x", "x")])
    assert [json.loads(line)["id"] for line in _run(str(path), "--json", "--rule", "pet_names")[1][:-1]] == ["x", "x"]
