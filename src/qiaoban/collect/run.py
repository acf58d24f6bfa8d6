"""The files of one collection: the plan that it works off, the ledger, and the results at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiaoban.collect.card import Card, read_plan
from qiaoban.collect.rollouts import ROLLOUTS
from qiaoban.collect.rollouts.studio import Studio
from qiaoban.conversation import Conversation, parse_conversation
from qiaoban.errors import DataError
from qiaoban.files import write_atomically
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.work import open_items


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one collection lie."""

    path: Path

    @property
    def plan(self) -> Path:
        """The cards."""
        return self.path / "plan.jsonl"

    @property
    def ledger(self) -> Path:
        """Every paid call and every finished dialogue."""
        return self.path / "ledger.sqlite"

    @property
    def dialogues(self) -> Path:
        """The finished dialogues, in the order of the plan."""
        return self.path / "dialogues.jsonl"

    @property
    def failed(self) -> Path:
        """Cards without a dialogue, with the reason."""
        return self.path / "failed.jsonl"

    @property
    def pairs(self) -> Path:
        """Preference pairs of `branch` cards."""
        return self.path / "pairs.jsonl"

    @property
    def topics(self) -> Path:
        """Copies of the user's own topic files."""
        return self.path / "topics"

    @property
    def lock(self) -> Path:
        """Held while a run writes."""
        return self.path / ".run.lock"


def count_cards(plan: Path) -> int:
    """Non-blank lines of a plan. `DataError` where there is no plan or nothing in it."""
    if not plan.exists():
        raise DataError("there is no plan", path=plan, hint="make one with `qiaoban collect plan`")
    with plan.open("rb") as file:
        count = sum(1 for line in file if line.strip())
    if count == 0:
        raise DataError("the plan is empty", path=plan, hint="make one with `qiaoban collect plan`")
    return count


def open_cards(plan: Path, ledger: Ledger) -> Iterator[Card]:
    """The cards that are neither done nor failed. `DataError` where a settled card has changed, or an id stands twice."""
    return open_items(read_plan(plan), ledger, plan)


async def settle(card: Card, studio: Studio) -> str:
    """The dialogue of a card, as a line of JSON."""
    return (await ROLLOUTS[card.mode](card, studio)).to_json()


def write_results(folder: RunFolder, ledger: Ledger) -> dict[str, int]:
    """Write `dialogues.jsonl`, `failed.jsonl` and, for `branch` cards alone, `pairs.jsonl`; returns how many each holds."""
    counts = {"dialogues": 0, "pairs": 0, "failed": 0}
    with write_atomically(folder.dialogues) as file, write_atomically(folder.pairs) as pairs:
        for card in read_plan(folder.plan):
            if (record := ledger.record(card.id)) is None:
                continue
            if card.mode == "branch":  # a reply that fails on purpose must never stand among dialogues
                pairs.write(json.dumps(pair(card, parse_conversation(record)), ensure_ascii=False).encode() + b"\n")
                counts["pairs"] += 1
            else:
                file.write(record.encode() + b"\n")
                counts["dialogues"] += 1
    if not counts["pairs"]:
        folder.pairs.unlink()
    with write_atomically(folder.failed) as file:
        for card_id, reason in ledger.failures():
            file.write(json.dumps({"id": card_id, "reason": reason}, ensure_ascii=False).encode() + b"\n")
            counts["failed"] += 1
    if not counts["failed"]:
        folder.failed.unlink()
    return counts


def pair(card: Card, talk: Conversation) -> dict[str, Any]:
    """A preference pair as TRL reads it: the reply that was there is chosen, the one that failed on purpose rejected."""
    if card.given is None or card.at is None:
        raise DataError(f"card {card.id!r} is no branch")

    def said(turn: Any) -> dict[str, str]:
        return {"role": turn.role, "content": turn.content}

    return {
        "id": card.id,
        "prompt": [said(turn) for turn in talk.turns[:-1]],
        "chosen": [said(card.given.turns[card.at])],
        "rejected": [said(talk.turns[-1])],
        "pair_type": card.factor,
        "lang": card.lang,
    }
