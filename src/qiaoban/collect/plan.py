"""Plan dialogues before any model is asked: quotas that are met exactly, coverage of pairs, and rules that reject nonsense.

`plan` makes cards of the bank (`script`, `roleplay`, `general`); cards of dialogues that exist are made by
`qiaoban.collect.given`, and `qiaoban.collect.figures` counts and prices a plan. Everything follows from the seed.
"""

from __future__ import annotations

import random
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from qiaoban.bank.catalogue import OLDEST, YOUNGEST, Catalogue, Domain, Scene, parse_table
from qiaoban.bank.general import Task, load_tasks
from qiaoban.collect.card import Card, Mode, Template
from qiaoban.collect.children import Cradle, dice, number
from qiaoban.collect.coverage import Filler, Grid, Variant, Wanted, allot, grid_of, quotas, spread
from qiaoban.collect.rules import SLOW_TURNS, Draft, emotions_of, years_of
from qiaoban.collect.world import LEVELS, Level, Source, World
from qiaoban.conversation import AgeBand, Emotion, Lang
from qiaoban.errors import DataError, UsageError

MODES = ("script", "roleplay", "general")
TALK_TURNS = (2, 5)  # child turns of a general talk
# How far into the range of turns a band goes: younger children talk less long.
_REACH = {AgeBand.B3_5: 0.4, AgeBand.B6_8: 0.6, AgeBand.B9_11: 0.8, AgeBand.B12_14: 1.0, AgeBand.B15_17: 1.0}
_DISTRESS: Mapping[Level, tuple[int, int]] = {
    "everyday": (1, 3),
    "sensitive": (1, 3),
    "safeguarding": (2, 4),
    "adversarial": (0, 2),
}
_LIGHT = {"joy", "love", "surprise"}
_MILD = {Emotion.BORED, Emotion.TIRED, Emotion.ANNOYED, Emotion.EMBARRASSED, Emotion.DISAPPOINTED, Emotion.NERVOUS}


def _weights(**shares: float) -> Mapping[str, float]:
    return shares


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan is to hold. Weights are relative; a weight of 0 leaves a value out.

    `modes` weighs script, roleplay and general; roleplay .6, script .3, general .1 is a good mixture. `domains` and `outcomes`
    are the bank's where they are None. `turns` are the child's, and young children stay in the lower part of the range.
    `lengths` are for script mode, Chinese characters and English words. `extra` are the user's own topics (`read_topics`).
    """

    count: int
    seed: int = 0
    langs: Mapping[str, float] = field(default_factory=lambda: _weights(zh=0.8, en=0.2))
    modes: Mapping[str, float] = field(default_factory=lambda: _weights(roleplay=1.0))
    ages: tuple[int, int] = (YOUNGEST, OLDEST)
    domains: tuple[str, ...] | None = None
    risks: Mapping[str, float] = field(
        default_factory=lambda: _weights(everyday=0.75, sensitive=0.15, safeguarding=0.07, adversarial=0.03)
    )
    outcomes: Mapping[str, float] | None = None
    turns: tuple[int, int] = (4, 9)
    template: Template = "coach"
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"zh": (800, 1000), "en": (500, 700)})
    extra: tuple[Domain, ...] = ()


def plan(bank: Catalogue, options: PlanOptions) -> list[Card]:
    """`options.count` cards. `UsageError` names an option that is wrong, or what is empty where nothing can be planned."""
    world = world_of(bank, options)
    rng = dice("plan", options.seed)
    modes = quotas(options.modes, options.count, rng)
    general = modes.pop("general", 0)
    feeling = sum(modes.values())
    langs = spread(quotas(options.langs, options.count, rng))
    drafts = _ordered(_drafts_of_talks(world, options, feeling, rng), langs, spread(modes), rng)
    drafts += _drafts_of_tasks(options, general, langs[feeling:], rng)
    cards = _Cards(world, options)
    return [cards.card(draft) for draft in _interleaved(drafts, general, rng)]


def read_topics(path: Path) -> Domain:
    """The user's own domain, a file in the form of the bank's topics. `DataError` names the file and the key or the line."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} is not UTF-8", path=path, hint="save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"this is not TOML: {error}", path=path) from None
    _check_keys(table, Domain, "", path)
    for number_of_scene, scene in enumerate(table.get("scene", ())):
        _check_keys(scene, Scene, f"scene.{number_of_scene}.", path)
    domain = parse_table(Domain, table, str(path))
    for name, times in Counter(scene.id for scene in domain.scenes).items():
        if times > 1:
            raise DataError(f"scene.id: {name!r} stands {times} times", path=path)
        if not name.startswith(f"{domain.id}."):
            raise DataError(f"scene.id: {name!r} does not begin with {domain.id + '.'!r}, the id of the domain", path=path)
    return domain


