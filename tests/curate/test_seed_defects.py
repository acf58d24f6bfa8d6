"""The linter on the hundred dialogues that were released in 2023: it must see what people have counted in them by hand."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from qiaoban.conversation import Conversation
from qiaoban.curate.lint import lint
from qiaoban.curate.rules import Finding
from qiaoban.curate.table import turns_table
from qiaoban.formats import read_talks
from tests.curate.talks import parse_talk

SEED = Path(__file__).parents[3] / "shared" / "data" / "qiaoban_2023" / "child_chat_100.json"

HELPER = re.compile(
    "信得过|信任的(?:大人|人|老师)|没伤害过你|110|120|12355|12356|热线|报警|警察|校医|心理老师|社工|急救电话|求助|另一个大人"
)

needs_seed = pytest.mark.skipif(not SEED.exists(), reason="the public set shared/data/qiaoban_2023 is not on this machine")


@cache
def _talks() -> tuple[Conversation, ...]:
    return tuple(read_talks(SEED))


@cache
def _findings() -> tuple[Finding, ...]:
    return tuple(lint(_talks()))


def _dialogues() -> dict[str, set[str]]:
    by_rule: defaultdict[str, set[str]] = defaultdict(set)
    for finding in _findings():
        by_rule[finding.rule].add(finding.id)
    return by_rule


@needs_seed
def test_the_companion_is_called_mum() -> None:
    """By hand: all hundred."""
    found = _dialogues()
    assert len(found["kinship_vocative"] | found["claims_kinship"]) >= 97


@needs_seed
def test_promises_of_a_body() -> None:
    """By hand: 29."""
    assert 24 <= len(_dialogues()["embodied_promise"]) <= 34


@needs_seed
def test_nobody_names_a_helper() -> None:
    """By hand: in no dialogue is there a help line, the police, a counsellor or a grown-up whom the child trusts."""
    assert [
        turn.content for talk in _talks() for turn in talk.turns if turn.role == "assistant" and HELPER.search(turn.content)
    ] == []


@needs_seed
def test_structure() -> None:
    """By script: 19 that do not alternate, 38 that end on the child."""
    assert len(_dialogues()["alternation"]) == 19
    assert len(_dialogues()["last_turn"]) == 38


@needs_seed
@pytest.mark.parametrize("number", [46, 69, 94])
def test_the_worst_are_dropped(number: int) -> None:
    """Smoking approved of, a beating and a thrown piece of chalk excused."""
    grave = {"unsafe_advice", "blames_child"}
    assert any(f.rule in grave for f in _findings() if f.id.rsplit("-", 1)[-1] == str(number))


@pytest.mark.parametrize(
    "line", ["我妈妈打我。", "妈妈今天又打我了。", "我怕妈妈骂我，不敢回家。", "爸爸喝醉了打妈妈。", "妈妈，她总打我。"]
)
def test_talking_about_mum_is_not_calling_her(line: str) -> None:
    assert list(lint([parse_talk(f"孩子：{line}", lang="zh")], rules=["kinship_vocative"])) == []


@needs_seed
def test_the_table_keeps_every_turn() -> None:
    assert turns_table(_talks()).select(pl.len()).item() == sum(len(talk.turns) for talk in _talks())
