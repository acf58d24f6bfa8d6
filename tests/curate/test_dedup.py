"""Duplicates: planted near-duplicates of several strengths, the three levels, meaning, order and memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.conversation import Conversation, Meta, Turn
from qiaoban.curate.dedup import FoldedTalk, Level, Levels, RepeatedTurn, Vectors, dedup, dedup_meaning
from qiaoban.curate.near import NearIndex, choose_bands, fold, grams, jaccard, signatures
from qiaoban.curate.stage import Dropped, Outcome, kept
from qiaoban.errors import UsageError

PARTICLES = ["呢", "啊", "呀", "吧", "啦", "嘛", "哦"]
MARKS = ["，", "。", "！", "……", " ", "～", ", ", "？！"]
# Edits in each turn: as many marks as the strength says, particles at its end, from 3 on also characters (one in thirty, two,
# four), and from 2 on two turns are swapped. At J >= 0.7 of 5-grams strengths 1 and 2 count as duplicates (median J 0.95 and
# 0.79), 3 lies on the border (0.63), 4 and 6 do not (0.45 and 0.25).
STRENGTHS = (1, 2, 3, 4, 6)


def talk(name: str, *said: str, lang: str = "zh") -> Conversation:
    turns = tuple(Turn(role="assistant" if at % 2 else "user", content=text) for at, text in enumerate(said))
    return Conversation.model_validate({"id": name, "turns": turns, "meta": Meta.model_validate({"lang": lang})})


def bases(count: int) -> list[Conversation]:
    """Talks of eight turns woven from the bank's scenes, one scene a talk, replies drawn from what the bank gives acts."""
    bank = load_catalogue()
    rng = random.Random(7)
    replies = [line for act in bank.acts for line in act.examples.zh]
    feelings = [line for emotion in bank.emotions for line in (*emotion.phrases.zh, *emotion.body.zh)]
    talks = []
    for at, scene in enumerate(rng.sample(bank.scenes, count)):
        child = [scene.zh, rng.choice(feelings), scene.hidden.zh, rng.choice(feelings)]
        said = [text for line in child for text in (line, rng.choice(replies) + rng.choice(replies))]
        talks.append(talk(f"base-{at}", *said))
    return talks


