"""The corpus as far as it is written: every file can be read, and what was asked of its authors holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from qiaoban.conversation import Conversation
from qiaoban.errors import DataError

ROOT = Path(__file__).parents[1] / "corpus"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("corpus_build", ROOT / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _module()


@pytest.fixture(scope="module")
def talks() -> list[Conversation]:
    return [talk for lang in ("zh", "en") for talk in build.gathered(lang)]


def test_every_dialogue_has_a_card_of_its_own(talks: list[Conversation]) -> None:
    assert len({talk.id for talk in talks}) == len(talks) > 300


def test_turns_alternate_and_the_companion_has_the_last(talks: list[Conversation]) -> None:
    for talk in talks:
        assert [turn.role for turn in talk.turns] == ["user", "assistant"] * (len(talk.turns) // 2), talk.id


def test_feelings_are_met_before_anything_is_solved(talks: list[Conversation]) -> None:
    found = build.figures(talks)
    assert found["advice_first"] == []
    assert found["label_in_two_turns"] >= 0.85 * found["painful"]


def test_nothing_is_said_twice_and_no_opening_is_a_habit(talks: list[Conversation]) -> None:
    found = build.figures(talks)
    assert found["repeated_turns"] == []
    assert found["commonest_opener"][1] <= 0.02 * found["companion_turns"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("孩子：你好\n", "neither a card nor a turn"),
        ("= no-such-card\n", "there is no card"),
        ("= zh-friends-001\n七巧板：没有标签\n", "carries acts"),
        ("= zh-friends-001\n七巧板[HUG]：抱\n", "Input should be"),
        ("= zh-friends-001\n", "has no turns"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.txt").write_text(text, "utf-8")
    with pytest.raises(DataError, match=words):
        list(build.parse(tmp_path / "x.txt", build.cards("zh")))
