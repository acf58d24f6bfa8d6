"""The rules: every example fires, every look-alike does not, and the two together make a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiaoban.conversation import Category, Lang, Turn
from qiaoban.safety.normalise import normalise
from qiaoban.safety.policy import default_classifier, load_policy
from qiaoban.safety.respond import load_hotlines, load_replies
from qiaoban.safety.signals import ChildMessage, Rule, Severity, load_rule_book

LANGS: tuple[Lang, ...] = ("zh", "en")
RULES = [(lang, rule) for lang in LANGS for rule in load_rule_book(lang).rules]
GUARD = default_classifier(load_policy())

by_rule = pytest.mark.parametrize(("lang", "rule"), RULES, ids=[rule.id for _, rule in RULES])


def asked_for(lang: Lang, rule: Rule) -> str:
    """One of our own replies that asks what the rule waits for; rules that wait for nothing do not care."""
    if rule.asked is None:
        return ""
    own = (normalise(text) for text in load_replies(lang, load_hotlines()).all_texts())
    return next(text for text in own if rule.asked.search(text))


@by_rule
def test_every_example_fires_its_rule(lang: Lang, rule: Rule) -> None:
    before = asked_for(lang, rule)
    silent = [text for text in rule.examples if rule.search(normalise(text), before) is None]
    assert not silent, f"{rule.id} misses its own examples"
    assert len(rule.examples) >= 3


@by_rule
def test_no_counterexample_fires_its_rule(lang: Lang, rule: Rule) -> None:
    before = asked_for(lang, rule)
    alarms = [text for text in rule.counterexamples if rule.search(normalise(text), before) is not None]
    assert not alarms, f"{rule.id} fires on its own look-alikes"
    assert len(rule.counterexamples) >= 2


@by_rule
def test_every_rule_has_a_reply_to_give(lang: Lang, rule: Rule) -> None:
    assert rule.reply in load_replies(lang, load_hotlines())


def test_rule_ids_are_unique() -> None:
    ids = [rule.id for _, rule in RULES]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("lang", LANGS)
def test_every_category_of_risk_has_a_rule(lang: Lang) -> None:
    covered = {rule.category for rule in load_rule_book(lang).rules}
    assert covered >= set(Category) - {Category.BENIGN}


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("我不想活了", Category.SUICIDE),
        ("不 想 活 了", Category.SUICIDE),
        ("ｗｈａｔ我\u200b不想活了", Category.SUICIDE),
        ("i want to kill myself", Category.SUICIDE),
        ("爸爸喝醉了就打我", Category.PHYSICAL_ABUSE),
        ("my dad hits me with a belt", Category.PHYSICAL_ABUSE),
        ("网上认识的叔叔让我发照片给他，还说不能告诉爸妈", Category.GROOMING_ONLINE),
        ("a man i met online wants me to send pics and keep it secret", Category.GROOMING_ONLINE),
        ("弟弟刚刚把一瓶药都吞下去了", Category.MEDICAL_EMERGENCY),
        ("my little brother swallowed a whole bottle of pills", Category.MEDICAL_EMERGENCY),
        ("我用小刀划手臂", Category.SELF_HARM),
        ("i cut my arm when i feel bad", Category.SELF_HARM),
    ],
)
def test_what_must_be_seen_is_seen(text: str, category: Category) -> None:
    verdict = GUARD.assess(ChildMessage(text=text))
    assert verdict.category is category
    assert verdict.severity.rank >= Severity.CONCERN.rank
    assert verdict.evidence


@pytest.mark.parametrize(
    "text",
    [
        "笑死我了哈哈哈",
        "今天体育课累死了",
        "我在游戏里死了三次",
        "爸爸打羽毛球很厉害",
        "妈妈给外婆打电话",
        "我家的小狗昨天死了，我好难过",
        "我们历史课讲了打仗",
        "dying of laughter lol",
        "this homework is killing me",
        "my dad hit a home run",
        "my hamster died yesterday",
        "i killed the ender dragon",
        "😀",
        "",
        "123",
    ],
)
def test_a_happy_or_grieving_child_is_left_alone(text: str) -> None:
    assert GUARD.assess(ChildMessage(text=text)).severity is Severity.NONE


class TestGuardian:
    """`guardian_may_be_source` is about who must not be told."""

    def test_a_parent_who_hits(self) -> None:
        assert GUARD.assess(ChildMessage(text="妈妈总是打我")).guardian_may_be_source

    def test_nobody_named(self) -> None:
        verdict = GUARD.assess(ChildMessage(text="我一说话他就打我"))
        assert verdict.severity.rank >= Severity.CONCERN.rank
        assert verdict.guardian_may_be_source

    def test_named_before(self) -> None:
        context = (Turn(role="user", content="爸爸天天喝酒"), Turn(role="assistant", content="听起来你很担心。"))
        assert GUARD.assess(ChildMessage(text="我一说话他就打我", context=context)).guardian_may_be_source

    def test_a_teacher_is_not_a_guardian(self) -> None:
        verdict = GUARD.assess(ChildMessage(text="体育老师用尺子打我的手，打得好疼"))
        assert verdict.severity.rank >= Severity.CONCERN.rank
        assert not verdict.guardian_may_be_source

    @pytest.mark.parametrize("text", ["我告诉老师他打我", "我跟我们班主任说了，他又打我", "i told my teacher that he hits me"])
    def test_the_one_who_was_told_does_not_clear_a_guardian(self, text: str) -> None:
        verdict = GUARD.assess(ChildMessage(text=text))
        assert verdict.severity.rank >= Severity.CONCERN.rank
        assert verdict.guardian_may_be_source

    def test_no_harm_no_flag(self) -> None:
        assert not GUARD.assess(ChildMessage(text="妈妈给我做了面条")).guardian_may_be_source


def test_the_most_severe_verdict_wins_and_all_are_scored() -> None:
    verdict = GUARD.assess(ChildMessage(text="同学都骂我是垃圾，我不想活了，我现在就在楼顶"))
    assert (verdict.category, verdict.severity) == (Category.SUICIDE, Severity.URGENT)
    assert verdict.scores[Category.SUICIDE] == 1.0


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert GUARD.assess(ChildMessage(text=text)).severity in Severity


@given(st.text(max_size=200))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_long_message_is_read_in_time() -> None:
    """No pattern may take exponential time: a child can paste anything."""
    for pasted in ("我" * 20_000, "不想" * 8_000, "a " * 10_000, "he hits " * 3_000, "爸爸打" * 5_000):
        GUARD.assess(ChildMessage(text=pasted))
