"""Keeps a role-play honest, in code and not in a prompt: what was done, what may be done next, and how the child is.

A child is not cured at once. Distress (0 to 4) falls by one at most, only after a reply that accepted, empathised, named the
feeling or saw to safety, never below 1 before the child's fourth turn, and never below what the outcome of the card leaves.
Advice before any acceptance, or a companion that only asks, again and again, makes it worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Literal

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.collect.card import Card
from qiaoban.conversation import Act

SOOTHING = frozenset({Act.ACCEPT, Act.EMPATHISE, Act.LABEL, Act.SAFEGUARD})
ADVISING = frozenset({Act.EXPLORE, Act.PLAN})
WORST = 4
_FIRST_CALM_TURN = 4  # of the child, from 1
_ACCEPTED_BEFORE_REVEAL = 2
_PATIENCE = 3  # turns of the companion that only ask
_LEFT_BY = {"calmed": 0, "partly": 1, "referred": 1, "left": 1, "unresolved": 2}

Effect = Literal["eased", "unchanged", "hurt"]


@dataclass(kw_only=True)
class Controller:
    """The state of one role-play. `turn` is the child's next turn, from 1."""

    card: Card
    rng: Random
    distress: int = 0
    turn: int = 1
    done: set[Act] = field(default_factory=set)
    accepted: int = 0
    idle: int = 0
    effect: Effect = "unchanged"

    def __post_init__(self) -> None:
        self.distress = self.card.distress

    @property
    def floor(self) -> int:
        """The least distress that is possible now."""
        if self.card.distress == 0:
            return 0
        left = min(_LEFT_BY.get(self.card.outcome or "calmed", 0), self.card.distress)
        return max(left, 1) if self.turn < _FIRST_CALM_TURN else left

    @property
    def allowed(self) -> tuple[Act, ...]:
        """Acts that may come in the companion's next turn, by what has come before."""
        return tuple(act for act, before in _order().items() if not before or self.done & set(before))

    @property
    def not_yet(self) -> tuple[Act, ...]:
        """Acts that have to wait."""
        allowed = self.allowed
        return tuple(act for act in _order() if act not in allowed)

    @property
    def may_reveal(self) -> bool:
        """Whether the child has been accepted often enough to let out what it hides."""
        return self.accepted >= _ACCEPTED_BEFORE_REVEAL

    @property
    def last(self) -> bool:
        """Whether the child's next turn is its last."""
        return self.turn >= self.card.turns

    def beat(self, beats: Sequence[str]) -> str:
        """The beat of the outline that the next turn plays."""
        return beats[min((self.turn - 1) * len(beats) // self.card.turns, len(beats) - 1)]

    def heard(self, acts: Sequence[Act]) -> None:
        """The companion has answered: move on, and let it have its effect."""
        self.turn += 1
        soothes, advises = bool(SOOTHING & set(acts)), bool(ADVISING & set(acts))
        only_asks = bool(acts) and set(acts) <= {Act.NOTICE, Act.INVITE}
        first_ever = not (self.done & SOOTHING)
        self.done |= set(acts)
        self.accepted += soothes
        self.idle = self.idle + 1 if only_asks else self.idle if not acts else 0  # without labels nobody knows
        if self.distress and ((advises and first_ever and not soothes) or self.idle >= _PATIENCE):
            self.distress, self.effect = min(WORST, self.distress + 1), "hurt"
        elif soothes and self.distress > self.floor and self.rng.random() < 0.7:
            self.distress, self.effect = self.distress - 1, "eased"
        else:
            self.effect = "unchanged"


@cache
def _order() -> Mapping[Act, tuple[Act, ...]]:
    """For each act those of which one must have come before."""
    return {entry.id: entry.not_before for entry in load_catalogue().acts}
