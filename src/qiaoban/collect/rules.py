"""What may stand on one card together: small named rules over a draft.

The planner draws with these rules and `broken` checks finished cards with the same ones, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qiaoban.collect.card import Card
from qiaoban.collect.world import Source, World
from qiaoban.conversation import AgeBand, Emotion

GIVEN_NAME_FROM = 12  # a pet name is for younger children
TYPES_FROM = 6  # a younger child speaks
SLOW_TURNS = 6  # child turns that a disclosure over several turns takes


@dataclass
class Person:
    """A child in the making; an empty string is not drawn yet."""

    gender: str = ""
    family: str = ""
    region: str = ""
    temperament: str = ""
    channel: str = ""
    habit: str = ""
    name: str = ""
    knobs: tuple[str, ...] = ()


@dataclass
class Draft:
    """A card in the making. Rules about what is still None hold."""

    source: Source | None
    age: int
    lang: str = "zh"
    domain: str | None = None
    emotion: Emotion | None = None
    outcome: str | None = None
    distress: int | None = None
    turns: int | None = None
    person: Person = field(default_factory=Person)


@dataclass(frozen=True)
class Rule:
    """`holds` is false for a draft that must not become a card; `about` is the part of it that would have to change."""

    id: str
    about: str
    why: str
    holds: Callable[[Draft, World], bool]


def _source_rule(test: Callable[[Draft, Source, World], bool]) -> Callable[[Draft, World], bool]:
    """A rule that says nothing where there is neither scene nor scenario."""
    return lambda d, w: d.source is None or test(d, d.source, w)


def _age(d: Draft, s: Source, w: World) -> bool:
    return s.ages[0] <= d.age <= s.ages[1]


def _home(d: Draft, s: Source, w: World) -> bool:
    return d.domain is None or d.domain in s.domains


def _raised(d: Draft, s: Source, w: World) -> bool:
    return d.emotion is None or d.emotion in s.emotions


def _word_known(d: Draft, w: World) -> bool:
    return d.emotion is None or w.word_age[d.emotion] <= d.age


def _good_news(d: Draft, s: Source, w: World) -> bool:
    return d.outcome is None or not s.positive or d.outcome in {"savoured", "left"}


def _pain(d: Draft, s: Source, w: World) -> bool:
    return d.outcome != "savoured" or s.positive


def _at_ease(d: Draft, w: World) -> bool:
    good = d.outcome == "savoured" or (d.source is not None and d.source.positive)
    return not (good and d.distress)


def _not_by_words(d: Draft, s: Source, w: World) -> bool:
    grave = s.level == "safeguarding" or (s.level == "sensitive" and s.risk in w.table.severe)
    return d.outcome is None or not grave or d.outcome in {"referred", "partly", "unresolved", "left"}


def _adult_now(d: Draft, s: Source, w: World) -> bool:
    return d.outcome is None or s.risk not in w.table.emergency or d.outcome in {"referred", "left"}


def _time(d: Draft, s: Source, w: World) -> bool:
    return d.turns is None or not s.slow or d.turns >= SLOW_TURNS


def _family_age(d: Draft, w: World) -> bool:
    return not d.person.family or w.families[d.person.family].min_age <= d.age


def _family_lang(d: Draft, w: World) -> bool:
    return not d.person.family or d.lang in w.families[d.person.family].langs


def _family_scene(d: Draft, s: Source, w: World) -> bool:
    return not d.person.family or d.person.family in s.fit.families


def _gender_scene(d: Draft, s: Source, w: World) -> bool:
    return not d.person.gender or s.fit.gender in {None, d.person.gender}


def _region_scene(d: Draft, s: Source, w: World) -> bool:
    return not d.person.region or not s.fit.regions or d.person.region in s.fit.regions


def _region_family(d: Draft, w: World) -> bool:
    allowed = w.table.regions.get(d.person.family, ())
    return not d.person.region or not allowed or d.person.region in allowed


def _voice_young(d: Draft, w: World) -> bool:
    return d.person.channel != "typed" or d.age >= TYPES_FROM


def _channel_scene(d: Draft, s: Source, w: World) -> bool:
    return not d.person.channel or s.fit.channel in {None, d.person.channel}


def _habit_age(d: Draft, w: World) -> bool:
    if not d.person.habit:
        return True
    low, high = w.habits[d.person.habit].ages
    return low <= d.age <= high


def _knobs(d: Draft, w: World) -> bool:
    fields = [knob.field for knob in w.bank.people.knobs if knob.id in d.person.knobs]
    return len(set(fields)) == len(fields) and (not fields or d.person.temperament in {"", "mixed"})


def _name_gender(d: Draft, w: World) -> bool:
    name = w.names[d.lang].get(d.person.name)
    return name is None or name.gender in {"any", d.person.gender}


def _name_kind(d: Draft, w: World) -> bool:
    name = w.names[d.lang].get(d.person.name)
    return name is None or name.kind == "given" or d.age < GIVEN_NAME_FROM


RULES: tuple[Rule, ...] = (
    Rule("scene_age", "age", "a scene is lived by children of its ages", _source_rule(_age)),
    Rule("scene_domain", "domain", "a scene or scenario belongs to its own fields of life", _source_rule(_home)),
    Rule("scene_emotion", "emotion", "a feeling is one that the scene raises", _source_rule(_raised)),
    Rule("word_age", "emotion", "a child is not asked to name a feeling whose word it does not know yet", _word_known),
    Rule(
        "good_news", "outcome", "good news is savoured or left, and never calmed, settled or referred", _source_rule(_good_news)
    ),
    Rule("pain_not_savoured", "outcome", "pain is not savoured", _source_rule(_pain)),
    Rule("at_ease", "distress", "a child with good news is not in distress", _at_ease),
    Rule("not_by_words", "outcome", "words alone do not settle a harm", _source_rule(_not_by_words)),
    Rule("adult_now", "outcome", "an emergency needs an adult now", _source_rule(_adult_now)),
    Rule("time_to_tell", "turns", "a disclosure over turns needs turns", _source_rule(_time)),
    Rule("family_age", "family", "some families begin at an age, such as boarding", _family_age),
    Rule("family_lang", "family", "some families are told of in one language only", _family_lang),
    Rule("family_scene", "family", "the people of a scene live in the family", _source_rule(_family_scene)),
    Rule("gender_scene", "gender", "some scenes are told by girls, some by boys", _source_rule(_gender_scene)),
    Rule("region_scene", "region", "some scenes happen in one kind of place", _source_rule(_region_scene)),
    Rule("region_family", "region", "some families live in one kind of place", _region_family),
    Rule("voice_young", "channel", "a child under six does not type", _voice_young),
    Rule("channel_scene", "channel", "some texts say how the words come", _source_rule(_channel_scene)),
    Rule("habit_age", "habit", "a talk habit belongs to its ages", _habit_age),
    Rule("knobs", "knobs", "knobs vary the mixed temperament, each another one of its sides", _knobs),
    Rule("name_gender", "name", "a name goes with the child's gender", _name_gender),
    Rule("name_kind", "name", "a child of twelve has outgrown a pet name", _name_kind),
)
BY_PART: Mapping[str, tuple[Rule, ...]] = {
    part: tuple(rule for rule in RULES if rule.about == part) for part in {rule.about for rule in RULES}
}


def allowed(draft: Draft, world: World, *parts: str) -> bool:
    """Whether every rule about these parts of the draft holds."""
    return all(rule.holds(draft, world) for part in parts for rule in BY_PART.get(part, ()))


def outcomes_of(source: Source, world: World) -> tuple[str, ...]:
    """How a talk about `source` may end, in the order of the bank."""
    draft = Draft(source, source.ages[0])
    names = [outcome.id for outcome in world.bank.people.outcomes]
    return tuple(name for name in names if allowed(replace(draft, outcome=name), world, "outcome"))


def emotions_of(source: Source, age: int, world: World) -> tuple[Emotion, ...]:
    """The feelings of `source` that a child of `age` has a word for."""
    return tuple(e for e in source.emotions if allowed(Draft(source, age, emotion=e), world, "emotion"))


def broken(card: Card, world: World) -> list[str]:
    """Ids of the rules that a card breaks."""
    child = card.child
    person = Person(
        gender=child.gender,
        family=child.family,
        region=child.region,
        temperament=child.temperament,
        channel=child.channel,
        habit=child.habit or "",
        name=child.name,
        knobs=child.knobs,
    )
    source = world.source_of(card)
    domain = card.domain if source else None
    parts = {"emotion": card.emotion, "outcome": card.outcome, "distress": card.distress, "turns": card.turns}
    draft = Draft(source, child.age, card.lang, domain, person=person, **parts)  # type: ignore[arg-type]
    return [rule.id for rule in RULES if not rule.holds(draft, world)]


def years_of(band: AgeBand, ages: tuple[int, int]) -> range:
    """The years of `band` that lie inside `ages`."""
    low, high = band.years
    return range(max(low, ages[0]), min(high, ages[1]) + 1)
