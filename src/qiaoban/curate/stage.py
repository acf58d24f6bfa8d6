"""What every curation stage gives: talks to keep and talks to leave out, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qiaoban.conversation import Conversation


@dataclass(frozen=True)
class Dropped:
    """A talk that a stage leaves out: why (a fixed word such as `near_dialogue`), and with what evidence."""

    id: str
    reason: str
    detail: str = ""


Outcome = Conversation | Dropped


def kept(outcomes: Iterable[Outcome], dropped: list[Dropped]) -> Iterator[Conversation]:
    """The talks that go on to the next stage; the others are appended to `dropped`."""
    for each in outcomes:
        if isinstance(each, Dropped):
            dropped.append(each)
        else:
            yield each
