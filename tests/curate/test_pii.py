"""Personal data: every authored case, what each kind must not be mistaken for, and that redacting keeps the rest."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import load_catalogue
from qiaoban.conversation import Conversation, Lang, Turn
from qiaoban.curate.pii import find_pii, redact, without_pii
from qiaoban.curate.stage import Dropped, kept

ZH_KINDS = [
    "phone",
    "id_card",
    "bank_card",
    "address",
    "school",
    "plate",
    "wechat",
    "qq",
    "account",
    "email",
    "url",
    "ip",
    "name",
]


@cache
def cases() -> tuple[dict[str, Any], ...]:
    """Running text with the findings that a person marked; numbers are invented, with valid checksums."""
    lines = (Path(__file__).parent / "pii_cases.jsonl").read_text("utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def missed(lang: Lang) -> list[tuple[str, str]]:
    """(kind, text) of marked findings that no hit of their kind covers."""
    out = []
    for case in cases():
        for mark in case["hits"] if case["lang"] == lang else ():
            end = mark["start"] + len(mark["text"])
            hits = find_pii(case["text"], lang)
            if not any(hit.kind == mark["kind"] and hit.start <= mark["start"] and hit.end >= end for hit in hits):
                out.append((mark["kind"], case["text"]))
    return out


def test_there_are_enough_cases_of_every_kind() -> None:
    marked = Counter(mark["kind"] for case in cases() if case["lang"] == "zh" for mark in case["hits"])
    assert sum(marked.values()) >= 200
    assert all(marked[kind] >= 4 for kind in [*ZH_KINDS, "postcode"])
    assert sum(not case["hits"] for case in cases()) >= 150
    assert len({case["text"] for case in cases()}) >= 0.99 * len(cases())


def test_recall_is_99_percent_in_both_languages() -> None:
    for lang in ("zh", "en"):
        marks = sum(len(case["hits"]) for case in cases() if case["lang"] == lang)
        assert len(missed(lang)) <= 0.01 * marks, missed(lang)


def test_hard_negatives_are_hit_in_one_percent_at_most() -> None:
    clean = [case for case in cases() if not case["hits"]]
    false = [(case["text"], hits) for case in clean if (hits := find_pii(case["text"], case["lang"]))]
    assert len(false) <= 0.01 * len(clean), false


def test_nothing_is_found_beside_what_is_marked() -> None:
    for case in cases():
        marks = [(mark["start"], mark["start"] + len(mark["text"])) for mark in case["hits"]]
        for hit in find_pii(case["text"], case["lang"]):
            assert case["text"][hit.start : hit.end] == hit.text
            assert any(hit.start < end and start < hit.end for start, end in marks), (case["text"], hit)


def test_redacting_leaves_a_tag_and_nothing_of_the_data() -> None:
    for case in cases():
        if case["hits"]:
            mended = redact(case["text"], case["lang"])
            assert not any(mark["text"] in mended for mark in case["hits"]), mended
            assert find_pii(mended, case["lang"]) == []
    assert redact("电话１６４-００００-１２３４，打给我", "zh") == "电话[电话]，打给我"
    assert redact("我家住在幸福路12号3栋502，来玩", "zh") == "我家住在[地址]，来玩"
    assert redact("call (212) 555-0143 now", "en") == "call [phone] now"


def test_places_are_those_of_the_text_although_invisible_characters_are_skipped() -> None:
    text = "号\u200b码164\ufeff00001234\u200b吧"
    [hit] = find_pii(text, "zh")
    assert text[hit.start : hit.end] == hit.text == "164\ufeff00001234"


@pytest.mark.parametrize("entry", read_table("hotlines.toml")["hotline"], ids=lambda entry: entry["id"])
def test_help_lines_are_no_personal_data(entry: dict[str, Any]) -> None:
    assert find_pii(f"难受的时候可以打{entry['number']}，有人接", "zh") == []
    assert find_pii(f"you can call {entry['number']} at any time", "en") == []


def test_names_of_the_bank_are_ours() -> None:
    names = load_catalogue().names
    for name in names.zh:
        assert find_pii(f"我叫{name.name}，你呢", "zh") == [], name
    for name in names.en:
        assert find_pii(f"my name is {name.name}, what's yours", "en") == [], name


def test_a_checksum_decides_where_no_word_says_what_a_number_is() -> None:
    assert [hit.kind for hit in find_pii("11000020150101000X", "zh")] == []
    assert [hit.kind for hit in find_pii("身份证11000020150101000X", "zh")] == ["id_card"]
    assert find_pii("订单4000000000000000", "zh") == []
    assert [hit.kind for hit in find_pii("编号4000000000000002", "zh")] == ["bank_card"]


def talk(name: str, *said: str) -> Conversation:
    turns = tuple(Turn(role="assistant" if at % 2 else "user", content=text) for at, text in enumerate(said))
    return Conversation(id=name, turns=turns)


def test_the_stage_drops_and_says_where_without_saying_what() -> None:
    talks = [talk("a", "我怕黑", "灯关了，哪儿最黑？"), talk("b", "打16400001234找我", "我不能打电话。")]
    dropped: list[Dropped] = []
    assert [each.id for each in kept(without_pii(talks), dropped)] == ["a"]
    assert dropped == [Dropped("b", "pii", "phone in turn 0")]


def test_the_stage_can_redact_and_leaves_system_turns_alone() -> None:
    system = Turn(role="system", content="见 https://example.com")
    given = talk("b", "打16400001234找我", "我不能打电话。")
    given = given.model_copy(update={"turns": (system, *given.turns)})
    [out] = without_pii([given], redacting=True)
    assert isinstance(out, Conversation)
    assert [turn.content for turn in out.turns] == ["见 https://example.com", "打[电话]找我", "我不能打电话。"]


@pytest.mark.parametrize(
    "text", ["", " ", "……", "\u200b", "1" * 5000, "一" * 3000, "的村" * 500, "幸福" * 1000 + "路", "a." * 2000]
)
def test_odd_text_is_read_in_reasonable_time(text: str) -> None:
    for lang in ("zh", "en"):
        redact(text, lang)
