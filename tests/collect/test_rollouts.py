"""Every mode with a real teacher, ledger and prompts; only what the model says is written down here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.collect.card import Card, Child, Given, Hit
from qiaoban.collect.prompts import load_prompts
from qiaoban.collect.rollouts import ROLLOUTS
from qiaoban.collect.rollouts.studio import Studio
from qiaoban.conversation import Act, AgeBand, Category, Conversation, Emotion, Lang, Meta, Turn, parse_conversation
from qiaoban.errors import DataError
from qiaoban.teacher.ask import CardFailedError, Teacher
from qiaoban.teacher.ledger import Call, Ledger, Usage

LANGS: tuple[Lang, ...] = ("zh", "en")
GIRL = Child(
    name="阿蔷薇",
    gender="girl",
    age=9,
    family="grandparents_left_behind",
    region="village",
    temperament="mixed",
    knobs=("few_words",),
    channel="typed",
    habit="through_a_toy",
)
BOY = Child(name="Bartleby", gender="boy", age=11, family="two_homes", region="city", temperament="easy", channel="voice")
SCENE = load_catalogue().domains[0].scenes[0]
SCENARIO = load_catalogue().scenarios[0]
CHILDS = {
    "zh": ["今天画画课", "颜料没了", "就那样", "嗯", "不知道", "哦"],
    "en": ["it was art", "paint ran out", "dunno", "mm", "so", "ok"],
}
REPLY = {"zh": "画到第{}笔就没了，可以气一会儿。", "en": "All that waiting for box {}, and then none. Cross is allowed."}
TALK = {
    "turns": [{"s": "child", "t": "颜料没了", "d": 2}, {"s": "companion", "t": "一整盒都没了？", "a": ["NOTICE", "INVITE"]}]
}
PLAIN = "孩子：颜料没了\n智能助手：一整盒都没了？"
Answers = Mapping[str, str | Sequence[str]]


def outlines(*chances: float) -> str:
    """Outlines whose every part can be told from every other text."""
    parts = [
        {
            "p": p,
            "incident": f"INCIDENT{n}",
            "hides": f"HIDES{n}",
            "beats": [f"BEAT{n}a", f"BEAT{n}b"],
            "worse": f"WORSE{n}",
            "detail": f"DETAIL{n}",
        }
        for n, p in enumerate(chances)
    ]
    return json.dumps({"outlines": parts})


def completion(content: str | None, finish: str = "stop") -> str:
    return json.dumps({"choices": [{"finish_reason": finish, "message": {"role": "assistant", "content": content}}]})


def talked(*words: str) -> str:
    """A dialogue in JSON, the child first."""
    turns = [
        {"s": "companion", "t": text, "a": ["ACCEPT"]} if at % 2 else {"s": "child", "t": text} for at, text in enumerate(words)
    ]
    return json.dumps({"turns": turns}, ensure_ascii=False)


def usual(lang: Lang) -> Callable[[str], str]:
    """What a well-behaved model says, by slot."""

    def say(slot: str) -> str:
        kind, _, number = slot.partition("/")
        if kind == "child":
            return CHILDS[lang][int(number) - 1]
        known = {"outline": outlines(0.5), "companion": f"[ACCEPT, INVITE] {REPLY[lang].format(number)}"}
        return known.get(kind) or json.dumps(TALK, ensure_ascii=False)

    return say


@dataclass
class Stage:
    """A `Source` that says what `answers` hold for a slot (one for each try, the last one for the rest) or else the usual."""

    ledger: Ledger
    answers: Answers = field(default_factory=dict)
    lang: Lang = "zh"
    calls: list[Call] = field(default_factory=list)
    new: int = 0

    async def answer(self, call: Call) -> str:
        self.calls.append(call)
        if (stored := self.ledger.answer(call.key)) is not None:
            return stored
        self.new += 1
        slot, _, attempt = call.slot.partition("#")
        given = self.answers.get(slot, usual(self.lang)(slot))
        words = given if isinstance(given, str) else given[min(int(attempt), len(given) - 1)]
        raw = words if words.startswith('{"choices"') else completion(words)
        self.ledger.sent(call, call.key)
        self.ledger.answered(call.key, raw, Usage())
        return raw

    async def play(self, card: Card, **teacher: Any) -> Conversation:
        self.lang = card.lang
        asked = Teacher(source=self, ledger=self.ledger, model="some-model", **teacher)
        return await ROLLOUTS[card.mode](
            card, Studio(teacher=asked, prompts={lang: load_prompts(lang) for lang in LANGS}, licence="MIT")
        )

    def of(self, agent: str) -> list[Call]:
        return [call for call in self.calls if call.slot.startswith(agent)]


Make = Callable[..., Stage]


@pytest.fixture
def stage(ledger: Ledger) -> Make:
    """A stage over the one ledger of the test."""
    return lambda answers=None: Stage(ledger, answers or {})


def card(**values: Any) -> Card:
    usual = {"id": "c-1", "mode": "roleplay", "lang": "zh", "domain": "body_health", "scene": SCENE.id, "child": GIRL}
    return Card(**{**usual, "emotion": Emotion.WRONGED, "distress": 3, "outcome": "partly", "turns": 4, "seed": 5, **values})


def mended(*hits: tuple[int, str], **values: Any) -> Card:
    found = tuple(Hit(turn=turn, rule=rule, message=f"MESSAGE-{rule}") for turn, rule in hits)
    return card(mode="repair", given=GIVEN, hits=found, scene=None, **values)


def branched(**values: Any) -> Card:
    return card(**{"mode": "branch", "given": GIVEN, "at": 3, "factor": "dismissing", "scene": None, **values})


GIVEN = Given(
    id="talk-9",
    meta=Meta(topic="study.given"),
    turns=(
        Turn(role="user", content=" 没考好 ", emotion=Emotion.SAD, distress=3),
        Turn(role="assistant", content="嗯，\n难受吧。", acts=(Act.ACCEPT,)),
        Turn(role="user", content="妈妈会骂", distress=2),
        Turn(role="assistant", content="你应该道歉。", acts=(Act.EXPLORE,)),
        Turn(role="user", content="哦", distress=2),
        Turn(role="assistant", content="嗯。"),
    ),
)
EXPAND = card(mode="expand", given=Given(id="m-1", turns=(Turn(role="user", content="老师…又点我名了，， 烦 "),)), scene=None)
GENERAL = card(mode="general", scene=None, task="general.curiosity.sky_blue", emotion=None, distress=0, outcome=None, turns=1)
EACH_MODE = [card(), card(mode="script"), EXPAND, GENERAL, mended((3, "advice")), branched()]
by_mode = pytest.mark.parametrize("card", EACH_MODE, ids=lambda card: card.mode)
ANSWERS: Answers = {"repair/3": "[ACCEPT] 难受可以有。", "branch/3": "[] 没事的。"}


def messages(call: Call) -> list[dict[str, str]]:
    return list(call.body["messages"])


def last(call: Call) -> str:
    return messages(call)[-1]["content"]


def everything(call: Call) -> str:
    return "\n".join(message["content"] for message in messages(call))


def words(talk: Conversation, role: str) -> list[str]:
    return [turn.content for turn in talk.turns if turn.role == role]


class TestEveryMode:
    @by_mode
    async def test_says_what_it_is_about_and_where_it_came_from(self, card: Card, stage: Make) -> None:
        talk = await stage(ANSWERS).play(card)
        topic = card.scene or card.task or ("study.given" if card.given is GIVEN else None)
        assert talk.id == card.id
        assert talk.meta == Meta(
            lang="zh",
            topic=topic,
            domain="body_health",
            age_band=AgeBand.B9_11,
            emotion=card.emotion,
            outcome=card.outcome,
            relation="companion",
        )
        origin = talk.provenance
        assert (origin.teacher, origin.mode, origin.licence, origin.synthetic) == ("some-model", card.mode, "MIT", True)
        assert (origin.card_sha, origin.template_sha) == (card.sha, load_prompts("zh").sha)
        assert origin.source == (card.given.id if card.given else None)
        assert datetime.fromisoformat(origin.created_at or "").tzinfo is not None

    @by_mode
    async def test_can_be_written_and_read(self, card: Card, stage: Make) -> None:
        talk = await stage(ANSWERS).play(card)
        assert parse_conversation(talk.to_json()) == talk
        assert [turn.role for turn in talk.turns] == ["user", "assistant"] * (len(talk.turns) // 2)

    @by_mode
    async def test_the_same_answers_make_the_same_talk_and_are_asked_for_once(
        self, card: Card, stage: Make, tmp_path: Path
    ) -> None:
        first = await stage(ANSWERS).play(card)
        again = stage({})
        assert (await again.play(card)).turns == first.turns
        assert again.new == 0
        with Ledger(tmp_path / "other.sqlite") as other:
            assert (await Stage(other, ANSWERS).play(card)).turns == first.turns

    @by_mode
    async def test_asks_for_json_only_where_json_is_meant(self, card: Card, stage: Make) -> None:
        played = stage(ANSWERS)
        await played.play(card)
        for call in played.calls:
            wants = '"turns"' in everything(call) or '"outlines"' in everything(call)
            assert call.body.get("response_format") == ({"type": "json_object"} if wants else None)
            assert call.card == card.id
            assert call.tokens > call.body["max_tokens"]


BAD = [
    (card(), "outline", "对不起。", "bad_json"),
    (card(), "outline", '{"outlines": []}', "wrong_json"),
    (card(), "child/1", "孩子：坏掉了\n七巧板：BADWORDS", "role_leak"),
    (card(), "child/2", completion("BADWORDS", "length"), "length"),
    (card(), "child/3", completion(None), "empty"),
    (card(), "companion/1", "[CURE] BADWORDS", "unknown_act"),
    (card(), "companion/2", completion("", "content_filter"), "content_filter"),
    (card(), "companion/3", f"[LABEL] {REPLY['zh'].format(1)}", "repeated"),
    (card(mode="script"), "script", talked("BADWORDS"), "wrong_json"),
    (card(mode="script", template="seed2023"), "script", "BADWORDS", "no_dialogue"),
    (EXPAND, "expand", talked("", "BADWORDS"), "wrong_json"),
    (GENERAL, "general", "BADWORDS", "bad_json"),
    (mended((3, "advice")), "repair/3", GIVEN.turns[3].content, "unchanged"),
    (mended((3, "advice")), "repair/3", f"[PLAN] {GIVEN.turns[3].content}", "unchanged"),
    (mended((4, "adult")), "repair/4", GIVEN.turns[4].content, "unchanged"),
    (branched(), "branch/3", f"[] {GIVEN.turns[3].content}", "unchanged"),
]
GOOD: Answers = {
    "outline": outlines(0.5),
    "child": "颜料没了",
    "companion": "[ACCEPT] 嗯。",
    "repair": "[ACCEPT] 难受可以有。",
    "branch": "[] 没事的。",
}


def good(card: Card, slot: str) -> str:
    if card.template == "seed2023":
        return PLAIN
    if slot == "repair/4":
        return "随便"
    return str(GOOD.get(slot.partition("/")[0], json.dumps(TALK)))


class TestBadAnswers:
    @pytest.mark.parametrize(("card", "slot", "bad", "fault"), BAD, ids=[f"{slot}-{fault}" for _, slot, _, fault in BAD])
    async def test_are_asked_again_afresh_and_kept_with_their_fault(
        self, card: Card, slot: str, bad: str, fault: str, stage: Make, ledger: Ledger
    ) -> None:
        played = stage({slot: [bad, good(card, slot)]})
        talk = await played.play(card)
        first, second = played.of(f"{slot}#")
        assert [call.slot for call in (first, second)] == [f"{slot}#0", f"{slot}#1"]
        assert messages(first)[:-1] == messages(second)[:-1]
        assert last(second).startswith(last(first) + "\n\n")
        reask = last(second).removeprefix(last(first)).strip()
        assert "$fault" not in reask
        prefixes = [load_prompts("zh").line(f"reask.{kind}").partition("$fault")[0] for kind in ("json", "tags", "plain")]
        assert reask.startswith(tuple(prefixes))
        assert ledger.sends(first.key) == (1, fault)
        assert ledger.answer(first.key) == (bad if bad.startswith('{"choices"') else completion(bad))
        assert ledger.sends(second.key) == (1, "")
        assert "BADWORDS" not in talk.to_json()
        assert ledger.totals().faults == {fault: 1}
        after = played.calls[played.calls.index(second) + 1 :]
        assert not [call for call in after if reask in everything(call) or "BADWORDS" in everything(call)]

    @pytest.mark.parametrize(("card", "slot", "bad", "fault"), BAD, ids=[f"{slot}-{fault}" for _, slot, _, fault in BAD])
    async def test_fail_the_card_in_the_end(
        self, card: Card, slot: str, bad: str, fault: str, stage: Make, ledger: Ledger
    ) -> None:
        played = stage({slot: bad})
        with pytest.raises(CardFailedError, match=f"^{slot}: .*2 tries"):
            await played.play(card, tries=2)
        assert len(played.of(f"{slot}#")) == 2
        assert ledger.totals().faults == {fault: 2}


class TestRoleplay:
    @pytest.mark.parametrize("lang", LANGS)
    @pytest.mark.parametrize("turns", [1, 2, 6])
    async def test_the_child_speaks_first_and_the_companion_last(self, lang: Lang, turns: int, stage: Make) -> None:
        talk = await stage().play(card(lang=lang, turns=turns))
        assert words(talk, "user") == CHILDS[lang][:turns]
        assert words(talk, "assistant") == [REPLY[lang].format(number) for number in range(1, turns + 1)]

    @pytest.mark.parametrize("lang", LANGS)
    async def test_the_child_reads_the_card_and_one_outline(self, lang: Lang, stage: Make) -> None:
        played = stage({"outline": outlines(0.3, 0.2, 0.1)})
        await played.play(card(lang=lang))
        (asked,) = played.of("outline")
        assert getattr(SCENE, lang) in everything(asked)
        assert getattr(SCENE.hidden, lang) in everything(asked)
        (number,) = set(re.findall(r"INCIDENT(\d)", everything(played.of("child")[0])))
        for call in played.of("child"):
            text = everything(call)
            parts = [f"{part}{number}" for part in ("HIDES", "WORSE", "DETAIL")]
            for part in (GIRL.name, f"1. BEAT{number}a", f"2. BEAT{number}b", *parts):
                assert part in text
        assert "BEAT" in last(played.of("child")[2]), "the note says which beat the turn may touch"

    @pytest.mark.parametrize("lang", LANGS)
    @pytest.mark.parametrize("of", ["scene", "scenario"])
    async def test_the_companion_reads_nothing_of_card_or_outline(self, lang: Lang, of: str, stage: Make) -> None:
        told = {"scene": None, "scenario": SCENARIO.id, "risk": SCENARIO.category} if of == "scenario" else {}
        given = card(lang=lang, **told)
        played, facts = stage(), load_prompts(lang).facts(given)
        await played.play(given)
        secret = (
            "name",
            "family",
            "setting",
            "temperament",
            "channel",
            "habit",
            "scene",
            "must",
            "must_not",
            "phrases",
            "body",
            "outcome",
        )
        hidden = [facts[key] for key in secret if facts[key]]
        hidden += [] if of == "scenario" else [facts["hidden"]]
        for call in played.of("companion"):
            for text in (*hidden, "INCIDENT", "HIDES", "BEAT", "WORSE", "DETAIL", given.id, "wronged"):
                assert text not in json.dumps(call.body, ensure_ascii=False)

    @pytest.mark.parametrize("lang", LANGS)
    async def test_two_children_who_say_the_same_are_the_same_to_the_companion(
        self, lang: Lang, stage: Make, tmp_path: Path
    ) -> None:
        one = stage()
        await one.play(card(lang=lang))
        with Ledger(tmp_path / "other.sqlite") as ledger:
            other = Stage(ledger)
            more = {"scene": None, "scenario": SCENARIO.id, "risk": Category.SELF_HARM, "emotion": Emotion.GUILTY}
            await other.play(card(id="c-2", lang=lang, child=BOY, distress=4, outcome="left", seed=77, **more))
            assert [call.body for call in one.of("companion")] == [call.body for call in other.of("companion")]
            assert [call.body for call in one.of("child")] != [call.body for call in other.of("child")]

    @pytest.mark.parametrize("agent", ["child", "companion"])
    async def test_what_an_agent_has_read_stays_as_it_was(self, agent: str, stage: Make) -> None:
        """So that the endpoint's prefix cache holds; only the latest message carries a note."""
        played = stage()
        talk = await played.play(card(turns=5))
        calls = [messages(call) for call in played.of(agent)]
        for number, (before, after) in enumerate(pairwise(calls), start=1):
            assert after[: 2 * number - 1] == before[:-1]
            assert len(after) == 2 * number + 2
        heard = words(talk, "assistant" if agent == "child" else "user")
        kept = [message["content"] for message in calls[-1][1:-1] if message["role"] == "user"]
        # The child's opening message stands for nobody's words and is kept as it was.
        assert kept == ([calls[0][1]["content"], *heard[:3]] if agent == "child" else heard[:4])
        note = {"child": "【导演】", "companion": "【只给你看】"}[agent]
        assert all(note in call[-1]["content"] for call in calls)

    async def test_the_companion_sees_its_own_acts_and_what_may_come_next(self, stage: Make) -> None:
        played = stage({"companion/1": "[NOTICE] 嗯？", "companion/2": "【ACCEPT】可以的。", "companion/3": "没有标记。"})
        talk = await played.play(card())
        assert [turn.acts for turn in talk.turns[1::2]] == [(Act.NOTICE,), (Act.ACCEPT,), (), (Act.ACCEPT, Act.INVITE)]
        asked = played.of("companion")
        assert [message["content"] for message in messages(asked[3]) if message["role"] == "assistant"] == [
            "[NOTICE] 嗯？",
            "[ACCEPT] 可以的。",
            "[] 没有标记。",
        ]
        allowed = [last(call).partition("还要等等的")[0] for call in asked]
        assert ["LIMIT" in text for text in allowed] == [False, True, True, True]
        assert ["EXPLORE" in text for text in allowed] == [False, False, True, True]

    async def test_distress_stands_on_the_childs_turns_and_follows_the_replies(self, stage: Make) -> None:
        advice = {f"companion/{number}": "[PLAN] 明天去道歉。" for number in (1, 2)}
        played = stage(advice)
        talk = await played.play(card(distress=2, outcome="calmed", turns=6))
        levels = [turn.distress for turn in talk.turns[::2]]
        assert levels[:3] == [2, 3, 4]
        assert all(turn.distress is None and turn.emotion is None for turn in talk.turns[1::2])
        prompts, asked = load_prompts("zh"), played.of("child")
        for level, call in zip(levels, asked, strict=True):
            assert prompts.line(f"child.state.{level}") in last(call)
        assert prompts.line("child.hurt") in last(asked[1])

    async def test_a_feeling_is_there_as_long_as_it_hurts(self, stage: Make) -> None:
        talks = [await stage().play(card(id=f"c-{n}", distress=1, outcome="calmed", turns=6, seed=n)) for n in range(5)]
        turns = [turn for talk in talks for turn in talk.turns[::2]]
        assert {turn.distress for turn in turns} == {0, 1}
        assert all(turn.emotion == (Emotion.WRONGED if turn.distress else None) for turn in turns)

    async def test_good_news_is_told_as_good_news(self, stage: Make) -> None:
        played, prompts = stage({"companion/1": "[PLAN] 下次争第一。"}), load_prompts("zh")
        talk = await played.play(card(emotion=Emotion.PROUD, distress=0, outcome="savoured"))
        assert [(turn.distress, turn.emotion) for turn in talk.turns[::2]] == [(0, Emotion.PROUD)] * 4
        for call in played.of("child"):
            assert prompts.line("child.good") in last(call)
            assert not [kind for kind in ("eased", "unchanged", "hurt") if prompts.line(f"child.{kind}") in last(call)]

    async def test_the_secret_is_held_until_the_child_was_met_twice(self, stage: Make) -> None:
        played, prompts = stage({"companion/1": "[INVITE] 后来呢？"}), load_prompts("zh")
        await played.play(card())
        reveals = [prompts.line("child.reveal") in last(call) for call in played.of("child")]
        assert reveals == [False, False, False, True]
        assert [prompts.line("child.hold") in last(call) for call in played.of("child")] == [not said for said in reveals]

    @pytest.mark.parametrize(("outcome", "leaves"), [("left", True), ("partly", False), ("calmed", False)])
    async def test_the_last_turn_ends_as_the_outcome_says(self, outcome: str, leaves: bool, stage: Make) -> None:
        played, prompts = stage(), load_prompts("zh")
        given = card(outcome=outcome)
        await played.play(given)
        leave, closing = (prompts.text(f"child.{key}", prompts.facts(given)) for key in ("leave", "closing"))
        *before, end = [last(call) for call in played.of("child")]
        assert (leave in end, closing in end) == (leaves, not leaves)
        assert not [text for text in before if leave in text or closing in text]

    @pytest.mark.parametrize(("lang", "said"), [("zh", "爸爸昨天又用皮带打我了"), ("en", "my dad hits me with a belt")])
    async def test_a_disclosure_in_the_childs_words_brings_the_safeguard_note(self, lang: Lang, said: str, stage: Make) -> None:
        played = stage({"child/3": said})
        await played.play(card(lang=lang))
        note = load_prompts(lang).text("companion.safeguard", {"lines": "@@"}).partition("@@")[0]
        has = [note in last(call) for call in played.of("companion")]
        assert has[:3] == [False, False, True]
        assert ("12356" in last(played.of("companion")[2])) == (lang == "zh"), "in English nobody knows the child's country"
        assert not [call for call in played.of("companion")[3:] if note in "\n".join(m["content"] for m in messages(call)[:-1])]

    async def test_a_risk_on_the_card_brings_none_before_the_child_speaks_of_it(self, stage: Make) -> None:
        played, note = stage(), load_prompts("zh").line("companion.safeguard").splitlines()[0]
        await played.play(card(scene=None, scenario=SCENARIO.id, risk=SCENARIO.category))
        assert not [call for call in played.of("companion") if note in everything(call)]

    @pytest.mark.parametrize(("lang", "said"), [("zh", "拜拜，我要走了"), ("en", "bye, gotta go")])
    async def test_a_goodbye_brings_the_farewell_note(self, lang: Lang, said: str, stage: Make) -> None:
        played = stage({"child/4": said})
        await played.play(card(lang=lang, outcome="left"))
        note = load_prompts(lang).line("companion.farewell")
        assert [note in last(call) for call in played.of("companion")] == [False, False, False, True]

    @pytest.mark.parametrize(("lang", "said"), [("zh", "我不知道"), ("en", "i don't know"), ("en", "mm")])
    async def test_a_child_may_not_know_twice(self, lang: Lang, said: str, stage: Make) -> None:
        talk = await stage({"child/2": said, "child/4": said}).play(card(lang=lang))
        assert words(talk, "user")[1::2] == [said, said]

    async def test_unlikely_outlines_are_favoured(self, stage: Make) -> None:
        played = stage({"outline": outlines(0.9, 0.05)})
        for seed in range(60):
            await played.play(card(id=f"c-{seed}", seed=seed, turns=1))
        drawn = [re.findall(r"INCIDENT(\d)", everything(call)) for call in played.of("child")]
        assert 0 < drawn.count(["0"]) < 20


