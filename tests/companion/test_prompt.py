"""Language by the child's words, the opening by age, and history that fits by whole turns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiaoban.companion.prompt import fit_history, language_of, load_prompt_book
from qiaoban.conversation import AgeBand, Lang, Turn

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

CATEGORIES = ("anything else", "after_disclosure")


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("我好难过", "zh"),
        ("I am sad", "en"),
        ("我的 homework 写不完", "zh"),
        ("老师说 OK", "zh"),
        ("妈 bought a new game for me", "en"),
        ("我爱 Minecraft and Roblox and Lego", "zh"),  # two characters outweigh six words
        ("Minecraft", "en"),
    ],
)
@pytest.mark.parametrize("otherwise", get_args(Lang))
def test_the_words_tell_the_language(text: str, lang: Lang, otherwise: Lang) -> None:
    assert language_of(text, otherwise) == lang


@pytest.mark.parametrize("text", ["", " \n", "123", "3.14!", "😀🎉", "k", "?!…", "ー"])
@pytest.mark.parametrize("otherwise", get_args(Lang))
def test_what_tells_nothing_keeps_the_language(text: str, otherwise: Lang) -> None:
    assert language_of(text, otherwise) == otherwise


@calm
@given(st.text(), st.sampled_from(["zh", "en"]))
def test_language_of_any_text_is_one_of_two(text: str, otherwise: Lang) -> None:
    assert language_of(text, otherwise) in {"zh", "en"}
    assert language_of(text + "我", otherwise) == "zh" or language_of(text, "zh") == "en"  # more Chinese is never less Chinese


@pytest.mark.parametrize("lang", get_args(Lang))
def test_the_book_has_words_for_every_age(lang: Lang) -> None:
    book = load_prompt_book(lang)
    assert book.version
    seen = set()
    for band in [band for band in AgeBand if band is not AgeBand.B3_5]:  # the product serves 6-17
        opening = book.opening(band)
        assert [turn.role for turn in opening] == ["system"] + ["user", "assistant"] * (len(opening) // 2)
        assert opening == book.opening(band)  # the same at every turn, or nothing of it can be cached
        assert language_of(opening[0].content, "en" if lang == "zh" else "zh") == lang
        assert book.disclosure(band)
        seen.add(opening[0].content)
    assert len(seen) == 4
    for category in CATEGORIES:
        assert book.guidance(category)


# -- history --------------------------------------------------------------------------------------------------------------


def size(turns: Sequence[Turn]) -> int:
    """A counter that a test can foresee: each turn takes as many tokens as its text says."""
    return sum(int(turn.content) for turn in turns)


def history(sizes: Sequence[int]) -> list[Turn]:
    """Child and companion in turn, the child last, as when a reply is due."""
    first = len(sizes) % 2  # 1: the child's turns are the even ones
    return [Turn(role="user" if i % 2 != first else "assistant", content=str(n)) for i, n in enumerate(sizes)]


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Turn], int, int]:
    """Turns, a start at a child's turn, and a room."""
    turns = history(draw(sizes))
    starts = [i for i, turn in enumerate(turns) if turn.role == "user"]
    return turns, draw(st.sampled_from(starts)), draw(st.integers(0, size(turns) + 20))


@calm
@given(cases())
def test_history_is_whole_turns_from_a_childs_turn_on_and_fits(case: tuple[list[Turn], int, int]) -> None:
    turns, start, room = case
    at = fit_history(turns, start, count=size, room=room)
    assert start <= at < len(turns)  # never empty, never back to what was given up
    assert turns[at].role == "user"
    assert size(turns[at:]) <= room or at == len(turns) - 1


@calm
@given(cases())
def test_history_is_left_alone_while_it_fits_and_else_cut_to_half(case: tuple[list[Turn], int, int]) -> None:
    turns, start, room = case
    at = fit_history(turns, start, count=size, room=room)
    if size(turns[start:]) <= room:
        assert at == start
        return
    assert size(turns[at:]) <= room // 2 or at == len(turns) - 1
    earlier = [i for i in range(start + 1, at) if turns[i].role == "user"]
    assert all(size(turns[i:]) > room // 2 for i in earlier)  # no more is given up than that needs


@calm
@given(cases())
def test_history_is_cut_the_same_way_each_time_and_settles(case: tuple[list[Turn], int, int]) -> None:
    turns, start, room = case
    at = fit_history(turns, start, count=size, room=room)
    assert fit_history(list(turns), start, count=size, room=room) == at
    assert fit_history(turns, at, count=size, room=room) == at


@calm
@given(st.lists(st.integers(20, 60), min_size=20, max_size=40), st.integers(120, 300))
def test_over_a_talk_the_prefix_is_given_up_once_in_many_turns(more: list[int], room: int) -> None:
    turns, at, cuts = history(more), 0, [0]
    for end in range(1, len(turns) + 1):
        if turns[end - 1].role == "user":
            now = fit_history(turns[:end], at, count=size, room=room)
            cuts += [now] if now != at else []
            at = now
    assert len(cuts) > 1
    # Between two cuts at least half of the room is filled anew, so a cut gives up at least a quarter of it.
    totals = [0, *accumulate(int(turn.content) for turn in turns)]
    assert all(totals[b] - totals[a] >= room // 4 for a, b in pairwise(cuts))


def test_the_last_turn_stays_even_when_it_alone_is_too_much() -> None:
    turns = history([10, 10, 500])
    assert fit_history(turns, 0, count=size, room=100) == 2
    assert fit_history(turns, 2, count=size, room=100) == 2


def test_a_count_with_a_cost_for_the_whole_is_respected() -> None:
    turns = history([10] * 9)
    at = fit_history(turns, 0, count=lambda shown: size(shown) + 30, room=100)
    assert at == 8  # turns 7 and 8 would fit in half, but turn 7 is the companion's


def test_history_is_cut_before_a_childs_turn() -> None:
    turns = history([10] * 21)
    assert fit_history(turns, 0, count=size, room=100) == 16  # 50 tokens, the half
    assert fit_history(turns, 0, count=size, room=120) == 16  # turn 15 on would fit in 60; it is the companion's