def _check_keys(table: Any, kind: type[BaseModel], where: str, path: Path) -> None:
    """An unknown key is told with the nearest that fits, before the key that it should have been is missed."""
    known = [entry.alias or name for name, entry in kind.model_fields.items()]
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise DataError(f"unknown key {where + key!r}" + (f"; did you mean {near[0]!r}?" if near else ""), path=path)


def world_of(bank: Catalogue, options: PlanOptions) -> World:
    """The bank with the user's topics, after a check of every option. `UsageError` names the option that is wrong."""
    domains = [domain.id for domain in (*bank.domains, *options.extra)]
    twice = [name for name, times in Counter(domains).items() if times > 1]
    if twice:
        raise UsageError(
            f"the domain {twice[0]!r} is given twice", hint="give your own topics an id that the bank does not use"
        )
    if options.count < 1:
        raise UsageError(f"count is {options.count}, at least one card is needed")
    _check_range("ages", options.ages, (YOUNGEST, OLDEST))
    _check_range("turns", options.turns, (1, 20))
    _check_weights("langs", options.langs, ("zh", "en"))
    _check_weights("modes", options.modes, MODES)
    _check_weights("risks", options.risks, LEVELS)
    if options.outcomes is not None:
        _check_weights("outcomes", options.outcomes, [outcome.id for outcome in bank.people.outcomes])
    _check_weights("domains", dict.fromkeys(options.domains or domains, 1.0), domains)
    for lang, length in options.lengths.items():
        _check_weights("lengths", {lang: 1.0}, ("zh", "en"))
        _check_range(f"lengths.{lang}", length, (50, 5000))
    return World.of(bank.model_copy(update={"domains": (*bank.domains, *options.extra)}))


def _check_range(name: str, given: tuple[int, int], limits: tuple[int, int]) -> None:
    if not limits[0] <= given[0] <= given[1] <= limits[1]:
        raise UsageError(
            f"{name} is {given[0]}-{given[1]}; it runs from {limits[0]} to {limits[1]}, the first not above the last"
        )


def _check_weights(name: str, given: Mapping[str, float], known: Sequence[str]) -> None:
    for key, weight in given.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise UsageError(
                f"{name} has no {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"known are {', '.join(known)}",
            )
        if not 0 <= weight < float("inf"):
            raise UsageError(f"the weight of {name}.{key} is {weight}; it is a number from 0")
    if not sum(given.values()) > 0:
        raise UsageError(f"no weight of {name} is above 0")


def asked_shares(world: World, options: PlanOptions) -> dict[str, dict[str, float]]:
    """What the options ask for, by dimension, before anything is found to be empty. Bands weigh as many years as they have."""
    outcomes = options.outcomes or {outcome.id: outcome.weight for outcome in world.bank.people.outcomes}
    domains = options.domains or tuple(domain.id for domain in world.bank.domains)
    return {
        "domain": dict.fromkeys(domains, 1.0),
        "age_band": {band.value: float(len(years)) for band in AgeBand if (years := years_of(band, options.ages))},
        "risk": {name: weight for name, weight in options.risks.items() if weight > 0},
        "outcome": {name: weight for name, weight in outcomes.items() if weight > 0},
    }