def edited(given: Conversation, strength: int, rng: random.Random) -> list[str]:
    """Marks and particles changed and added, characters put in, taken out and exchanged, two turns swapped."""
    said = [turn.content for turn in given.turns]
    for at, text in enumerate(said):
        chars = list(text)
        for _ in range(strength):
            chars.insert(rng.randrange(len(chars) + 1), rng.choice(MARKS))
        for _ in range(len(chars) * max(0, strength - 2) // 30):
            place = rng.randrange(len(chars))
            chars[place : place + 1] = rng.choice(
                [[], [chars[place], rng.choice("小大很真又就")], [rng.choice("一不上下来去")]]
            )
        if rng.random() < 0.2 * strength:
            chars.append(rng.choice(PARTICLES))
        said[at] = "".join(chars)
    if strength > 1:
        said[1], said[5] = said[5], said[1]
    return said


def planted() -> tuple[list[Conversation], dict[str, tuple[str, float]]]:
    """Bases and their edited copies, and for each copy its base and their exact Jaccard, by plain Python on this side."""
    rng = random.Random(11)
    originals = bases(160)
    talks, truth = list(originals), {}
    for base in originals:
        for strength in STRENGTHS:
            copy = talk(f"{base.id}-{strength}", *edited(base, strength, rng))
            truth[copy.id] = (base.id, jaccard(pieces(base), pieces(copy)))
            talks.append(copy)
    return talks, truth


def pieces(given: Conversation) -> set[str]:
    text = "".join(char.lower() for turn in given.turns for char in turn.content if char.isalnum())
    return {text[at : at + 5] for at in range(len(text) - 4)}


def dialogues_only() -> Levels:
    """Openings and turns are not compared."""
    off = Level(0.7, {"zh": 5, "en": 3}, {"zh": 0, "en": 0})
    return Levels(dialogue=Levels().dialogue, opening=off, turn=off)


def run(talks: Sequence[Conversation], levels: Levels | None = None) -> tuple[list[str], dict[str, Dropped]]:
    dropped: list[Dropped] = []
    stay = [each.id for each in kept(dedup(talks, levels=levels), dropped)]
    return stay, {each.id: each for each in dropped}


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    talks, truth = planted()
    by_name = {each.id: each for each in talks}
    near = [name for name, (_, score) in truth.items() if score >= 0.7]
    far = [name for name, (_, score) in truth.items() if score < 0.7]
    assert len(near) >= 200
    assert len(far) >= 100
    stay, dropped = run(talks, dialogues_only())
    assert sum(name in dropped for name in near) >= 0.98 * len(near)
    assert all(f"base-{at}" in stay for at in range(160))
    pairs = [(name, each.detail.split(",")[0].removeprefix("like ")) for name, each in dropped.items()]
    false = [pair for pair in pairs if jaccard(pieces(by_name[pair[0]]), pieces(by_name[pair[1]])) < 0.7]
    assert len(false) <= 0.01 * len(pairs), false


def test_strength_says_what_counts_as_a_duplicate() -> None:
    _, truth = planted()
    share = {
        strength: np.mean([score >= 0.7 for name, (_, score) in truth.items() if name.endswith(f"-{strength}")])
        for strength in STRENGTHS
    }
    assert share[1] == 1
    assert share[2] >= 0.95
    assert 0 < share[3] < 0.3
    assert share[4] == share[6] == 0


def test_same_text_in_other_marks_and_widths_is_exact() -> None:
    one = talk("one", "我考了98分！", "真好，你等这个分数等了好久。")
    other = talk("other", "我考了９８分 。", "真好你等这个分数，等了好久……")
    assert run([one, other])[1] == {"other": Dropped("other", "exact", "like one")}


def test_the_first_of_a_cluster_stays_and_order_is_kept() -> None:
    talks, _ = planted()
    mixed = random.Random(3).sample(talks, len(talks))
    outcomes = list(dedup(mixed))
    assert [each.id for each in outcomes] == [each.id for each in mixed]
    stay, dropped = run(mixed)
    place = {each.id: at for at, each in enumerate(mixed)}
    for name, each in dropped.items():
        like = each.detail.split("like ")[1].split(",")[0]
        assert like in stay
        assert place[like] < place[name]


def test_same_input_gives_the_same_outcome_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    talks, _ = planted()

    def outcome() -> list[Outcome]:
        return list(dedup(talks))

    whole = outcome()
    assert whole == outcome()
    monkeypatch.setattr("qiaoban.curate.dedup.BLOCK", 37)
    assert whole == outcome()


def test_an_opening_that_was_used_before_is_left_out() -> None:
    tail = ["嗯", "后来呢？", "她不跟我玩了", "一个人站在操场边上，心里空空的。"]
    one = talk("one", "今天美术课我的手工被同学碰到地上摔坏了", "做了三个星期的东西，一下子碎了。", *tail)
    other = talk(
        "other", "今天美术课我的手工被同学碰到地上摔坏啦", "做了三个星期的东西，一下子碎了！", "我想再做一个", "先画图纸？"
    )
    short = talk("short", "我怕", "怕什么？", "怕黑", "灯关了以后，屋里哪儿最黑？")
    assert run([one, other, short, talk("short2", "我怕", "怕什么？", "怕狗", "它叫得很响，对吗？")])[1].keys() == {"other"}
    assert run([one, other])[1]["other"].reason == "near_opening"


def test_a_template_of_turns_is_reported_and_dropped_above_half() -> None:
    template = "听你这么说，心里一定很不好受，想跟我说说是怎么回事吗？"
    second = "愿意说出来已经很勇敢了，我们慢慢想办法好不好？"
    first = talk("first", "我的铅笔盒丢了", template, "不想说", second)
    half = talk("half", "爷爷住院了，妈妈天天去", template + "呀", "他身上插着管子", "看到管子的那一下，你吓着了。")
    most = talk("most", "我们班要选班长我没选上", template, "就差一票", second, "嗯", "一票。")
    repeats: list[RepeatedTurn] = []
    outcomes = list(dedup([first, half, most], repeats=repeats))
    assert [type(each) for each in outcomes] == [Conversation, Conversation, Dropped]
    assert outcomes[2] == Dropped("most", "repeated_turns", "2 of 3 companion turns, like first")
    assert [(each.talk, each.turn, each.like, each.like_turn) for each in repeats] == [
        ("half", 1, "first", 1),
        ("most", 1, "first", 1),
        ("most", 3, "first", 3),
    ]


def test_turns_of_one_talk_are_no_duplicates_of_each_other() -> None:
    same = "灯关了以后，屋子里哪一个角落让你觉得最黑？"
    assert run([talk("one", "我怕黑", same, "都黑", same)])[0] == ["one"]


def test_english_is_compared_by_words() -> None:
    one = ("we moved house and i don't know anyone at my new school", "All new faces at once. What was lunch like?")
    two = ("We moved house, and I don’t know anyone at my new school!", "all new faces at once -- what was lunch like")
    three = ("my hamster died when i was at school today", "You came home and he was gone.")
    stay, dropped = run([talk("1", *one, lang="en"), talk("2", *two, lang="en"), talk("3", *three, lang="en")])
    assert stay == ["1", "3"]
    assert dropped["2"].reason == "exact"


def test_empty_talks_resemble_nothing() -> None:
    assert run([talk("1", "……", "。"), talk("2", "？", "！")])[0] == ["1", "2"]


def test_bands_miss_few_pairs_at_the_threshold() -> None:
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        bands, rows = choose_bands(threshold)
        agree = threshold**rows
        assert bands * rows <= 128
        assert (1 - agree) ** bands + bands * agree * (1 - agree) ** (bands - 1) <= 0.005


def test_signatures_estimate_jaccard() -> None:
    base, other = (
        fold(each, "zh") for each in ("今天美术课我的手工被同学碰到地上摔坏了" * 3, "昨天美术课我的手工被人碰到地上摔坏了" * 3)
    )
    rows = signatures([base, other], {"zh": 5, "en": 3})
    assert abs(float((rows[0] == rows[1]).mean()) - jaccard(grams(base, 5), grams(other, 5))) < 0.15


def test_hashed_ngrams_are_the_ngrams() -> None:
    """Equal sets of n-grams give equal signatures whatever stands beside them in the block."""
    texts = [fold(each, "zh") for each in ("你", "你好", "你好呀你好呀", "今天的天气真好啊", "今天的天气真好啊")]
    together = signatures(texts, {"zh": 5, "en": 3})
    alone = np.concatenate([signatures([each], {"zh": 5, "en": 3}) for each in texts])
    assert (together == alone).all()
    assert (together[3] == together[4]).all()
    assert (together[0] != together[1]).any()


def test_an_index_holds_what_the_bands_of_many_blocks_hold() -> None:
    texts = [FoldedTalk(each).dialogue for each in bases(60)]
    index = NearIndex(0.7, {"zh": 5, "en": 3})
    for at in range(0, 60, 7):
        block = texts[at : at + 7]
        index.open(block)
        for place in range(len(block)):
            assert index.match(place) is None
            index.keep(place, str(at + place))
    index.open(texts)
    assert [match.tag for place in range(60) if (match := index.match(place))] == [str(at) for at in range(60)]


def test_a_crowd_of_like_turns_is_one_kept_turn() -> None:
    """What stands in every talk is kept once, so that the thousandth costs no more than the second."""
    template = "我在听，你慢慢说，把今天发生的事情都告诉我好吗"
    talks = [
        talk(f"t{at}", scene, template + "呢" * (at % 2), said, reply)
        for at, (scene, said, reply) in enumerate(
            (each.turns[0].content, each.turns[2].content, each.turns[3].content) for each in bases(300)
        )
    ]
    repeats: list[RepeatedTurn] = []
    outcomes = list(dedup(talks, repeats=repeats))
    assert sum(isinstance(each, Conversation) for each in outcomes) >= 250
    assert {each.like for each in repeats if each.turn == 1} == {"t0"}
    assert sum(each.turn == 1 for each in repeats) >= 250


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"outside 0\.5-1"):
        Level(0.3, {"zh": 5, "en": 3}, {"zh": 1, "en": 1})


