"""Collecting in rounds, with the recipe for offline engines; the engine is a stand-in, everything else is real."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.collect.card import write_plan
from qiaoban.collect.fake_words import say
from qiaoban.collect.plan import PlanOptions, plan
from qiaoban.collect.run import RunFolder
from qiaoban.conversation import read_conversations
from qiaoban.errors import EngineError
from qiaoban.teacher.ledger import Ledger

RECIPE = Path(__file__).parents[2] / "examples" / "collect_vllm" / "collect_vllm.py"
Answer = Callable[[list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("collect_vllm", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    cards = plan(load_catalogue(), PlanOptions(count=12, turns=(3, 3), modes={"roleplay": 0.5, "general": 0.5}))
    write_plan(RunFolder(tmp_path).plan, cards)
    return RunFolder(tmp_path)


def row(asked: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    said = say(asked["messages"]).text if text is None else text
    return {"key": asked["key"], "text": said, "prompt_tokens": 10, "completion_tokens": 5}


async def test_every_card_is_settled_in_as_many_rounds_as_the_longest_has_calls(recipe: Any, folder: RunFolder) -> None:
    rounds: list[int] = []

    def engine(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rounds.append(len(asked))
        return [row(each) for each in asked]

    assert (await recipe.collect(folder, "m", engine))["dialogues"] == 12
    talks = list(read_conversations(folder.dialogues))
    longest = max(len(talk.turns) + 1 if talk.provenance.mode == "roleplay" else 1 for talk in talks)
    assert len(rounds) >= longest
    assert rounds[0] == 12, "the first round has a call of every card"


async def test_a_stop_in_the_middle_of_a_round_loses_nothing(recipe: Any, folder: RunFolder) -> None:
    seen: list[str] = []

    def breaks(asked: list[dict[str, Any]]) -> Any:
        for number, each in enumerate(asked):
            if len(seen) > 20 and number == 2:
                raise KeyboardInterrupt
            seen.append(each["key"])
            yield row(each)

    with pytest.raises(KeyboardInterrupt):
        await recipe.collect(folder, "m", breaks)

    def engine(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend(each["key"] for each in asked)
        return [row(each) for each in asked]

    assert (await recipe.collect(folder, "m", engine))["dialogues"] == 12
    assert len(seen) == len(set(seen)), "nothing that was answered is asked again"


async def test_rows_that_fail_are_asked_again_and_then_given_up(recipe: Any, folder: RunFolder) -> None:
    def engine(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            row(each, "" if "general" in str(each["messages"]) or number == 0 else None) for number, each in enumerate(asked)
        ]

    counts = await recipe.collect(folder, "m", engine)
    assert counts["dialogues"] + counts["failed"] == 12
    assert counts["failed"] >= 1
    with Ledger(folder.ledger, read_only=True) as ledger:
        assert all("3 times" in reason for _, reason in ledger.failures())


async def test_an_engine_that_answers_nothing_stops_the_run(recipe: Any, folder: RunFolder) -> None:
    with pytest.raises(EngineError, match="no answer"):
        await recipe.collect(folder, "m", lambda _: [])