class TestScript:
    async def test_the_talk_keeps_acts_and_distress(self, stage: Make) -> None:
        played = stage()
        talk = await played.play(card(mode="script"))
        assert talk.turns == (
            Turn(role="user", content="颜料没了", emotion=Emotion.WRONGED, distress=2),
            Turn(role="assistant", content="一整盒都没了？", acts=(Act.NOTICE, Act.INVITE)),
        )
        assert [message["role"] for message in messages(played.calls[0])] == ["system", "user"]

    async def test_the_way_of_2023_is_one_request_and_plain_lines(self, stage: Make) -> None:
        played = stage({"script": PLAIN})
        talk = await played.play(card(mode="script", template="seed2023", length=(6, 20)))
        assert [turn.content for turn in talk.turns] == ["颜料没了", "一整盒都没了？"]
        assert (talk.turns[0].emotion, talk.turns[0].distress) == (Emotion.WRONGED, 3)
        (asked,) = messages(played.calls[0])
        assert SCENE.zh in asked["content"]
        assert "6 到 20" in asked["content"]

    @pytest.mark.parametrize("template", ["coach", "seed2023"])
    async def test_a_last_line_that_nobody_answers_is_cut(self, template: str, stage: Make) -> None:
        said = {"coach": talked("没了", "嗯。", "走了"), "seed2023": f"{PLAIN}\n孩子：走了"}
        talk = await stage({"script": said[template]}).play(card(mode="script", template=template))
        assert len(talk.turns) == 2
        assert talk.turns[-1].role == "assistant"

    @pytest.mark.parametrize(
        ("lang", "short", "long"),
        [
            ("zh", talked("没了", "嗯嗯"), talked("没了啊", "嗯嗯")),
            ("en", talked("it's gone", "oh no"), talked("it's all gone", "oh no")),
        ],
    )
    async def test_a_fragment_is_asked_for_again(self, lang: Lang, short: str, long: str, stage: Make, ledger: Ledger) -> None:
        talk = await stage({"script": [short, long]}).play(card(mode="script", lang=lang, length=(10, 20)))
        assert len(talk.turns) == 2
        assert ledger.totals().faults == {"too_short": 1}


