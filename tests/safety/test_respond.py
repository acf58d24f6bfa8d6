"""The reviewed replies and the help lines."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from qiaoban.conversation import AgeBand, Category, Lang
from qiaoban.safety.normalise import normalise
from qiaoban.safety.output import load_output_guard
from qiaoban.safety.respond import load_hotlines, load_replies
from qiaoban.safety.sentences import split_sentences

LANGS: tuple[Lang, ...] = ("zh", "en")
HOTLINES = load_hotlines()
REPLIES = {lang: load_replies(lang, HOTLINES) for lang in LANGS}
OTHER_FAMILIES = {
    "persona_family",
    "persona_romance",
    "persona_best_friend",
    "are_you_human",
    "goodbye",
    "output_fallback",
    "engine_down",
    "time_up",
}
FAMILIES = sorted({c.value for c in Category if c is not Category.BENIGN} | OTHER_FAMILIES)
CRISIS = [
    "suicide",
    "self_harm",
    "physical_abuse",
    "sexual_abuse",
    "domestic_violence",
    "neglect",
    "grooming_online",
    "running_away",
    "eating_disorder",
    "violence_to_others",
]
by_lang = pytest.mark.parametrize("lang", LANGS)


def talk(lang: Lang, family: str, band: AgeBand, turns: int, jurisdiction: str = "CN") -> list[str]:
    """What a child gets who needs the same family again and again."""
    used: list[str] = []
    for _ in range(turns):
        used.append(REPLIES[lang].choose(family, band=band, jurisdiction=jurisdiction, used=used).text)
    return used


@by_lang
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_words_for_every_age(lang: Lang, family: str) -> None:
    for band in AgeBand:
        said = talk(lang, family, band, turns=8)
        assert len(set(said)) == 8, "a text is repeated within one talk"
        assert not [text for text in said if "{" in text], "a placeholder is left"


@by_lang
@pytest.mark.parametrize("family", CRISIS)
@pytest.mark.parametrize(("jurisdiction", "number"), [("CN", "12356"), ("GB", "08001111"), ("US", "988")])
def test_r16_every_crisis_reply_names_the_help_line_of_the_country(
    lang: Lang, family: str, jurisdiction: str, number: str
) -> None:
    for band in AgeBand:
        for text in talk(lang, family, band, turns=10, jurisdiction=jurisdiction):
            assert number in re.sub(r"\D", "", text)


BELIEVES = {"zh": "相信|信你|都信|谢谢你", "en": "believe|thank you"}


@by_lang
@pytest.mark.parametrize("family", ["physical_abuse", "sexual_abuse", "domestic_violence", "neglect", "grooming_online"])
def test_a_child_who_tells_is_believed_before_anything_else(lang: Lang, family: str) -> None:
    for band in AgeBand:
        for salt in range(6):
            said = REPLIES[lang].choose(family, band=band, jurisdiction="CN", used=[], salt=salt).text
            assert re.search(BELIEVES[lang], said, re.IGNORECASE), said


@by_lang
def test_a_medical_emergency_names_the_ambulance(lang: Lang) -> None:
    for band in AgeBand:
        for text in talk(lang, "medical_emergency", band, turns=10):
            assert "120" in text


@by_lang
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_short_and_ask_one_thing(lang: Lang, family: str) -> None:
    for band in AgeBand:
        for text in talk(lang, family, band, turns=10):
            assert text.count("？") + text.count("?") <= 1, text
            assert len(split_sentences(text)) <= 6, text


@by_lang
@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_words_pass_our_own_output_guard(lang: Lang, family: str) -> None:
    guard = load_output_guard(lang)
    suspected = family in ("physical_abuse", "sexual_abuse", "domestic_violence", "neglect")
    for jurisdiction in ("CN", "GB", "US", "*"):
        for band in AgeBand:
            for text in talk(lang, family, band, turns=10, jurisdiction=jurisdiction):
                said: list[str] = []
                for sentence in split_sentences(text):
                    assert (
                        guard.check(
                            sentence, said, child="", guardian_suspected=suspected, numbers=HOTLINES.numbers(jurisdiction)
                        )
                        == ()
                    ), sentence
                    said.append(sentence)


def test_when_all_is_said_the_oldest_comes_again() -> None:
    said = talk("zh", "bullying", AgeBand.B9_11, turns=40)
    assert said[-1] != said[-2]


def test_a_country_without_a_line_gets_words_that_fit_anywhere() -> None:
    text = talk("en", "suicide", AgeBand.B12_14, turns=1, jurisdiction="*")[0]
    assert not re.search(r"\d", text)
    assert "{" not in text


def test_help_lines_are_dated_and_run_out() -> None:
    line = HOTLINES.lines[0]
    assert not line.expired(line.verified_on)
    assert line.expired(line.verified_on + timedelta(days=line.valid_days + 1))


def test_no_number_is_written_into_a_reply() -> None:
    for lang in LANGS:
        assert not [text for text in REPLIES[lang].all_texts() if re.search(r"\d", normalise(text))]
