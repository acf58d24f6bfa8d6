"""What a format can hold comes back equal; what it cannot hold is counted, and never changes who said what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiaoban.conversation import Conversation, Emotion, Meta, Turn
from qiaoban.formats import PAIRS, TALKS, Loss, Pair, content_id, detect, read_pairs, read_talks, write_pairs, write_talks
from qiaoban.formats.record import EDGES, SHORTER
from tests.formats.talks import PAIR_FORMATS, TALK_FORMATS, calm, file_name, pairs, said, talks, tame

FREE = st.text(max_size=20)


def there_and_back(talk: Conversation, form: str, folder: Path) -> tuple[Loss, list[Conversation]]:
    path = folder / file_name(form)
    loss = write_talks(path, [talk], form)
    return loss, list(read_talks(path, form))


def words(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


@pytest.mark.parametrize("form", TALK_FORMATS)
@given(talk=talks)
@calm
def test_nothing_changes_without_being_counted(form: str, talk: Conversation, tmp_path: Path) -> None:
    """The law that all formats obey, whatever stands in a talk: no loss reported, no difference."""
    loss, back = there_and_back(talk, form, tmp_path)
    if loss.left_out:
        assert (loss.talks, loss.turns, back) == (0, 0, [])
        return
    assert (loss.talks, len(back)) == (1, 1)
    assert len(back[0].turns) == loss.turns == len(talk.turns) - sum(loss.lost[key] for key in SHORTER)
    if not any(loss.lost[key] for key in (*SHORTER, EDGES)):
        assert words(back[0].turns) == words(talk.turns)
    if not loss:
        assert back == [talk if "id" in TALKS[form].keeps else talk.model_copy(update={"id": content_id(talk.turns)})]
    for field in TALKS[form].keeps:
        if field.startswith("meta."):
            assert getattr(back[0].meta, field[5:]) == getattr(talk.meta, field[5:])


@pytest.mark.parametrize("form", ["qiaoban", "parquet"])
@given(talk=talks)
@calm
def test_our_own_forms_hold_everything(form: str, talk: Conversation, tmp_path: Path) -> None:
    loss, back = there_and_back(talk, form, tmp_path)
    assert not loss
    assert back == [talk]


HOLDS = {
    "openai": (said(FREE, system=True), {}),
    "sharegpt": (said(FREE, system=True), {"id"}),
    "alpaca": (said(tame, system=True), set()),
    "belle": (said(tame, system=False), set()),
    "baize": (said(tame, system=True), {"topic"}),
    "qiaoban2023": (said(FREE, system=False), {"id", "topic", "emotion"}),
    "qiaoban2023-flat": (said(tame, system=True), {"topic"}),
    "cpsycoun": (said(tame, system=False), {"id"}),
}


@pytest.mark.parametrize("form", sorted(HOLDS))
@given(data=st.data())
@calm
def test_a_format_holds_what_it_is_made_for(form: str, data: st.DataObject, tmp_path: Path) -> None:
    shape, kept = HOLDS[form]
    turns = data.draw(shape)
    meta = Meta(
        topic=data.draw(st.none() | FREE) if "topic" in kept else None,
        emotion=data.draw(st.none() | st.sampled_from(Emotion)) if "emotion" in kept else None,
    )
    name = data.draw(st.from_regex(r"[a-z0-9_]{1,20}", fullmatch=True)) if "id" in kept else content_id(turns)
    talk = Conversation(id=name, turns=turns, meta=meta)
    loss, back = there_and_back(talk, form, tmp_path)
    assert not loss, loss
    assert back == [talk]


@pytest.mark.parametrize("form", TALK_FORMATS)
@given(many=st.lists(said(tame, system=False), min_size=1, max_size=4))
@calm
def test_a_file_says_itself_which_format_it_has(form: str, many: list[tuple[Turn, ...]], tmp_path: Path) -> None:
    """But for BELLE's single questions, which are Alpaca's: one reader takes both."""
    written = [Conversation(id=f"t{n}", turns=turns, meta=Meta(topic="x")) for n, turns in enumerate(many)]
    path = tmp_path / file_name(form)
    write_talks(path, written, form)
    found = detect(path)
    assert found == form or (form, found) == ("belle", "alpaca")
    assert [words(talk.turns) for talk in read_talks(path)] == [words(talk.turns) for talk in written]


@pytest.mark.parametrize("form", TALK_FORMATS)
def test_an_empty_set_is_written_and_read(form: str, tmp_path: Path) -> None:
    path = tmp_path / file_name(form)
    assert write_talks(path, [], form) == Loss()
    assert list(read_talks(path, form)) == []


@pytest.mark.parametrize("form", ["belle", "baize", "cpsycoun"])
def test_spaces_that_a_text_format_cannot_hold_are_counted(form: str, tmp_path: Path) -> None:
    turns = tuple(
        Turn(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate([" 在吗", "在。\n", "嗯", "说吧"])
    )
    loss, back = there_and_back(Conversation(id="x", turns=turns), form, tmp_path)
    assert loss.lost[EDGES] == 2
    assert [turn.content for turn in back[0].turns] == ["在吗", "在。", "嗯", "说吧"]


@pytest.mark.parametrize("form", ["sharegpt", "alpaca", "qiaoban2023", "baize"])
def test_the_suffix_chooses_between_array_and_lines(form: str, tmp_path: Path) -> None:
    talk = Conversation(id="1", turns=(Turn(role="user", content="在吗"), Turn(role="assistant", content="在。")))
    for name, start in (("a.json", b"[\n{"), ("a.jsonl", b"{"), ("a.ndjson", b"{")):
        write_talks(tmp_path / name, [talk, talk], form)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert len(list(read_talks(tmp_path / name))) == 2


@pytest.mark.parametrize("form", PAIR_FORMATS)
@given(pair=pairs)
@calm
def test_pairs_change_only_where_it_is_counted(form: str, pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    loss = write_pairs(path, [pair], form)
    back = list(read_pairs(path, form))
    if loss.left_out:
        assert back == []
        return
    assert [each.sides() for each in back] == [pair.sides()]
    if not loss:
        assert back == [pair]
    assert detect(path) == form
    assert PAIRS[form].keeps or back[0].pair_type is None


def tame_pairs() -> st.SearchStrategy[list[Pair]]:
    def build(parts: list[tuple[tuple[Turn, ...], str, str]]) -> list[Pair]:
        found = []
        for number, (turns, good, bad) in enumerate(parts):
            sides = {"chosen": (Turn(role="assistant", content=good),), "rejected": (Turn(role="assistant", content=bad),)}
            found.append(Pair(id=f"p{number}", prompt=turns[:-1], **sides, pair_type="dismissing", lang="zh"))
        return found

    return st.lists(st.tuples(said(tame, system=True), tame, tame), min_size=1, max_size=4).map(build)


@pytest.mark.parametrize("form", PAIR_FORMATS)
@given(many=tame_pairs())
@calm
def test_every_pair_format_holds_a_prompt_with_two_replies(form: str, many: list[Pair], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    loss = write_pairs(path, many, form)
    assert not loss.left_out
    notes: Counter[str] = Counter()
    assert [pair.sides() for pair in read_pairs(path, notes=notes)] == [pair.sides() for pair in many]
    assert "replies without a counterpart" not in notes
    assert loss.lost == ({} if form == "pairs" else {"id": len(many), "pair_type": len(many), "lang": len(many)})