class TestExpand:
    @pytest.mark.parametrize("first", ["老师又点我名了，烦", "完全不一样的话"])
    async def test_the_message_opens_the_talk_word_for_word(self, first: str, stage: Make) -> None:
        played = stage({"expand": talked(first, "又是你呀。", "嗯", "我在。")})
        talk = await played.play(EXPAND)
        assert [turn.content for turn in talk.turns] == ["老师…又点我名了，， 烦 ", "又是你呀。", "嗯", "我在。"]
        assert "老师…又点我名了，， 烦" in last(played.calls[0])
        assert (talk.turns[0].emotion, talk.turns[0].distress) == (Emotion.WRONGED, 3)

    async def test_without_a_message_there_is_nothing_to_grow(self, stage: Make) -> None:
        with pytest.raises(DataError, match="c-1"):
            await stage().play(card(mode="expand"))


class TestGeneral:
    async def test_one_question_and_its_answer_without_labels(self, stage: Make) -> None:
        played = stage({"general": talked("天为什么蓝", "光会散开。", "哦", "嗯。")})
        talk = await played.play(GENERAL)
        assert talk.turns == (Turn(role="user", content="天为什么蓝"), Turn(role="assistant", content="光会散开。"))
        assert load_prompts("zh").facts(GENERAL)["task"] in everything(played.calls[0])

    async def test_a_talk_is_kept_whole(self, stage: Make) -> None:
        talk = await stage({"general": talked("天为什么蓝", "光会散开。", "哦", "嗯。")}).play(
            GENERAL.model_copy(update={"turns": 2})
        )
        assert [turn.content for turn in talk.turns] == ["天为什么蓝", "光会散开。", "哦", "嗯。"]
        assert not [turn for turn in talk.turns if turn.acts or turn.distress is not None or turn.emotion]