def admitted(world: World, options: PlanOptions) -> tuple[Grid, list[dict[str, float]]]:
    """What can be planned, and the shares of domain, band, risk and outcome with those left out that nothing can fill.

    `UsageError` where a domain that was named, or everything, is empty.
    """
    asked = asked_shares(world, options)
    wanted = Wanted(
        ages=options.ages,
        domains=frozenset(asked["domain"]),
        levels=frozenset(level for level in LEVELS if level in asked["risk"]),
        outcomes=frozenset(asked["outcome"]),
    )
    grid = grid_of(world, wanted)
    shares = [{name: asked[part][name] for name in asked[part] if name in grid.values(i)} for i, part in enumerate(asked)]
    empty = [name for name in options.domains or () if name not in shares[0]]
    if empty or not grid.variants:
        raise UsageError(
            f"nothing can be planned in {', '.join(empty or asked['domain'])} for ages {options.ages[0]}-{options.ages[1]} "
            f"with the risks {', '.join(asked['risk'])} and the outcomes {', '.join(asked['outcome'])}",
            hint="widen the ages, the risks or the outcomes, or leave the domain out",
        )
    return grid, shares


@dataclass
class _Plan:
    """A card to be: its draft, and what a draft does not say."""

    draft: Draft
    mode: Mode
    stratum: object
    task: Task | None = None


def _drafts_of_talks(world: World, options: PlanOptions, count: int, rng: random.Random) -> list[tuple[Variant, _Plan]]:
    """The rows of the table of quotas, each with a scene, a feeling and an age; scenes take turns in this order."""
    if not count:
        return []
    grid, shares = admitted(world, options)
    rows = allot(grid, [quotas(share, count, rng) for share in shares], rng)
    lived: Counter[tuple[str, int]] = Counter()
    drafts = []
    for variant in Filler(grid, rows, rng).fill():
        domain, band, _, outcome = variant.cell
        source = world.sources[variant.source]
        years = [y for y in years_of(AgeBand(band), options.ages) if variant.emotion in emotions_of(source, y, world)]
        years = [y for y in years if source.ages[0] <= y <= source.ages[1]]
        age = min(years, key=lambda year: (lived[band, year], rng.random()))
        lived[band, age] += 1
        draft = Draft(source, age, domain=domain, emotion=variant.emotion, outcome=outcome)
        drafts.append((variant, _Plan(draft, "roleplay", grid.stratum(variant.cell, variant.source))))
    return drafts


def _ordered(
    drafts: list[tuple[Variant, _Plan]], langs: Sequence[str], modes: Sequence[str], rng: random.Random
) -> list[_Plan]:
    """Languages spread evenly over levels, outcomes and domains, and modes over the same and the languages."""
    ties = {id(each): rng.random() for _, each in drafts}
    by_cell = sorted(drafts, key=lambda pair: (pair[0].cell[2], pair[0].cell[3], pair[0].cell[0], ties[id(pair[1])]))
    for (_, each), lang in zip(by_cell, langs, strict=False):
        each.draft.lang = lang
    by_lang = sorted(by_cell, key=lambda pair: pair[1].draft.lang)
    for (_, each), mode in zip(by_lang, modes, strict=True):
        each.mode = cast("Mode", mode)
    return [each for _, each in drafts]