class HashedNgrams:
    """A small encoder: counts of hashed character pairs."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        out = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            for at in range(len(text) - 1):
                out[row, crc32(text[at : at + 2].encode()) % 512] += 1
        return out


def test_meaning_leaves_out_what_the_encoder_holds_for_near() -> None:
    originals = bases(120)
    rng = random.Random(2)
    copies = [talk(f"copy-{at}", *edited(each, 1, rng)) for at, each in enumerate(originals[:20])]
    mixed = [*originals, *copies, originals[3].model_copy(update={"id": "again"})]
    dropped: list[Dropped] = []
    stay = [each.id for each in kept(dedup_meaning(mixed, HashedNgrams()), dropped)]
    assert {each.id for each in dropped if each.id.startswith("base")} == set()
    assert [each.id for each in dropped][-1] == "again"
    assert dropped[-1].detail == "like base-3, cosine 1.00"
    assert len(dropped) >= 20
    assert stay[:120] == [each.id for each in originals]


def test_an_encoder_that_gives_another_shape_is_refused() -> None:
    class Wrong:
        def encode(self, texts: Sequence[str]) -> Vectors:
            return np.zeros((1, 4), np.float32)

    with pytest.raises(UsageError, match="shape"):
        list(dedup_meaning(bases(3), Wrong()))


def test_a_zero_vector_is_near_to_nothing() -> None:
    class Zero:
        def encode(self, texts: Sequence[str]) -> Vectors:
            return np.zeros((len(texts), 4), np.float32)

    assert len(list(kept(dedup_meaning(bases(3), Zero()), []))) == 3
