"""Every rule by its own examples: the bad ones are hit, the good ones, which resemble them, are not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qiaoban.bank import read_table
from qiaoban.conversation import Act, Conversation, Emotion, Meta, Turn
from qiaoban.curate.lint import lint
from qiaoban.curate.rules import choose_rules, load_rules
from qiaoban.curate.rules_corpus import CORPUS_RULES
from qiaoban.curate.rules_words import LANGS, talk_words, word_rules
from qiaoban.errors import UsageError
from qiaoban.safety.output import load_output_rules
from tests.curate.talks import language, parse_talk

RULES = load_rules()


def _hits(rule: str, line: str, **about: str) -> list[str]:
    talk = parse_talk(line, lang=language(line), **about)
    return [finding.message for finding in lint([talk], rules=[rule])]


@pytest.mark.parametrize(("rule", "line"), [(rule.id, line) for rule in RULES for line in rule.bad])
def test_what_breaks_a_rule_is_found(rule: str, line: str) -> None:
    assert _hits(rule, line)


@pytest.mark.parametrize(("rule", "line"), [(rule.id, line) for rule in RULES for line in rule.good])
def test_what_only_resembles_it_is_not(rule: str, line: str) -> None:
    assert _hits(rule, line) == []


def _cases() -> Iterator[tuple[str, bool, str]]:
    """Rule, whether it is broken, talk. `+` breaks it, `-` only resembles it; `\\n` and the like are written out."""
    for path in sorted(Path(__file__).with_name("cases").glob("*.txt")):
        for row in path.read_text("utf-8").splitlines():
            line = row[2:].replace("\\n", "\n").replace("\\x07", "\x07").replace("\\u200b", "\u200b")
            if row.startswith(("+ ", "- ")):
                yield path.stem, row[0] == "+", line


def test_many_ways_to_say_it() -> None:
    """Nearly a thousand turns beyond the examples; all at once, for a list is compiled once a run."""
    cases = list(_cases())
    assert len(cases) > 950
    talks = [parse_talk(line, lang=language(line), name=str(i)) for i, (_, _, line) in enumerate(cases)]
    found = {(finding.id, finding.rule) for finding in lint(talks)}
    wrong = [(rule, line) for i, (rule, broken, line) in enumerate(cases) if ((str(i), rule) in found) is not broken]
    assert wrong == []


def test_reviewed_replies_are_clean() -> None:
    """The vetted replies of the guard speak of every harm, and break no grave rule but for a handful."""
    lines = [
        (lang, text)
        for lang in LANGS
        for reply in read_table(f"replies/{lang}.toml")["reply"]
        for stage in ("first", "second", "later")
        for text in reply[stage]
    ]
    talks = [
        Conversation(id=str(i), turns=(Turn(role="assistant", content=text.format_map(_LINES)),), meta=Meta(lang=lang))
        for i, (lang, text) in enumerate(lines)
    ]
    grave = [rule.id for rule in RULES if rule.scope == "turn" and rule.severity == "drop" and rule.speaker != "any"]
    assert len(talks) > 1000
    assert len(list(lint(talks, rules=grave))) <= 5


_LINES = {"helpline": "12356", "emergency": "110", "ambulance": "120"}


def test_the_rules_are_as_promised() -> None:
    assert len(RULES) == 42
    assert {rule.id for rule in RULES if rule.scope == "corpus"} == CORPUS_RULES


def test_every_rule_can_fire() -> None:
    """Rules without examples are shown by talks made for them."""
    long = "很长的话" * 60
    made = {
        "companion_too_long": f"孩子：嗯|七巧板：{long}",
        "child_too_long": f"孩子：{long}|七巧板：嗯",
        "idioms_for_little_ones": "孩子：我哭了|七巧板：你现在的情绪怎么样",
    }
    for rule, line in made.items():
        assert _hits(rule, line, age_band="6-8"), rule
    shown = {rule.id for rule in RULES if rule.bad} | set(made) | CORPUS_RULES
    assert shown == {rule.id for rule in RULES}


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(UsageError, match="nonsense"):
        choose_rules(("nonsense",))


@pytest.mark.parametrize(
    ("rule", "band", "turn", "fits"),
    [
        ("companion_too_long", "6-8", "七巧板：" + "好" * 60, True),
        ("companion_too_long", "6-8", "七巧板：" + "好" * 61, False),
        ("companion_too_long", None, "七巧板：" + "好" * 160, True),
        ("companion_too_long", None, "七巧板：" + "好" * 161, False),
        ("companion_too_long", "3-5", "companion: " + "well " * 25, True),
        ("companion_too_long", "3-5", "companion: " + "well " * 26, False),
        ("child_too_long", "3-5", "孩子：" + "好" * 30, True),
        ("child_too_long", "3-5", "孩子：" + "好" * 31, False),
        ("child_too_long", "15-17", "child: " + "so " * 80, True),
        ("child_too_long", "15-17", "child: " + "so " * 81, False),
    ],
)
def test_limits_of_length(rule: str, band: str | None, turn: str, fits: bool) -> None:
    assert (_hits(rule, turn, **({"age_band": band} if band else {})) == []) is fits


def test_general_talk_has_its_own_measure() -> None:
    longer = "七巧板：" + "好" * 240
    assert _hits("companion_too_long", longer, domain="general") == []
    assert _hits("companion_too_long", longer, domain="friends")
    assert _hits("turn_count", "孩子：一加一呢|七巧板：二", domain="general") == []
    steps = "七巧板：1. 先通分。2. 再相加。"
    assert _hits("lists_and_markdown", steps, domain="general") == []
    assert _hits("lists_and_markdown", steps)
    assert _hits("lists_and_markdown", "七巧板：**通分**是第一步", domain="general")


def test_bookish_words_are_for_older_children() -> None:
    line = "companion: that sounds overwhelming"
    assert _hits("idioms_for_little_ones", line, age_band="6-8")
    assert _hits("idioms_for_little_ones", line, age_band="12-14") == []
    assert _hits("idioms_for_little_ones", line) == []


def test_what_was_asked_before_can_free_a_turn() -> None:
    said = "孩子：妈，花瓶是我拿球打的"
    assert _hits("kinship_vocative", said)
    assert _hits("kinship_vocative", f"七巧板：我在听。|{said}")
    assert _hits("kinship_vocative", f"孩子：头一句怎么说？|{said}"), "only the other speaker's turn counts"
    assert _hits("kinship_vocative", f"七巧板：头一句怎么说？|孩子：嗯|七巧板：我在听。|{said}"), "only the turn before counts"
    assert _hits("kinship_vocative", f"七巧板：头一句怎么说？|{said}") == []
    rehearsal = "companion: What would you say to her?|child: mum, I broke the vase"
    assert _hits("kinship_vocative", rehearsal) == []


def test_acts_tell_what_comes_first() -> None:
    line = "孩子：考砸了|七巧板：嗯嗯|孩子：嗯|七巧板：好呀"
    talk = parse_talk(line, lang="zh", emotion="sad")
    advises = talk.turns[1].model_copy(update={"acts": (Act.PLAN,)})
    accepts = talk.turns[1].model_copy(update={"acts": (Act.ACCEPT,)})
    later = talk.turns[3].model_copy(update={"acts": (Act.PLAN,)})
    first, _, third, _ = talk.turns
    early = talk.model_copy(update={"turns": (first, advises, third, later)})
    good = talk.model_copy(update={"turns": (first, accepts, third, later)})
    found = list(lint([early, good], rules=["advice_before_acceptance"]))
    assert [(finding.id, finding.turn) for finding in found] == [("talk", 1)]
    glad = early.model_copy(update={"meta": early.meta.model_copy(update={"emotion": Emotion.PROUD})})
    assert list(lint([glad], rules=["advice_before_acceptance"])) == []


def test_risk_in_the_label_asks_for_a_referral() -> None:
    line = "孩子：今天还是那样|七巧板：你慢慢说|孩子：嗯|七巧板：我在听"
    assert _hits("missing_referral", line, risk="physical_abuse")
    assert _hits("missing_referral", line, risk="benign") == []
    assert _hits("missing_referral", line + "。可以告诉一个你信得过的大人", risk="physical_abuse") == []


def test_patterns_run_in_either_engine() -> None:
    """No look-around and no back reference, so that the linter can be measured against Python with identical hits."""
    for lang in LANGS:
        for words in (*word_rules(lang), *talk_words(lang).values()):
            for pattern in (*words.hits, words.free):
                re.compile(pattern)
                assert not re.search(r"\(\?[=!<P]|\\[1-9]", pattern), words.rule


# The guard of the running companion and this linter have word lists of their own: the guard reads sentence by sentence with
# look-around and may refuse too much, for a vetted reply stands ready; the linter reads millions of turns and throws paid
# dialogues away. That they mean the same is proved by the guard's examples.
SAME = {
    "secrecy": {"secrecy"},
    "acting_in_world": {"claims_to_have_acted", "embodied_promise"},
    "kinship": {"claims_kinship", "pet_names"},
    "exclusivity": {"exclusivity"},
    "personal_data": {"asks_personal_data", "unlisted_help_line"},
    "human_claim": {"claims_human", "claims_kinship"},
    "retention": {"exclusivity"},
    "blame": {"blames_child", "dismisses_feeling"},
    "denial": {"dismisses_feeling", "blames_child"},
    "method": {"graphic_or_method", "unsafe_advice"},
    "dosing": {"medical_dosing", "unsafe_advice"},
}


def test_the_guard_and_the_linter_mean_the_same() -> None:
    seen = missed = wrong = harmless = 0
    for lang in LANGS:
        for rule in load_output_rules(lang):
            if rule.reason not in SAME or rule.guardian_suspected or rule.id.endswith("human_claim.feeling"):
                continue
            bad = [parse_talk(f"companion: {line}", lang=lang, name=str(i)) for i, line in enumerate(rule.examples)]
            good = [parse_talk(f"companion: {line}", lang=lang, name=str(i)) for i, line in enumerate(rule.counterexamples)]
            seen += len(bad)
            missed += len(bad) - len({finding.id for finding in lint(bad, rules=SAME[rule.reason])})
            harmless += len(good)
            wrong += len({finding.id for finding in lint(good, rules=SAME[rule.reason])})
    assert missed <= 0.1 * seen
    assert wrong <= 0.02 * harmless
