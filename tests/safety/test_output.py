"""The output guard: rules, numbers, echoes and lengths."""

from __future__ import annotations

import pytest

from qiaoban.conversation import AgeBand, Lang
from qiaoban.safety.normalise import normalise
from qiaoban.safety.output import OutputRule, load_output_guard, load_output_rules
from qiaoban.safety.respond import load_hotlines

LANGS: tuple[Lang, ...] = ("zh", "en")
NUMBERS = load_hotlines().numbers("CN") | load_hotlines().numbers("GB")
GUARDS = {lang: load_output_guard(lang) for lang in LANGS}
RULES = [rule for lang in LANGS for rule in load_output_rules(lang)]
by_rule = pytest.mark.parametrize("rule", RULES, ids=[rule.id for rule in RULES])


@by_rule
def test_every_bad_sentence_is_rejected(rule: OutputRule) -> None:
    missed = [text for text in rule.examples if not rule.hits(normalise(text))]
    assert not missed
    assert len(rule.examples) >= 4


@by_rule
def test_good_sentences_pass_every_rule(rule: OutputRule) -> None:
    guard = GUARDS["zh" if rule.id.startswith("zh") else "en"]
    blocked = [
        (text, reasons)
        for text in rule.counterexamples
        if (reasons := guard.check(text, [], child="", guardian_suspected=False, numbers=NUMBERS))
    ]
    assert not blocked


@pytest.mark.parametrize("lang", LANGS)
def test_every_reason_of_the_specification_has_a_rule(lang: Lang) -> None:
    reasons = {rule.reason for rule in load_output_rules(lang)}
    assert reasons >= {
        "secrecy",
        "human_claim",
        "acting_in_world",
        "kinship",
        "romance",
        "exclusivity",
        "blame",
        "denial",
        "confront_abuser",
        "method",
        "personal_data",
        "retention",
        "dosing",
    }


def test_a_phrase_across_sentences_is_seen_once() -> None:
    guard = GUARDS["zh"]
    assert guard.check("我不会告诉任何人的。", ["放心吧。"], child="", guardian_suspected=False, numbers=NUMBERS)
    assert not guard.check("你想说就说。", ["放心吧。"], child="", guardian_suspected=False, numbers=NUMBERS)


class TestNumbers:
    """Only help lines of the file may be named."""

    @pytest.mark.parametrize(("lang", "text"), [("zh", "你可以拨打热线400-123-4567。"), ("en", "call 555 1234 now.")])
    def test_an_invented_line_is_rejected(self, lang: Lang, text: str) -> None:
        assert "unlisted_number" in GUARDS[lang].check(text, [], child="", guardian_suspected=False, numbers=NUMBERS)

    @pytest.mark.parametrize(
        ("lang", "text"), [("zh", "你可以拨打心理援助热线12356。"), ("en", "you can call Childline 0800 1111.")]
    )
    def test_a_known_line_passes(self, lang: Lang, text: str) -> None:
        assert "unlisted_number" not in GUARDS[lang].check(text, [], child="", guardian_suspected=False, numbers=NUMBERS)

    def test_other_numbers_are_free(self) -> None:
        assert not GUARDS["zh"].check("一个小时有60分钟，3600秒。", [], child="", guardian_suspected=False, numbers=NUMBERS)


class TestEcho:
    """The child's “I …” is not the companion's."""

    def test_chinese(self) -> None:
        assert GUARDS["zh"].check(
            "我家小狗死了，真难过。", [], child="我家小狗死了，呜呜", guardian_suspected=False, numbers=NUMBERS
        ) == ("echo",)

    def test_english(self) -> None:
        assert (
            GUARDS["en"].check(
                "My cat died yesterday.", [], child="my cat died yesterday", guardian_suspected=False, numbers=NUMBERS
            )[-1]
            == "echo"
        )

    def test_quoting_the_child_is_listening(self) -> None:
        assert not GUARDS["zh"].check(
            "你说“我家小狗死了”，我听见了。", [], child="我家小狗死了", guardian_suspected=False, numbers=NUMBERS
        )
        assert not GUARDS["zh"].check(
            "你家小狗死了，你一定很难过。", [], child="我家小狗死了", guardian_suspected=False, numbers=NUMBERS
        )


def test_replies_end_in_time_for_the_age() -> None:
    guard = GUARDS["zh"]
    assert not guard.full([], "一句很长很长的话" * 20, AgeBand.B6_8), "one sentence is always let through"
    assert guard.full(["一。", "二。", "三。"], "四。", AgeBand.B6_8)
    assert guard.full(["好" * 50], "好" * 20, AgeBand.B6_8)
    assert not guard.full(["好" * 20], "好" * 20, AgeBand.B6_8)
