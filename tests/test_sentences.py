"""Sentences are the unit of release: none is lost, none depends on how the text arrived, none is held for long."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qiaoban.safety.sentences import LONGEST, SentenceSplitter, split_sentences

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

PIECES = [
    "。", "！", "？", "!", "?", ".", "…", "”", "’", "』", "）", '"', "'", ")", "，", ",", " ", "\n", "\u3000", "“", "~",
    "3", ".5", "Mr", "e.g", "etc", "你好", "我", "ok", "👩‍👩‍👧‍👦", "👍🏽", "😀", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "e\u0301", "\u200d", "x" * 70,
]  # fmt: skip
prose = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
texts = st.text() | prose | prose.map(lambda text: text * 8)


@calm
@given(texts)
def test_the_sentences_are_the_text(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert "" not in sentences


@calm
@given(texts, st.data())
@example("她说：“好！👩‍👩‍👧”然后走了。", None)
def test_the_cut_into_pieces_makes_no_difference(text: str, data: st.DataObject | None) -> None:
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=12)) if data else range(len(text))
    edges = [0, *sorted(places), len(text)]
    splitter = SentenceSplitter()
    sentences = [s for a, b in pairwise(edges) for s in splitter.feed(text[a:b])]
    rest = splitter.flush()
    assert [*sentences, *([rest] if rest else [])] == split_sentences(text)


@calm
@given(texts)
def test_nothing_is_held_longer_than_the_longest(text: str) -> None:
    splitter = SentenceSplitter()
    released = 0
    for fed, char in enumerate(text, start=1):
        released += sum(len(sentence) for sentence in splitter.feed(char))
        assert fed - released <= LONGEST
    assert max((len(sentence) for sentence in split_sentences(text)), default=0) <= LONGEST


@calm
@given(prose, prose)
def test_a_splitter_is_as_new_after_a_flush(first: str, second: str) -> None:
    splitter = SentenceSplitter()
    splitter.feed(first)
    splitter.flush()
    assert [*splitter.feed(second), splitter.flush()] == [*SentenceSplitter().feed(second), _rest(second)]


def _rest(text: str) -> str:
    splitter = SentenceSplitter()
    splitter.feed(text)
    return splitter.flush()


@pytest.mark.parametrize(
    "sentences",
    [
        ["你好。", "我是小乔。"],
        ["他说：“真的吗？”", "我点点头。"],
        ["她喊：“快来！！”", "『好的。』", "然后笑了。"],
        ["（我也是。）", "对吧？"],
        ["我不知道……也许吧。", "再想想。"],
        ["真的？！", "太好了！！！", "走吧~"],
        ["真好～我喜欢。", "嗯"],
        ["今天跑了3.5公里。", "好累！"],
        ["太棒了！🎉🎉", "我们再来。"],
        ["太棒了！👩‍👩‍👧‍👦👍🏽", "走。"],
        ["我爱你。❤️", "晚安。"],
        ["第一行\n", "第二行\n\n", "第三行"],
        ["Hello there. ", "How are you? ", "Fine!"],
        ["It is 3.5 km. ", "I ran it."],
        ["Mr. Bean met Dr. Who. ", "They laughed."],
        ["Some fruit, e.g. apples, i.e. food. ", "Yum."],
        ["(E.g. this one.) ", "Right."],
        ["Wow!!! ", "Really?! ", "Yes."],
        ['"Go." ', "He went."],
        ["He said “No.” ", "Then he left."],
        ["Wait... ", "What?"],
        ["Try v1.2.3 now. ", "OK."],
        ["no end at all"],
        ["   "],
        [],
    ],
)
def test_examples(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences


def test_a_sentence_waits_for_its_closing_quote_and_no_longer() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("“好。") == []
    assert splitter.feed("”") == []
    assert splitter.feed("我") == ["“好。”"]
    assert splitter.flush() == "我"


def test_a_decimal_does_not_end_when_its_digits_arrive_apart() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("It is 3.") == []
    assert splitter.feed("5 km. ") == []
    assert splitter.feed("N") == ["It is 3.5 km. "]


def test_a_stretch_without_an_end_is_cut_behind_a_comma() -> None:
    text = "我今天去了公园，" * 30
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentence.endswith("，") for sentence in sentences)
    assert len(sentences) == 2


def test_a_stretch_without_even_a_comma_is_cut_at_the_longest() -> None:
    assert [len(sentence) for sentence in split_sentences("啊" * (2 * LONGEST + 5))] == [LONGEST, LONGEST, 5]


def test_many_marks_are_not_held_for_ever() -> None:
    assert max(len(sentence) for sentence in split_sentences("!" * 1_000)) <= LONGEST


def test_a_flag_behind_the_end_is_not_cut_in_two() -> None:
    assert split_sentences("Go!🏴󠁧󠁢󠁥󠁮󠁧󠁿 Now.") == ["Go!🏴󠁧󠁢󠁥󠁮󠁧󠁿 ", "Now."]
