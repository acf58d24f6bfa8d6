"""Preference pairs: the form that `qiaoban collect` writes, TRL's (paired, and judged one by one for KTO), LLaMA-Factory's two.

TRL: https://huggingface.co/docs/trl/dataset_formats; LLaMA-Factory: data/README.md of its repository.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import Lang, Text, Turn
from qiaoban.formats.chat import ROLE_TAGS, SHAREGPT, messages_of, read_message, read_messages
from qiaoban.formats.record import CannotHoldError, Format, Notes, Record, note_ignored
from qiaoban.formats.store import save_array, save_lines

_WAITING = 10_000  # judged replies whose counterpart has not come yet
_LABELS = frozenset(["id", "pair_type", "lang"])


class Pair(BaseModel):
    """Two replies to one talk, the better and the worse. `pair_type` says in what they differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    prompt: tuple[Turn, ...] = Field(min_length=1)
    chosen: tuple[Turn, ...] = Field(min_length=1)
    rejected: tuple[Turn, ...] = Field(min_length=1)
    pair_type: Text | None = None
    lang: Lang | None = None

    def row(self) -> dict[str, Any]:
        """The form on disk of `qiaoban collect`."""
        sides = {side: messages_of(turns) for side, turns in self.sides().items()}
        return {"id": self.id, **sides, "pair_type": self.pair_type, "lang": self.lang}

    def sides(self) -> dict[str, tuple[Turn, ...]]:
        """Prompt, chosen and rejected."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


class Judged(BaseModel):
    """One reply and whether it is a good one: half of a pair."""

    model_config = ConfigDict(frozen=True)

    prompt: tuple[Turn, ...]
    reply: tuple[Turn, ...]
    good: bool


def pair_id(prompt: Iterable[Turn], chosen: Iterable[Turn], rejected: Iterable[Turn]) -> str:
    """16 hexadecimal digits that the words decide."""
    said = json.dumps([messages_of(tuple(part)) for part in (prompt, chosen, rejected)], ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def match(items: Iterable[Pair | Judged], notes: Notes) -> Iterator[Pair]:
    """Pairs as they are, and judged replies put together: a good one with a bad one to the same prompt.

    A reply waits for its counterpart while no more than some thousands wait; what stays alone is counted.
    """
    waiting: dict[tuple[str, bool], list[Judged]] = {}
    count = 0
    for item in items:
        if isinstance(item, Pair):
            yield item
            continue
        key = pair_id(item.prompt, (), ())
        if others := waiting.get((key, not item.good)):
            other = others.pop(0)
            count -= 1
            if not others:
                del waiting[key, not item.good]
            good, bad = (item, other) if item.good else (other, item)
            name = pair_id(item.prompt, good.reply, bad.reply)
            yield Pair(id=name, prompt=item.prompt, chosen=good.reply, rejected=bad.reply)
            continue
        waiting.setdefault((key, item.good), []).append(item)
        count += 1
        if count > _WAITING:
            oldest = next(iter(waiting))
            gone = len(waiting.pop(oldest))
            count -= gone
            notes["replies without a counterpart"] += gone
    if count:
        notes["replies without a counterpart"] += count


def count_lost(pair: Pair, keeps: frozenset[str], lost: Counter[str]) -> None:
    """Count what a format that keeps only `keeps` drops of a pair."""
    own = pair.id != pair_id(pair.prompt, pair.chosen, pair.rejected)
    lost["id"] += "id" not in keeps and own
    lost["pair_type"] += "pair_type" not in keeps and pair.pair_type is not None
    lost["lang"] += "lang" not in keeps and pair.lang is not None


def _side(record: Record, row: Mapping[str, Any], key: str, notes: Notes) -> tuple[Turn, ...]:
    """A list of messages, or plain text: a question in the prompt, else a reply."""
    value = record.need(row, key)
    if isinstance(value, str):
        return (Turn(role="user" if key == "prompt" else "assistant", content=record.words(value, key)),)
    if isinstance(value, Mapping):
        return (read_message(record, value, key, notes),)
    return tuple(read_messages(record, value, key, notes))


def _pair(record: Record, row: Mapping[str, Any], sides: Sequence[tuple[Turn, ...]], notes: Notes, prompt_key: str) -> Pair:
    prompt, chosen, rejected = sides
    note_ignored(row, ("id", prompt_key, "chosen", "rejected", "pair_type", "lang", "system"), notes)
    return Pair(
        id=record.name(row.get("id"), ()) if row.get("id") not in (None, "") else pair_id(prompt, chosen, rejected),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        pair_type=record.optional(row.get("pair_type"), "pair_type"),
        lang=row.get("lang"),
    )


def _read_pair(record: Record, notes: Notes) -> Pair:
    row = record.fields()
    chosen, rejected = _side(record, row, "chosen", notes), _side(record, row, "rejected", notes)
    if "prompt" in row:
        prompt = _side(record, row, "prompt", notes)
        if isinstance(row["prompt"], str) and chosen[:1] == rejected[:1] == prompt and min(len(chosen), len(rejected)) > 1:
            chosen, rejected = chosen[1:], rejected[1:]  # as UltraFeedback has it: the question stands again in both sides
        return _pair(record, row, (prompt, chosen, rejected), notes, "prompt")
    same = 0  # TRL's implicit prompt: both sides tell the talk from its start
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if not same:
        raise record.error("there is no key 'prompt', and chosen and rejected do not start alike")
    return _pair(record, row, (chosen[:same], chosen[same:], rejected[same:]), notes, "prompt")


def _read_judged(record: Record, notes: Notes) -> Judged:
    row = record.fields()
    label = record.need(row, next((key for key in ("label", "kto_tag") if key in row), "label"))
    if not isinstance(label, bool):
        raise record.error(f"label: true or false is wanted (found {label!r})")
    note_ignored(row, ("prompt", "completion", "messages", "label", "kto_tag"), notes)
    if "messages" in row:
        turns = _side(record, row, "messages", notes)
        if len(turns) < 2:
            raise record.error("messages: a question and a reply are wanted")
        return Judged(prompt=turns[:-1], reply=turns[-1:], good=label)
    return Judged(prompt=_side(record, row, "prompt", notes), reply=_side(record, row, "completion", notes), good=label)


def _read_ranking(record: Record, notes: Notes) -> Pair:
    row = record.fields()
    prompt, chosen, rejected = (_side(record, row, key, notes) for key in ("conversations", "chosen", "rejected"))
    if system := record.optional(row.get("system"), "system"):
        prompt = (Turn(role="system", content=system), *prompt)
    return _pair(record, row, (prompt, chosen, rejected), notes, "conversations")


def _own(pair: Pair | Judged) -> Pair:
    if isinstance(pair, Judged):
        raise TypeError("half of a pair cannot be written")
    return pair


def _write_trl(item: Pair | Judged, lost: Counter[str]) -> list[Any]:
    return [{side: messages_of(turns) for side, turns in _own(item).sides().items()}]


def _write_trl_kto(item: Pair | Judged, lost: Counter[str]) -> list[Any]:
    pair = _own(item)
    prompt = messages_of(pair.prompt)
    sides = ((pair.chosen, True), (pair.rejected, False))
    return [{"prompt": prompt, "completion": messages_of(reply), "label": good} for reply, good in sides]


def _single(pair: Pair, lost: Counter[str]) -> tuple[Turn, Turn]:
    """Both replies as one message each, as LLaMA-Factory has it. It skips without an error a talk that does not alternate."""
    if len(pair.chosen) > 1 or len(pair.rejected) > 1:
        raise CannotHoldError("a side has several turns")
    if pair.chosen[0].role != "assistant" or pair.rejected[0].role != "assistant":
        raise CannotHoldError("a side is no reply of the assistant")
    said = pair.prompt[1:] if pair.prompt[0].role == "system" else pair.prompt
    if len(said) % 2 == 0 or any(t.role != ("user", "assistant")[n % 2] for n, t in enumerate(said)):
        raise CannotHoldError("the prompt does not alternate from user to user, and LLaMA-Factory would skip it")
    return pair.chosen[0], pair.rejected[0]


def _write_ranking(item: Pair | Judged, lost: Counter[str]) -> list[Any]:
    pair = _own(item)
    chosen, rejected = _single(pair, lost)
    talk = [{"from": SHAREGPT[turn.role], "value": turn.content} for turn in pair.prompt]
    sides = {"chosen": chosen, "rejected": rejected}
    return [{"conversations": talk} | {k: {"from": SHAREGPT[t.role], "value": t.content} for k, t in sides.items()}]


def _write_ranking_kto(item: Pair | Judged, lost: Counter[str]) -> list[Any]:
    pair = _own(item)
    sides = zip(_single(pair, lost), (True, False), strict=True)
    return [{"messages": messages_of([*pair.prompt, reply]), "label": good} for reply, good in sides]


PAIRS: Format[Pair | Judged] = Format(
    name="pairs",
    about='JSON lines {"id", "prompt", "chosen", "rejected", "pair_type", "lang"}, as `qiaoban collect` writes them',
    looks=lambda row: {"prompt", "chosen", "rejected", "pair_type"} <= row.keys(),
    decode=_read_pair,
    encode=lambda item, lost: [_own(item).row()],
    save=save_lines,
    keeps=_LABELS,
)
TRL: Format[Pair | Judged] = Format(
    name="trl",
    about='JSON lines {"prompt", "chosen", "rejected"} of messages, for DPO with TRL',
    looks=lambda row: {"chosen", "rejected"} <= row.keys() and "conversations" not in row and "instruction" not in row,
    decode=_read_pair,
    encode=_write_trl,
    save=save_lines,
)
TRL_KTO: Format[Pair | Judged] = Format(
    name="trl-kto",
    about='JSON lines {"prompt", "completion", "label"}, for KTO with TRL',
    looks=lambda row: {"prompt", "completion", "label"} <= row.keys(),
    decode=_read_judged,
    encode=_write_trl_kto,
    save=save_lines,
)
LLAMAFACTORY: Format[Pair | Judged] = Format(
    name="llamafactory",
    about='a JSON array or lines {"conversations", "chosen", "rejected"}, for DPO with LLaMA-Factory',
    looks=lambda row: {"conversations", "chosen", "rejected"} <= row.keys(),
    decode=_read_ranking,
    encode=_write_ranking,
    save=save_array,
    info={
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
)
LLAMAFACTORY_KTO: Format[Pair | Judged] = Format(
    name="llamafactory-kto",
    about='a JSON array or lines {"messages", "label"}, for KTO with LLaMA-Factory',
    looks=lambda row: "messages" in row and bool(row.keys() & {"label", "kto_tag"}),
    decode=_read_judged,
    encode=_write_ranking_kto,
    save=save_array,
    info={"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}, "tags": ROLE_TAGS},
)
