"""What a plan holds, and what it will cost: counts against the shares that were asked, pairs covered, calls, tokens, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qiaoban.bank.catalogue import Catalogue
from qiaoban.collect.card import Card
from qiaoban.collect.coverage import DIMENSIONS, Grid, Pair, Variant
from qiaoban.collect.plan import PlanOptions, admitted, asked_shares, world_of
from qiaoban.collect.world import World
from qiaoban.conversation import Lang


@dataclass(frozen=True)
class Share:
    """One value of a dimension: how many cards have it, the share that was asked and the share that it got, from 0 to 1."""

    dimension: str
    value: str
    count: int
    asked: float
    got: float


@dataclass(frozen=True)
class PlanReport:
    """`missing` says in words what could not be had and why."""

    cards: int
    shares: tuple[Share, ...]
    pairs_feasible: int
    pairs_covered: int
    missing: tuple[str, ...]

    @property
    def covered(self) -> float:
        """The part of the feasible pairs that some card has; 1 where there are none."""
        return self.pairs_covered / self.pairs_feasible if self.pairs_feasible else 1.0


def report(bank: Catalogue, options: PlanOptions, cards: Sequence[Card]) -> PlanReport:
    """Counts of a plan against the options it was made with."""
    world = world_of(bank, options)
    talks = [(card, level) for card in cards if (level := world.level_of(card)) is not None]
    asked = {"lang": dict(options.langs), "mode": dict(options.modes), **asked_shares(world, options)}
    got: dict[str, Counter[str]] = {
        "lang": Counter[str](card.lang for card in cards),
        "mode": Counter[str](card.mode for card in cards),
        "domain": Counter(card.domain for card, _ in talks),
        "age_band": Counter(card.child.band.value for card, _ in talks),
        "risk": Counter[str](level for _, level in talks),
        "outcome": Counter(card.outcome or "" for card, _ in talks),
    }
    shares = tuple(share for name in asked for share in _shares(name, asked[name], got[name]))
    if not talks:
        return PlanReport(len(cards), tuple(s for s in shares if s.dimension in {"lang", "mode"}), 0, 0, ())
    grid, left = admitted(world, options)
    empty = [
        f"{part} {name}: no scene gives it with these ages, domains, risks and outcomes, its share went to the others"
        for part, some in zip(DIMENSIONS[:4], left, strict=True)
        for name in asked[part]
        if name not in some
    ]
    gave_way = [line for part, some in zip(DIMENSIONS[:4], left, strict=True) for line in _off(part, some, got[part])]
    covered = {pair for card, _ in talks for pair in _pairs(card, world)} & set(grid.by_pair)
    lost = [_why(pair, grid, len(talks)) for pair in sorted(set(grid.by_pair) - covered)]
    return PlanReport(len(cards), shares, len(grid.by_pair), len(covered), (*empty, *gave_way, *lost))


def _shares(name: str, weights: dict[str, float], got: Counter[str]) -> Iterable[Share]:
    total, cards = sum(weights.values()), sum(got.values()) or 1
    for value in dict.fromkeys((*weights, *got)):
        yield Share(name, value, got[value], weights.get(value, 0.0) / total, got[value] / cards)


def _off(part: str, weights: Mapping[str, float], got: Counter[str]) -> Iterable[str]:
    """The values whose quota gave way, because no table of cells meets all of them."""
    cards, total = sum(got.values()), sum(weights.values())
    for name, weight in weights.items():
        due = cards * weight / total
        if abs(got[name] - due) >= 1:
            yield f"{part} {name}: {got[name]} cards where {due:.1f} are due, the other shares leave no room"


def _pairs(card: Card, world: World) -> list[Pair]:
    level = world.level_of(card)
    if level is None or card.emotion is None or card.outcome is None:
        return []
    cell = (card.domain, card.child.band.value, level, card.outcome)
    return Variant(cell, card.scene or card.scenario or "", card.emotion).pairs()


def _why(pair: Pair, grid: Grid, cards: int) -> str:
    i, j, one, two = pair
    sources = {grid.variants[index].source for index in grid.by_pair[pair]}
    only = f"only {next(iter(sources))} gives it" if len(sources) == 1 else f"{len(sources)} scenes give it"
    return f"{DIMENSIONS[i]} {one} with {DIMENSIONS[j]} {two}: {only}, and none got a turn for it in {cards} cards"


# ── estimates ──
# Prompts were measured on 2026-11-23: means over 200 planned cards of each mode with the Qwen2.5 tokenizer. Replies are
# estimates, from lines of the bank's lengths.


@dataclass(frozen=True)
class CallSize:
    """Estimated tokens: of the prompt without the talk so far, of the reply, and what one exchange adds to the talk."""

    prompt: int
    reply: int
    exchange: int = 0


_SIZES: dict[Lang, dict[str, CallSize]] = {
    "zh": {
        "script": CallSize(1460, 1200),
        "expand": CallSize(1225, 500),
        "single": CallSize(370, 200),
        "general": CallSize(405, 500),
        "outline": CallSize(600, 810),
        "child": CallSize(880, 25, 66),
        "companion": CallSize(1190, 40, 66),
        "repair": CallSize(390, 60, 52),
        "branch": CallSize(345, 50, 52),
    },
    "en": {
        "script": CallSize(1565, 1100),
        "expand": CallSize(1290, 500),
        "single": CallSize(400, 180),
        "general": CallSize(425, 450),
        "outline": CallSize(600, 810),
        "child": CallSize(880, 22, 66),
        "companion": CallSize(1290, 38, 66),
        "repair": CallSize(370, 55, 52),
        "branch": CallSize(378, 45, 52),
    },
}


@dataclass(frozen=True)
class Estimate:
    """`cost` is None without prices. `seconds` is what latency, concurrency and the request limit allow at best."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float


