"""How a dialogue comes to be: one `async rollout(card, teacher) -> Conversation` for each mode.

A rollout is a pure function of its card and of the answers it gets, so that after a crash the answers that are stored lead to
the same place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from qiaoban.collect.card import Card, Mode
from qiaoban.collect.rollouts import branch, expand, general, repair, roleplay, script
from qiaoban.collect.rollouts.studio import Studio
from qiaoban.conversation import Conversation

Rollout = Callable[[Card, Studio], Awaitable[Conversation]]

ROLLOUTS: Mapping[Mode, Rollout] = {
    "script": script.rollout,
    "roleplay": roleplay.rollout,
    "expand": expand.rollout,
    "general": general.rollout,
    "repair": repair.rollout,
    "branch": branch.rollout,
}