def _drafts_of_tasks(options: PlanOptions, count: int, langs: Sequence[str], rng: random.Random) -> list[_Plan]:
    """General cards: bands and kinds by quota, the task that came least."""
    if not count:
        return []
    low, high = options.ages
    tasks = [task for task in load_tasks() if task.ages[0] <= high and task.ages[1] >= low]
    if not tasks:
        raise UsageError(f"general.toml has no task for ages {low}-{high}", hint="widen the ages, or give general the weight 0")
    bands = {band.value: float(len(years)) for band in AgeBand if (years := years_of(band, options.ages))}
    kinds = spread(quotas(dict.fromkeys(sorted({task.kind for task in tasks}), 1.0), count, rng))
    rng.shuffle(kinds)
    uses: Counter[str] = Counter()
    plans = []
    for band, kind, lang in zip(spread(quotas(bands, count, rng)), kinds, langs, strict=True):
        years = years_of(AgeBand(band), options.ages)
        fitting = [task for task in tasks if any(task.ages[0] <= year <= task.ages[1] for year in years)] or tasks
        task = min(fitting, key=lambda t: (t.kind != kind, uses[t.id], rng.random()))
        uses[task.id] += 1
        age = rng.choice([y for y in years if task.ages[0] <= y <= task.ages[1]] or list(range(*task.ages)))
        plans.append(_Plan(Draft(None, age, lang=lang, domain="general"), "general", "general", task))
    return plans


def _interleaved(plans: list[_Plan], general: int, rng: random.Random) -> Iterable[_Plan]:
    """A random order in which the cards of one stratum keep theirs, so that a part of a plan is like the whole."""
    places = list(range(len(plans)))
    rng.shuffle(places)
    waiting: dict[object, list[_Plan]] = defaultdict(list)
    for each in reversed(plans):
        waiting[each.stratum].append(each)
    return [waiting[plans[place].stratum].pop() for place in places]


class _Cards:
    """Turns drafts into cards: the child, the distress, the turns, the id."""

    def __init__(self, world: World, options: PlanOptions) -> None:
        self.options = options
        self.cradle = Cradle(world)
        self.counts: Counter[str] = Counter()

    def card(self, each: _Plan) -> Card:
        draft, options = each.draft, self.options
        kind = f"{draft.lang}-{each.mode}"
        self.counts[kind] += 1
        name = f"{kind}-s{options.seed}-{self.counts[kind]:06d}"
        rng = dice(options.seed, name)
        source = draft.source
        in_topics = source is not None and source.level in {"everyday", "sensitive"}
        return Card(
            id=name,
            mode=each.mode,
            lang=cast("Lang", draft.lang),
            domain=draft.domain or "general",
            scene=source.id if source and in_topics else None,
            scenario=source.id if source and not in_topics else None,
            task=each.task.id if each.task else None,
            child=self.cradle.child(draft, rng),
            emotion=draft.emotion,
            distress=distress_at_start(source, draft.emotion, rng) if source and draft.emotion else 0,
            outcome=draft.outcome,
            risk=source.risk if source else None,
            turns=_turns(each, options.turns, rng),
            template=options.template if each.mode == "script" else "coach",
            length=options.lengths.get(draft.lang) if each.mode == "script" else None,
            seed=number(options.seed, name, "rollout"),
        )


def distress_at_start(source: Source, emotion: Emotion, rng: random.Random) -> int:
    """From 0 to 4, by risk level and by how grave the feeling is; 0 with good news."""
    if source.positive:
        return 0
    low, high = _DISTRESS[source.level]
    if emotion.family in _LIGHT or emotion in _MILD:
        high -= 1
    elif source.level == "sensitive":
        low += 1
    return rng.randint(low, high)


def _turns(each: _Plan, limits: tuple[int, int], rng: random.Random) -> int:
    """The child's turns; a disclosure over several turns gets the time that it needs."""
    if each.task is not None:
        return 1 if each.task.form == "single" else rng.randint(*TALK_TURNS)
    high = limits[0] + round((limits[1] - limits[0]) * _REACH[AgeBand.of(each.draft.age)])
    turns = rng.randint(limits[0], high)
    slow = each.draft.source is not None and each.draft.source.slow
    return max(turns, SLOW_TURNS) if slow else turns
