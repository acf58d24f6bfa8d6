"""What a teacher reads: whole in both languages, for every card that the planner makes, and the same on every machine."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import pytest

from qiaoban.bank.catalogue import Bilingual, Domain, Scene, load_catalogue
from qiaoban.collect.card import Card, Child, Mode
from qiaoban.collect.plan import MODES, PlanOptions, plan
from qiaoban.collect.prompts import Prompts, band_words, load_prompts
from qiaoban.conversation import Act, AgeBand, Emotion, Lang, Turn
from qiaoban.errors import DataError

LANGS: tuple[Lang, ...] = ("zh", "en")
CHILD = Child(name="小满", gender="girl", age=9, family="both_parents", region="city", temperament="easy", channel="typed")
CARD = Card(
    id="c-7", mode="script", lang="zh", domain="study", child=CHILD, emotion=Emotion.SAD, outcome="calmed", turns=5, seed=1
)
PLOT = dict.fromkeys(("incident", "hides", "beats", "worse", "detail"), "…")
TURN = {"state": "…", "beat": "…", "reply": "…", "message": "…", "allowed": "…", "not_yet": "…", "lines": "…"}
GIVEN = {
    "history": "…",
    "good": "…",
    "style": "…",
    "examples": "…",
    "turn": "…",
    "findings": "…",
    "speaker": "…",
    "message": "…",
}
# By mode: the texts that read a card, and what its rollout adds to the card's own facts.
READ_A_CARD: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "script": (("script.system", "script.user", "seed2023.user"), {"topic": "…"}),
    "roleplay": (
        ("outline.system", "outline.user", "child.system", "child.start", "child.turn", "child.closing", "child.leave"),
        {**PLOT, **TURN, "count": "5"},
    ),
    "general": (("general.single", "general.talk"), {}),
    "expand": (("expand.system", "expand.user"), {"message": "…"}),
    "repair": (("repair.system", "repair.user"), GIVEN),
    "branch": (("branch.system", "branch.user"), GIVEN),
}
PLACEHOLDER = re.compile(r"\$\{?[A-Za-z_]")


@cache
def texts(lang: Lang) -> Mapping[str, str]:
    """Every text of a language as it is written, by its dotted key."""

    def flat(table: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{above}{key}.")
            else:
                yield f"{above}{key}", value

    return dict(flat(tomllib.loads(files("qiaoban.bank").joinpath(f"collect/{lang}.toml").read_text("utf-8")), ""))


def placeholders(text: str) -> set[str]:
    return set(Template(text).get_identifiers())


@cache
def planned(mode: Mode) -> tuple[Card, ...]:
    options = PlanOptions(count=300, seed=7, langs={"zh": 0.5, "en": 0.5}, modes={mode: 1.0})
    return tuple(plan(load_catalogue(), options))


def rendered(card: Card) -> dict[str, str]:
    """Every text that a card of its mode is put into."""
    prompts = load_prompts(card.lang)
    keys, more = READ_A_CARD[card.mode]
    return {key: prompts.text(key, {**prompts.facts(card), **more}) for key in keys}


def changed(**values: Any) -> Card:
    return CARD.model_copy(update=values)


class TestTexts:
    def test_both_languages_have_the_same_keys(self) -> None:
        assert set(texts("zh")) == set(texts("en"))

    @pytest.mark.parametrize("key", texts("zh"))
    def test_both_languages_ask_for_the_same_facts(self, key: str) -> None:
        assert placeholders(texts("zh")[key]) == placeholders(texts("en")[key])

    @pytest.mark.parametrize("lang", LANGS)
    def test_every_text_is_one_that_can_be_filled_and_says_something(self, lang: Lang) -> None:
        for key, text in texts(lang).items():
            assert Template(text).is_valid(), key
            assert text.strip(), key

    @pytest.mark.parametrize("lang", LANGS)
    def test_no_telephone_number_stands_in_a_text(self, lang: Lang) -> None:
        assert not [key for key, text in texts(lang).items() if re.search(r"\d{3}", text)]

    @pytest.mark.parametrize("lang", LANGS)
    def test_what_is_to_be_read_by_a_program_is_shown(self, lang: Lang) -> None:
        found = texts(lang)
        assert '"outlines"' in found["outline.user"]
        for key in ("script.system", "expand.system", "general.single", "general.talk"):
            assert '{"turns":[{"s":"child"' in found[key]
        for key in ("companion.system", "repair.system", "branch.system", "reask.tags"):
            assert "[ACCEPT" in found[key]

    @pytest.mark.parametrize("lang", LANGS)
    def test_a_second_try_is_told_what_was_wrong_with_the_first(self, lang: Lang) -> None:
        assert {key for key in texts(lang) if key.startswith("reask.")} == {"reask.json", "reask.tags", "reask.plain"}
        assert all(placeholders(texts(lang)[key]) == {"fault"} for key in texts(lang) if key.startswith("reask."))

    @pytest.mark.parametrize("lang", LANGS)
    def test_every_age_and_every_level_of_distress_has_its_words(self, lang: Lang) -> None:
        prompts = load_prompts(lang)
        bands = {prompts.line(f"{who}.bands.{band}") for band in AgeBand for who in ("child", "companion")}
        assert len(bands) == 2 * len(AgeBand)
        assert len({prompts.line(f"child.state.{level}") for level in range(5)}) == 5

    def test_a_changed_text_has_another_sha(self) -> None:
        assert load_prompts("zh").sha != load_prompts("en").sha
        assert re.fullmatch("[0-9a-f]{64}", load_prompts("zh").sha)


class TestCards:
    @pytest.mark.parametrize("mode", MODES)
    def test_every_planned_card_fills_every_text_of_its_mode(self, mode: Mode) -> None:
        cards = planned(mode)
        assert {card.lang for card in cards} == set(LANGS)
        for card in cards:
            for key, text in rendered(card).items():
                assert not PLACEHOLDER.search(text), (card.id, key)

    @pytest.mark.parametrize("mode", ["expand", "repair", "branch"])
    def test_so_do_cards_of_given_talks_which_know_less(self, mode: Mode) -> None:
        for lang in LANGS:
            card = changed(mode=mode, lang=lang, emotion=None, outcome=None)
            assert not [text for text in rendered(card).values() if PLACEHOLDER.search(text)]

    def test_a_child_is_told_who_it_is_and_what_happened(self) -> None:
        bank = load_catalogue()
        scenes = {scene.id: scene for scene in bank.scenes}
        for card in planned("roleplay"):
            if card.scene is None:
                continue
            texts = rendered(card)
            assert card.child.name in texts["child.system"]
            assert str(card.child.age) in texts["child.system"]
            assert getattr(scenes[card.scene], card.lang) in texts["outline.user"]
            assert getattr(scenes[card.scene].hidden, card.lang) in texts["outline.user"]

    def test_a_safeguarding_card_says_what_must_and_must_not_be(self) -> None:
        scenarios = {scenario.id: scenario for scenario in load_catalogue().scenarios}
        cards = [card for card in planned("script") if card.scenario]
        assert cards
        for card in cards:
            scenario, text = scenarios[card.scenario or ""], rendered(card)["script.user"]
            for part in (
                getattr(scenario, card.lang),
                getattr(scenario.must, card.lang),
                getattr(scenario.must_not, card.lang),
            ):
                assert part in text

    def test_a_general_card_says_the_task(self) -> None:
        for card in planned("general"):
            task = load_prompts(card.lang).facts(card)["task"]
            assert task
            assert all(task in text for text in rendered(card).values())

    def test_some_children_have_the_speech_of_their_place_and_most_have_not(self) -> None:
        coloured = [bool(load_prompts(card.lang).facts(card)["dialect"]) for card in planned("roleplay")]
        assert 0.1 < sum(coloured) / len(coloured) < 0.5

    @pytest.mark.parametrize(
        ("field", "value"),
        [("scene", "study.nowhere"), ("scenario", "self_harm.nowhere"), ("task", "general.nowhere"), ("outcome", "nowhere")],
    )
    def test_what_the_bank_has_not_is_named_with_the_card(self, field: str, value: str) -> None:
        with pytest.raises(DataError, match=r"c-7.*nowhere") as error:
            load_prompts("zh").facts(changed(**{field: value}))
        assert error.value.hint

    @pytest.mark.parametrize("field", ["family", "region", "temperament", "channel", "habit", "knobs"])
    def test_also_of_the_child(self, field: str) -> None:
        child = CHILD.model_copy(update={field: ("nowhere",) if field == "knobs" else "nowhere"})
        with pytest.raises(DataError, match=r"c-7.*nowhere"):
            load_prompts("zh").facts(changed(child=child))

    def test_the_users_own_scenes_are_known_and_a_dollar_in_them_is_a_dollar(self) -> None:
        scene = Scene(
            id="mine.shop",
            zh="掉了 $name 块钱",
            en="dropped $5, ${age} and $$",
            ages=(6, 9),
            emotions=(Emotion.SAD,),
            positive=False,
            risk=None,
            hidden=Bilingual(zh="是妈妈的 $", en="it was mum's $"),
        )
        words = Bilingual(zh="我的", en="mine")
        prompts = Prompts("en", [Domain.model_validate({"id": "mine", "name": words, "about": words, "scene": (scene,)})])
        text = prompts.text("script.user", prompts.facts(changed(lang="en", scene="mine.shop")))
        assert scene.en in text
        assert scene.hidden.en in text
        with pytest.raises(DataError, match=r"c-7.*mine\.shop"):
            load_prompts("en").facts(changed(lang="en", scene="mine.shop"))


class TestWords:
    @pytest.mark.parametrize("lang", LANGS)
    def test_the_companion_is_told_nothing_but_the_age_band_and_the_acts(self, lang: Lang) -> None:
        prompts = load_prompts(lang)
        asked = placeholders(texts(lang)["companion.system"])
        assert asked <= set(band_words(AgeBand.B9_11, prompts))
        assert not placeholders(texts(lang)["companion.turn"]) - {"message", "allowed", "not_yet"}
        assert placeholders(texts(lang)["companion.safeguard"]) == {"lines"}
        assert placeholders(texts(lang)["companion.farewell"]) == set()

    @pytest.mark.parametrize("lang", LANGS)
    def test_acts_have_a_line_each(self, lang: Lang) -> None:
        lines = load_prompts(lang).acts.splitlines()
        assert [line.split(": ")[0] for line in lines] == [act.value for act in Act]

    def test_history_names_speakers_and_leaves_the_policy_out(self) -> None:
        turns = [
            Turn(role="system", content="secret"),
            Turn(role="user", content="hm"),
            Turn(role="assistant", content="hello"),
        ]
        assert load_prompts("en").history(turns) == "Child: hm\nQiaoban: hello"
        assert load_prompts("zh").history(turns) == "孩子：hm\n七巧板：hello"
        assert load_prompts("zh").history([]) == ""

    @pytest.mark.parametrize("lang", LANGS)
    def test_a_failing_style_has_a_definition_and_examples(self, lang: Lang) -> None:
        for factor in ("dismissing", "disapproving", "laissez_faire"):
            definition, examples = load_prompts(lang).style(factor)
            assert definition
            assert len(examples.splitlines()) >= 4


def digest() -> str:
    """Of all that some cards are put into."""
    cards = plan(load_catalogue(), PlanOptions(count=30, seed=7, langs={"zh": 0.5, "en": 0.5}))
    words = [text for card in cards for text in rendered(card).values()]
    return hashlib.sha256("\x00".join(words).encode()).hexdigest()


@pytest.mark.parametrize("seed", ["1", "random"])
def test_the_same_card_reads_the_same_in_every_process(seed: str) -> None:
    program = "from tests.collect.test_prompts import digest; print(digest())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}, check=True
    )
    assert done.stdout.strip() == digest()