def estimate(
    cards: Iterable[Card],
    price: tuple[float, float] | None = None,
    *,
    concurrency: int = 64,
    latency: float = 3.0,
    rpm: float | None = None,
) -> Estimate:
    """What the cards will ask of a teacher.

    `price` is for a million tokens of prompt and of reply; `latency` is in seconds a call; `rpm` is the provider's limit of
    requests a minute. Retries, and prompt tokens that a provider serves from its cache, are not counted.
    """
    calls = prompt = reply = longest = 0
    for card in cards:
        sizes = list(_calls_of(card))
        calls += len(sizes)
        prompt += sum(size for size, _ in sizes)
        reply += sum(size for _, size in sizes)
        longest = max(longest, len(sizes))
    seconds = max(calls * latency / max(1, concurrency), longest * latency)
    if rpm:
        seconds = max(seconds, calls / rpm * 60)
    cost = None if price is None else (prompt * price[0] + reply * price[1]) / 1e6
    return Estimate(calls, prompt, reply, cost, seconds)


def _calls_of(card: Card) -> Iterable[tuple[int, int]]:
    """(prompt tokens, reply tokens) of every call of a card, in order."""
    sizes = _SIZES[card.lang]
    before = len(card.given.turns) // 2 if card.given else 0
    if card.mode == "roleplay":
        yield sizes["outline"].prompt, sizes["outline"].reply
        for turn in range(card.turns):
            for speaker in ("child", "companion"):
                size = sizes[speaker]
                yield size.prompt + turn * size.exchange, size.reply
    elif card.mode == "repair":
        for at in sorted({hit.turn for hit in card.hits}):
            yield sizes["repair"].prompt + at // 2 * sizes["repair"].exchange, sizes["repair"].reply
    elif card.mode == "branch":
        yield sizes["branch"].prompt + min(before, (card.at or 0) // 2) * sizes["branch"].exchange, sizes["branch"].reply
    else:
        size = sizes["single" if card.mode == "general" and card.turns == 1 else card.mode]
        yield size.prompt, size.reply
