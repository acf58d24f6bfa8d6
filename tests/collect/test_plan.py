"""Plans: quotas, rules, coverage, determinism; cards of what exists; reports and estimates."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.bank.general import load_tasks
from qiaoban.collect.card import Card, read_plan, write_plan
from qiaoban.collect.children import dice
from qiaoban.collect.coverage import Variant, quotas, spread
from qiaoban.collect.figures import PlanReport, estimate, report
from qiaoban.collect.given import branch_cards, expand_cards, repair_cards
from qiaoban.collect.plan import PlanOptions, plan, read_topics
from qiaoban.collect.rules import RULES, Draft, Person, allowed, broken, outcomes_of
from qiaoban.collect.world import World
from qiaoban.conversation import Act, AgeBand, Conversation, Emotion, Meta, Turn
from qiaoban.errors import DataError, UsageError

BANK = load_catalogue()
WORLD = World.of(BANK)
DIMENSIONS: dict[str, Callable[[Card], object]] = {
    "domain": lambda card: card.domain,
    "age_band": lambda card: card.child.band.value,
    "risk": WORLD.level_of,
    "outcome": lambda card: card.outcome,
    "lang": lambda card: card.lang,
    "mode": lambda card: card.mode,
}


@cache
def planned(count: int, seed: int) -> tuple[Card, ...]:
    """Plans with the default options are shared between tests."""
    return tuple(plan(BANK, PlanOptions(count=count, seed=seed)))


def reported(options: PlanOptions) -> tuple[list[Card], PlanReport]:
    cards = plan(BANK, options)
    return cards, report(BANK, options, cards)


# ── quotas ──


@pytest.mark.parametrize(("count", "seed"), [(37, 0), (200, 1), (200, 2), (1000, 2), (1000, 3), (3000, 1)])
def test_every_share_is_met_within_rounding(count: int, seed: int) -> None:
    cards = planned(count, seed)
    assert len(cards) == count
    shares = report(BANK, PlanOptions(count=count, seed=seed), cards).shares
    assert {share.dimension for share in shares} == set(DIMENSIONS)
    for share in shares:
        got = sum(str(DIMENSIONS[share.dimension](card)) == share.value for card in cards)
        assert got == share.count
        assert abs(got - share.asked * count) < 1, share


@given(
    st.dictionaries(st.text(min_size=1), st.floats(0.01, 100), min_size=1, max_size=20), st.integers(0, 5000), st.integers(0, 9)
)
def test_largest_remainders(weights: dict[str, float], count: int, seed: int) -> None:
    got = quotas(weights, count, dice(seed))
    assert sum(got.values()) == count
    for name, weight in weights.items():
        assert abs(got[name] - count * weight / sum(weights.values())) < 1.000001


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 60), min_size=1))
def test_spread_keeps_every_part_of_the_list_near_the_shares(quota: dict[str, int]) -> None:
    names = spread(quota)
    assert Counter(names) == Counter({name: times for name, times in quota.items() if times})
    for end in range(1, len(names) + 1):
        for name, times in quota.items():
            assert abs(names[:end].count(name) - times * end / len(names)) <= len(quota)


def test_the_good_quarter_is_savoured() -> None:
    cards = planned(1000, 3)
    assert sum(card.outcome == "savoured" for card in cards) == 250
    scenes = {scene.id: scene for scene in BANK.scenes}
    assert all(scenes[card.scene or ""].positive for card in cards if card.outcome == "savoured")


def test_languages_are_even_inside_risks_and_outcomes() -> None:
    for part in ("risk", "outcome"):
        groups: dict[object, list[str]] = defaultdict(list)
        for card in planned(1000, 3):
            groups[DIMENSIONS[part](card)].append(card.lang)
        for value, langs in groups.items():
            assert abs(langs.count("en") - len(langs) / 5) <= len(groups) + 2, value


# ── rules ──

SCENE = {source.id: source for source in WORLD.sources.values()}
EVERYDAY = SCENE["class_life.pe_picked_last"]
GOOD = SCENE["class_life.flag_speech"]
ABUSE = SCENE["physical_abuse.mother_hits"]
SLOW = SCENE["physical_abuse.loves_dad_too"]


def scene(name: str, age: int = 10, **parts: Any) -> Draft:
    """A draft about a scene of the bank; `person` parts may stand among the others."""
    own = {key: parts.pop(key) for key in tuple(parts) if key in Person.__dataclass_fields__}
    return Draft(SCENE[name], age, person=Person(**own), **parts)


GOOD_AND_BAD: dict[str, tuple[Draft, Draft]] = {
    "scene_age": (scene(EVERYDAY.id, 8), scene(EVERYDAY.id, 7)),
    "scene_domain": (scene(ABUSE.id, domain="parents"), scene(ABUSE.id, domain="study")),
    "scene_emotion": (scene(EVERYDAY.id, emotion=Emotion.EMBARRASSED), scene(EVERYDAY.id, emotion=Emotion.HAPPY)),
    "word_age": (Draft(None, 11, emotion=Emotion.INFERIOR), Draft(None, 10, emotion=Emotion.INFERIOR)),
    "good_news": (scene(GOOD.id, outcome="left"), scene(GOOD.id, outcome="referred")),
    "pain_not_savoured": (scene(EVERYDAY.id, outcome="partly"), scene(EVERYDAY.id, outcome="savoured")),
    "at_ease": (scene(GOOD.id, outcome="savoured", distress=0), scene(GOOD.id, outcome="savoured", distress=1)),
    "not_by_words": (scene(ABUSE.id, outcome="referred"), scene(ABUSE.id, outcome="calmed")),
    "adult_now": (scene("body_health.lips_swelling", outcome="referred"), scene("body_health.lips_swelling", outcome="partly")),
    "time_to_tell": (scene(SLOW.id, turns=6), scene(SLOW.id, turns=4)),
    "family_age": (Draft(None, 7, person=Person(family="boarding")), Draft(None, 6, person=Person(family="boarding"))),
    "family_lang": (
        Draft(None, 9, "en", person=Person(family="two_mums_or_dads")),
        Draft(None, 9, "zh", person=Person(family="two_mums_or_dads")),
    ),
    "family_scene": (
        scene("family_adversity.who_do_you_pick", family="both_parents"),
        scene("family_adversity.who_do_you_pick", family="foster"),
    ),
    "gender_scene": (scene("family_warmth.shaving_foam", gender="boy"), scene("family_warmth.shaving_foam", gender="girl")),
    "region_scene": (
        scene("class_life.village_school_closing", region="village"),
        scene("class_life.village_school_closing", region="city"),
    ),
    "region_family": (
        Draft(None, 9, person=Person(family="grandparents_left_behind", region="village")),
        Draft(None, 9, person=Person(family="grandparents_left_behind", region="abroad")),
    ),
    "voice_young": (Draft(None, 5, person=Person(channel="voice")), Draft(None, 5, person=Person(channel="typed"))),
    "channel_scene": (
        scene("medical_emergency.asthma_no_puffer", channel="typed"),
        scene("medical_emergency.asthma_no_puffer", channel="voice"),
    ),
    "habit_age": (Draft(None, 9, person=Person(habit="joke_shield")), Draft(None, 8, person=Person(habit="joke_shield"))),
    "knobs": (
        Draft(None, 9, person=Person(temperament="mixed", knobs=("few_words", "thin_skinned"))),
        Draft(None, 9, person=Person(temperament="mixed", knobs=("few_words", "very_talkative"))),
    ),
    "name_gender": (
        Draft(None, 9, person=Person(gender="girl", name="雨桐")),
        Draft(None, 9, person=Person(gender="boy", name="雨桐")),
    ),
    "name_kind": (
        Draft(None, 11, person=Person(gender="girl", name="朵朵")),
        Draft(None, 12, person=Person(gender="girl", name="朵朵")),
    ),
}


def test_every_rule_has_its_pair() -> None:
    assert set(GOOD_AND_BAD) == {rule.id for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=[rule.id for rule in RULES])
def test_a_rule_holds_and_breaks(rule: Any) -> None:
    good, bad = GOOD_AND_BAD[rule.id]
    assert rule.holds(good, WORLD)
    assert not rule.holds(bad, WORLD)
    assert rule.why


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_rules_hold_over_a_plan(seed: int) -> None:
    cards = planned(3000 if seed == 1 else 1000, seed)
    assert [(card.id, broken(card, WORLD)) for card in cards if broken(card, WORLD)] == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(5, 17), st.integers(5, 17)).map(lambda pair: (min(pair), max(pair))),
    st.fixed_dictionaries(
        {level: st.sampled_from([0, 0.2, 1]) for level in ("everyday", "sensitive", "safeguarding", "adversarial")}
    ),
    st.integers(1, 60),
)
def test_rules_hold_whatever_is_asked(seed: int, ages: tuple[int, int], risks: dict[str, float], count: int) -> None:
    risks["everyday"] = max(risks["everyday"], 0.1)
    cards = plan(BANK, PlanOptions(count=count, seed=seed, ages=ages, risks=risks))
    assert len(cards) == count
    for card in cards:
        assert broken(card, WORLD) == []
        assert ages[0] <= card.child.age <= ages[1]
        assert risks[str(WORLD.level_of(card))] > 0


def test_a_broken_card_is_told() -> None:
    card = next(card for card in planned(200, 1) if card.outcome == "savoured")
    assert broken(card.model_copy(update={"outcome": "calmed", "distress": 2}), WORLD) == ["good_news", "at_ease"]


def test_somebody_can_live_every_scene() -> None:
    """The table of rules leaves a family, a place and a channel for every scene, age and language, and names what exists."""
    regions = [region.id for region in BANK.people.regions]
    for source in WORLD.sources.values():
        assert outcomes_of(source, WORLD)
        for age in range(source.ages[0], source.ages[1] + 1):
            for lang in ("zh", "en"):
                homes = [Draft(source, age, lang, person=Person(family=family)) for family in WORLD.families]
                homes = [home for home in homes if allowed(home, WORLD, "family")]
                assert homes, (source.id, age, lang)
                for home in homes:
                    places = [replace(home, person=replace(home.person, region=region)) for region in regions]
                    assert any(allowed(place, WORLD, "region") for place in places), (source.id, home.person.family)
    for fit in WORLD.table.fits:
        assert any(fit.holds_for(name) for name in WORLD.sources), fit.why
        assert {*fit.families, *fit.prefer} <= set(WORLD.families)
        for pattern in fit.match:
            one = fit.model_copy(update={"match": (pattern,)})
            assert any(one.holds_for(name) for name in WORLD.sources), pattern


def test_a_scene_about_dad_at_home_needs_him() -> None:
    assert "one_parent_died" not in SCENE["parents.plug_pulled"].fit.families
    assert SCENE["loss_grief.fourteen_seconds"].fit.families == ("one_parent_died",)
    assert "one_parent_mother" not in SCENE["siblings.copycat_bag"].fit.families


# ── coverage and evenness ──


@pytest.mark.parametrize(("count", "least"), [(500, 0.90), (1000, 0.985), (3000, 0.995)])
def test_pairs_are_covered(count: int, least: float) -> None:
    options = PlanOptions(count=count, seed=1)
    found = report(BANK, options, planned(count, 1))
    assert found.pairs_feasible > 1200
    assert found.covered >= least
    assert sum(" with " in line for line in found.missing) == found.pairs_feasible - found.pairs_covered


def test_every_feasible_pair_is_covered_where_scenes_may_come_often_enough() -> None:
    found = reported(PlanOptions(count=3000, seed=1, domains=("friends", "study", "self_and_ai")))[1]
    assert found.covered == 1.0


def test_no_scene_comes_again_before_its_stratum_was_used_up() -> None:
    options = PlanOptions(count=1000, seed=3)
    cards = plan(BANK, options)
    seen: dict[Any, Counter[str]] = defaultdict(Counter)
    members = _strata()
    for card in cards:
        source = WORLD.source_of(card)
        assert source
        stratum = (card.domain, card.child.band.value, source.level, outcomes_of(source, WORLD))
        turn = seen[stratum][source.id]
        assert all(seen[stratum][other] >= turn for other in members[stratum]), card.id
        seen[stratum][source.id] += 1
    assert any(max(counts.values()) > 1 for counts in seen.values())


def _strata() -> dict[Any, set[str]]:
    members = defaultdict(set)
    for source in WORLD.sources.values():
        for age in range(source.ages[0], source.ages[1] + 1):
            if any(WORLD.word_age[emotion] <= age for emotion in source.emotions):
                for domain in source.domains:
                    members[domain, AgeBand.of(age).value, source.level, outcomes_of(source, WORLD)].add(source.id)
    return members


def test_names_take_turns() -> None:
    cards = planned(1000, 3)
    assert all(one.child.name != two.child.name for one, two in pairwise(cards))
    for lang in ("zh", "en"):
        names = [card.child.name for card in cards if card.lang == lang]
        first = names[: len(names) // 10]
        assert len(set(first)) == len(first)
    kinds = [(card.child.age, WORLD.names[card.lang][card.child.name].kind) for card in cards]
    young = [kind for age, kind in kinds if age <= 8]
    assert young.count("nick") > len(young) / 3


def test_distress_follows_what_happened() -> None:
    by_level = defaultdict(set)
    for card in planned(3000, 1):
        source = WORLD.source_of(card)
        assert source
        by_level["good" if source.positive else source.level].add(card.distress)
    assert by_level["good"] == {0}
    assert by_level["everyday"] == {1, 2, 3}
    assert by_level["safeguarding"] <= {2, 3, 4}
    assert len(by_level["safeguarding"]) == 3


def test_young_children_talk_less_long() -> None:
    turns = defaultdict(list)
    for card in planned(3000, 1):
        turns[card.child.band].append(card.turns)
    assert min(map(min, turns.values())) == 4
    assert max(turns[AgeBand.B15_17]) == 9
    assert sum(turns[AgeBand.B3_5]) / len(turns[AgeBand.B3_5]) < sum(turns[AgeBand.B12_14]) / len(turns[AgeBand.B12_14]) - 0.5


# ── determinism and form ──


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    options = PlanOptions(count=150, seed=7, modes={"script": 1, "roleplay": 1, "general": 1})
    for name in ("a", "b"):
        assert write_plan(tmp_path / name, plan(BANK, options)) == 150
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert list(read_plan(tmp_path / "a")) == plan(BANK, options)
    other = plan(BANK, replace(options, seed=8))
    assert [card.scene for card in other] != [card.scene for card in read_plan(tmp_path / "a")]


def test_another_process_plans_the_same() -> None:
    """The order in which a process hashes strings must not show."""
    code = (
        "from qiaoban.bank.catalogue import load_catalogue as bank; from qiaoban.collect.plan import PlanOptions, plan;"
        "print([card.sha for card in plan(bank(), PlanOptions(count=120, seed=5))])"
    )
    told = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert told == {f"{[card.sha for card in planned(120, 5)]}\n".encode()}


def test_ids_count_languages_and_modes() -> None:
    cards = planned(200, 1)
    assert len({card.id for card in cards}) == 200
    assert {card.id for card in cards if card.lang == "zh"} == {f"zh-roleplay-s1-{n:06d}" for n in range(1, 161)}
    assert len({card.seed for card in cards}) == 200


def test_modes_and_general_tasks() -> None:
    options = PlanOptions(count=300, seed=2, modes={"roleplay": 0.6, "script": 0.3, "general": 0.1}, template="seed2023")
    cards, found = reported(options)
    assert Counter(card.mode for card in cards) == {"roleplay": 180, "script": 90, "general": 30}
    assert found.cards == 300
    tasks = {task.id: task for task in load_tasks()}
    for card in cards:
        if card.mode == "general":
            task = tasks[card.task or ""]
            assert task.ages[0] <= card.child.age <= task.ages[1]
            assert (card.domain, card.emotion, card.outcome, card.risk, card.scene) == ("general", None, None, None, None)
            assert (card.turns == 1) == (task.form == "single")
            assert broken(card, WORLD) == []
        elif card.mode == "script":
            assert card.length == ((800, 1000) if card.lang == "zh" else (500, 700))
            assert card.template == "seed2023"
        else:
            assert card.length is None
    assert len({card.task for card in cards if card.task}) >= min(25, len(tasks) // 2)


def test_only_general() -> None:
    cards, found = reported(PlanOptions(count=12, seed=1, modes={"general": 1.0}, langs={"en": 1.0}))
    assert {(card.mode, card.lang) for card in cards} == {("general", "en")}
    assert found.pairs_feasible == 0
    assert found.covered == 1.0


# ── restricted and impossible requests ──


@pytest.mark.parametrize(
    "limits",
    [
        {"domains": ("family_warmth",)},
        {"ages": (5, 5)},
        {"ages": (13, 13)},
        {"langs": {"en": 1.0}},
        {"risks": {"adversarial": 1.0}},
        {"risks": {"safeguarding": 1.0}, "domains": ("online_life",)},
        {"outcomes": {"savoured": 1.0}},
        {"domains": ("study",), "ages": (16, 17), "langs": {"zh": 1.0}},
        {"count": 1},
    ],
    ids=str,
)
def test_restricted_plans(limits: dict[str, Any]) -> None:
    options = PlanOptions(**{"count": 90, "seed": 4, **limits})
    cards, found = reported(options)
    assert len(cards) == options.count
    for card in cards:
        assert broken(card, WORLD) == []
        assert options.ages[0] <= card.child.age <= options.ages[1]
        assert card.domain in (options.domains or {domain.id for domain in BANK.domains})
        assert options.langs.get(card.lang, 0) > 0
        assert options.risks.get(str(WORLD.level_of(card)), 0) > 0
    told = {line.split(":")[0] for line in found.missing}
    for share in found.shares:
        if abs(share.count - share.asked * options.count) >= 1.5 and share.asked and not share.count:
            assert f"{share.dimension} {share.value}" in told


def test_what_is_empty_is_named() -> None:
    with pytest.raises(UsageError, match=r"teachers for ages 5-5 with the risks sensitive"):
        plan(BANK, PlanOptions(count=5, domains=("teachers",), ages=(5, 5), risks={"sensitive": 1.0}))
    with pytest.raises(UsageError, match=r"nothing can be planned in family_warmth for"):
        plan(BANK, PlanOptions(count=5, domains=("friends", "family_warmth"), risks={"safeguarding": 1.0}))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"ages": (4, 9)}, "ages is 4-9"),
        ({"ages": (9, 8)}, "ages is 9-8"),
        ({"turns": (0, 4)}, "turns is 0-4"),
        ({"domains": ("famly_warmth",)}, "did you mean 'family_warmth'"),
        ({"langs": {"fr": 1.0}}, "langs has no 'fr'"),
        ({"modes": {"expand": 1.0}}, "modes has no 'expand'"),
        ({"modes": {"script": 0.0}}, "no weight of modes is above 0"),
        ({"risks": {"everyday": -1.0}}, "risks.everyday is -1.0"),
        ({"risks": {"everyday": float("nan")}}, "risks.everyday is nan"),
        ({"outcomes": {"calm": 1.0}}, "did you mean 'calmed'"),
        ({"lengths": {"zh": (900, 100)}}, "lengths.zh is 900-100"),
    ],
)
def test_wrong_options(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(BANK, PlanOptions(**{"count": 5, **limits}))


# ── the user's own topics ──

TOPICS = """
id = "garden"
name = { zh = "菜园", en = "Garden" }
about = { zh = "种菜", en = "growing things" }
[[scene]]
id = "garden.slugs"
zh = "我种的生菜一夜之间被鼻涕虫啃光了"
en = "The slugs ate every one of my lettuces in a night"
ages = [6, 12]
emotions = ["sad", "angry"]
positive = false
risk = ""
hidden = { zh = "本来想送给爷爷", en = "they were for Grandad" }
[[scene]]
id = "garden.first_bean"
zh = "我的第一根豆子长出来了"
en = "My first bean has grown"
ages = [5, 12]
emotions = ["proud", "happy"]
positive = true
risk = ""
hidden = { zh = "想拍给妈妈看", en = "wants to show Mum" }
"""


def test_own_topics_are_planned(tmp_path: Path) -> None:
    (tmp_path / "garden.toml").write_text(TOPICS, "utf-8")
    domain = read_topics(tmp_path / "garden.toml")
    cards = plan(BANK, PlanOptions(count=40, seed=1, extra=(domain,), domains=("garden",)))
    assert Counter(card.scene for card in cards)["garden.first_bean"] >= 10
    assert {card.domain for card in cards} == {"garden"}
    mixed = plan(BANK, PlanOptions(count=160, seed=1, extra=(domain,)))
    assert sum(card.domain == "garden" for card in mixed) == 10
    with pytest.raises(UsageError, match="'garden' is given twice"):
        plan(BANK, PlanOptions(count=4, extra=(domain, domain)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("positive = false", "positiv = false", r"unknown key 'scene.0.positiv'; did you mean 'positive'"),
        ("[[scene]]", "[[scenes]]", "unknown key 'scenes'; did you mean 'scene'"),
        ('emotions = ["sad", "angry"]', 'emotions = ["sad", "angryy"]', r"emotions\.1"),
        ("ages = [6, 12]", "ages = [12, 6]", "ages"),
        ('id = "garden.slugs"', 'id = "slugs"', "does not begin with 'garden.'"),
        ('id = "garden.slugs"', 'id = "garden.first_bean"', "stands 2 times"),
        ("ages = [6, 12]", "ages = [6, 12", "not TOML.*line"),
    ],
)
def test_a_typo_in_topics_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOPICS.replace(old, new, 2 if old == "[[scene]]" else 1), "utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_topics(path)
    assert str(path) in error.value.message


def test_topics_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_topics(tmp_path / "none.toml")
    (tmp_path / "gbk.toml").write_bytes('id = "菜"'.encode("gb18030"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_topics(tmp_path / "gbk.toml")


# ── cards of what exists ──


def talk(name: str = "t1", turns: int = 4, **meta: Any) -> Conversation:
    acts: Sequence[tuple[Act, ...]] = [(Act.INVITE,), (Act.ACCEPT, Act.EMPATHISE), (Act.EXPLORE,), (Act.PLAN, Act.CLOSE)]
    lines = [Turn(role="system", content="s")]
    for n in range(turns):
        lines += [
            Turn(role="user", content=f"他们不跟我玩 {n}", distress=3 if n == 0 else None),
            Turn(role="assistant", content="嗯", acts=acts[n % 4]),
        ]
    return Conversation(id=name, turns=tuple(lines), meta=Meta(**meta))


def test_expand_keeps_what_a_row_says() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "我今天好生气，他又拿我的笔", "lang": "zh", "age": 8},
        {"id": "b", "text": "I feel so lonely at lunch", "lang": "en", "age": 12},
        {
            "id": "c",
            "text": "we won",
            "lang": "en",
            "age": 9,
            "emotion": "proud",
            "outcome": "savoured",
            "domain": "play_hobbies",
        },
        {"id": "d", "text": "嗯"},
    ]
    cards = expand_cards(rows, BANK, seed=1)
    assert [card.id for card in cards] == [
        "zh-expand-s1-000001",
        "en-expand-s1-000001",
        "en-expand-s1-000002",
        "zh-expand-s1-000002",
    ]
    assert [(card.child.age, card.lang) for card in cards[:3]] == [(8, "zh"), (12, "en"), (9, "en")]
    assert cards[0].given is not None
    assert cards[0].given.turns[0].content == rows[0]["text"]
    assert cards[0].emotion is Emotion.ANGRY
    assert cards[1].emotion is Emotion.LONELY
    assert (cards[2].emotion, cards[2].outcome, cards[2].distress, cards[2].domain) == ("proud", "savoured", 0, "play_hobbies")
    assert all(card.outcome for card in cards)
    assert all(broken(card, WORLD) == [] for card in cards)
    assert expand_cards(rows, BANK, seed=1) == cards


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "txt": "x"}, "row 1: "),
        ({"id": "a", "text": "x", "age": 3}, "row 1: age"),
        ({"id": "a", "text": "x", "outcome": "fine"}, "row 1: outcome: 'fine' is unknown"),
    ],
)
def test_expand_names_a_wrong_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand_cards([row], BANK)


def finding(name: str = "t1", turn: int = 2, rule: str = "R-TWO-QUESTIONS") -> dict[str, Any]:
    return {"id": name, "turn": turn, "rule": rule, "severity": "repair", "message": "two questions"}


def test_repair_groups_findings_by_talk() -> None:
    talks = [talk("t1"), talk("t2"), talk("t3", age_band="9-11", topic=EVERYDAY.id, emotion="embarrassed")]
    found = [finding("t3", 4), finding("t1", 4), finding("t1", 2), finding("t1", 2), finding("t1", 2, "R-KIN")]
    cards = repair_cards(talks, found, BANK, seed=1)
    assert [(card.given.id if card.given else "", len(card.hits)) for card in cards] == [("t1", 3), ("t3", 1)]
    assert [hit.turn for hit in cards[0].hits] == [2, 2, 4]
    assert cards[1].child.age in {9, 10, 11}
    assert (cards[1].scene, cards[1].domain, cards[1].emotion) == (EVERYDAY.id, "class_life", "embarrassed")
    assert cards[1].lang == "zh"
    assert cards[0].distress == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (finding("nobody"), "'nobody', which is not among"),
        (finding(turn=99), "turn 99 does not exist"),
        ({"id": "t1", "turn": 2}, "row 1: rule"),
    ],
)
def test_repair_names_a_wrong_finding(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        repair_cards([talk()], [row], BANK)


def test_branch_takes_telling_turns_with_each_failing_style() -> None:
    cards = branch_cards([talk(turns=6), talk("one", turns=1)], BANK, per_talk=3, seed=1)
    mine = [card for card in cards if card.given and card.given.id == "t1"]
    places = sorted({card.at for card in mine if card.at})
    assert len(mine) == 9
    assert places[:2] == [4, 6]  # the first that validates, the first that advises
    assert places[2] > 6
    assert Counter(card.factor for card in mine) == {"dismissing": 3, "disapproving": 3, "laissez_faire": 3}
    assert len({card.child.name for card in mine}) == 1
    assert len(cards) == 12
    for card in cards:
        assert card.given is not None
        assert card.at is not None
        assert card.given.turns[card.at].role == "assistant"
    with pytest.raises(UsageError, match="per_talk is 0"):
        branch_cards([talk()], BANK, per_talk=0)


# ── report and estimate ──


def test_report_counts_pairs_and_names_the_missing() -> None:
    options = PlanOptions(count=30, seed=1)
    cards = list(planned(30, 1))
    found = report(BANK, options, cards)
    by_hand = set()
    for card in cards:
        level, emotion = WORLD.level_of(card), card.emotion
        assert level
        assert emotion
        cell = (card.domain, card.child.band.value, level, card.outcome or "")
        by_hand |= set(Variant(cell, "", emotion).pairs())
    assert found.pairs_covered == len(by_hand)
    assert len([line for line in found.missing if "got a turn" in line]) == found.pairs_feasible - len(by_hand)


def test_estimate_counts_calls() -> None:
    cards = plan(BANK, PlanOptions(count=100, seed=2, modes={"script": 1, "roleplay": 1, "general": 1}))
    role = [card for card in cards if card.mode == "roleplay"]
    calls = sum(1 + 2 * card.turns for card in role) + len(cards) - len(role)
    found = estimate(cards, (2.0, 8.0), concurrency=10, latency=1.0)
    assert found.calls == calls
    assert found.seconds == pytest.approx(calls / 10)
    assert found.cost == pytest.approx((2 * found.prompt_tokens + 8 * found.completion_tokens) / 1e6)
    assert estimate(cards).cost is None
    assert estimate(cards, rpm=60, latency=0.1).seconds == pytest.approx(calls)
    assert estimate(cards, concurrency=10**6, latency=2.0).seconds == 2 * max(1 + 2 * card.turns for card in role)
    longer = role[0].model_copy(update={"turns": role[0].turns * 2})
    assert estimate([longer]).prompt_tokens > 2 * estimate([role[0]]).prompt_tokens - 1000


def test_estimate_of_repair_and_branch() -> None:
    repairs = repair_cards([talk()], [finding(turn=2), finding(turn=2, rule="other"), finding(turn=4)], BANK)
    assert estimate(repairs).calls == 2
    assert estimate(branch_cards([talk()], BANK, per_talk=2)).calls == 6
    assert estimate([]).calls == 0