class TestRepair:
    async def test_only_the_turns_that_were_hit_change(self, stage: Make) -> None:
        played = stage({"repair/2": "妈妈又要骂", "repair/3": "[EMPATHISE, LIMIT] 怕挨骂吧。"})
        talk = await played.play(mended((3, "advice"), (2, "adult"), (3, "long")))
        for at, (before, after) in enumerate(zip(GIVEN.turns, talk.turns, strict=True)):
            assert (before == after) == (at not in {2, 3})
        assert talk.turns[2] == GIVEN.turns[2].model_copy(update={"content": "妈妈又要骂"})
        assert talk.turns[3] == Turn(role="assistant", content="怕挨骂吧。", acts=(Act.EMPATHISE, Act.LIMIT))

    async def test_later_turns_are_mended_in_the_light_of_earlier_ones(self, stage: Make) -> None:
        played = stage({"repair/2": "妈妈又要骂", "repair/3": "怕挨骂吧。"})
        talk = await played.play(mended((3, "advice"), (2, "adult"), (3, "long")))
        first, second = played.calls
        assert [call.slot for call in (first, second)] == ["repair/2#0", "repair/3#0"]
        assert ("MESSAGE-adult" in last(first), "MESSAGE-advice" in last(first)) == (True, False)
        assert all(f"MESSAGE-{rule}" in last(second) for rule in ("advice", "long"))
        assert "MESSAGE-adult" not in last(second)
        assert "妈妈又要骂" in last(second)
        assert "妈妈会骂" not in last(second)
        assert GIVEN.turns[3].content in last(second)
        assert talk.turns[3].acts == GIVEN.turns[3].acts, "no tags: the labels stay"

    @pytest.mark.parametrize(
        "wrong",
        [mended(), card(mode="repair", hits=(Hit(turn=0, rule="x", message="x"),)), mended((6, "x"))],
        ids=["hits", "given", "beyond"],
    )
    async def test_a_card_with_nothing_to_mend_is_named(self, wrong: Card, stage: Make) -> None:
        with pytest.raises(DataError, match="c-1"):
            await stage({"repair/6": "嗯"}).play(wrong)


class TestBranch:
    @pytest.mark.parametrize("factor", ["dismissing", "disapproving", "laissez_faire"])
    async def test_the_talk_ends_with_the_reply_that_fails(self, factor: str, stage: Make) -> None:
        played = stage({"branch/3": "[EMPATHISE] 多大点事呀。"})
        talk = await played.play(branched(factor=factor))
        assert talk.turns == (*GIVEN.turns[:3], Turn(role="assistant", content="多大点事呀。"))
        definition, examples = load_prompts("zh").style(factor)
        assert all(part in last(played.calls[0]) for part in (definition, examples, "妈妈会骂", GIVEN.turns[3].content))
        assert "哦" not in last(played.calls[0]).partition(definition)[0], "what came after the turn is not shown"

    @pytest.mark.parametrize(
        "missing", [{"given": None}, {"at": None}, {"factor": None}, {"at": 2}, {"at": 6}, {"at": -1}], ids=str
    )
    async def test_a_card_without_a_reply_to_replace_is_named(self, missing: dict[str, Any], stage: Make) -> None:
        with pytest.raises(DataError, match="c-1"):
            await stage({f"branch/{at}": "[] 没事的。" for at in (-1, 2, 6)}).play(branched(**missing))
