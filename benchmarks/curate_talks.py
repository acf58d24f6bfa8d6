"""Dialogues for measuring: lines of ours recombined by a seed, in both languages, with planted duplicates and faults."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from qiaoban.conversation import Act, AgeBand, Conversation, Emotion, Lang, Meta, Role, Turn

# Of every thousand talks, so many are planted; the rest are drawn afresh.
EXACT, NEAR, BAD, PRIVATE, TESTED = 15, 25, 60, 10, 5
HELD_OUT = 100  # texts of each language in the test set that TESTED talks have learnt
_REMEMBERED = 4000  # talks that may be repeated, so that memory does not grow with the count
_SLOT = re.compile(r"\{(\w+)\}")
_GLUE: dict[Lang, str] = {"zh": "，", "en": ", "}
_GAP: dict[Lang, str] = {"zh": "", "en": " "}
_END: dict[Lang, str] = {"zh": "。", "en": "."}


class Planted(NamedTuple):
    """A talk, and the id of the one that it repeats, if it does."""

    talk: Conversation
    like: str | None


@cache
def _lines(lang: Lang) -> dict[str, list[str]]:
    table: dict[str, dict[str, list[str]]] = tomllib.loads(Path(__file__).with_name("curate_lines.toml").read_text("utf-8"))
    return table[lang]


def _fill(line: str, lang: Lang, dice: random.Random) -> str:
    numbers = {"mobile": (11, "139"), "digits": (6, ""), "number": (4, "")}

    def word(slot: re.Match[str]) -> str:
        if slot[1] not in numbers:
            how = dice.choice(_lines(lang).get(f"how_{slot[1]}", [""]))
            gap = _GAP[lang] if how else ""
            return how + gap + dice.choice(_lines(lang)[slot[1]])
        size, head = numbers[slot[1]]
        return head + str(dice.randrange(10 ** (size - len(head) - 1), 10 ** (size - len(head))))

    return _SLOT.sub(word, line)


def _say(kind: str, parts: int, lang: Lang, dice: random.Random) -> str:
    return _GLUE[lang].join(_fill(line, lang, dice) for line in dice.sample(_lines(lang)[kind], parts)) + _END[lang]


def _fresh(name: str, dice: random.Random) -> Conversation:
    """A talk of six to twelve turns, two thirds of them Chinese."""
    lang: Lang = "zh" if dice.random() < 2 / 3 else "en"
    turns: list[Turn] = []
    for _ in range(dice.randint(3, 6)):
        turns.append(Turn(role="user", content=_say("child", dice.choice((1, 1, 2)), lang, dice)))
        acts = tuple(dice.sample((Act.NOTICE, Act.ACCEPT, Act.EMPATHISE, Act.EXPLORE), dice.choice((1, 2))))
        turns.append(Turn(role="assistant", content=_say("companion", dice.choice((1, 2, 2, 3)), lang, dice), acts=acts))
    meta = Meta(lang=lang, age_band=dice.choice(tuple(AgeBand)), emotion=dice.choice(tuple(Emotion)))
    return Conversation(id=name, turns=tuple(turns), meta=meta)


def _saying(talk: Conversation, role: Role, said: str, dice: random.Random) -> Conversation:
    """`talk` with another text in one turn of `role`, behind the opening."""
    at = dice.choice([place for place, turn in enumerate(talk.turns) if turn.role == role and place > 1])
    turns = (turn.model_copy(update={"content": said}) if n == at else turn for n, turn in enumerate(talk.turns))
    return talk.model_copy(update={"turns": tuple(turns)})


def held_out(seed: int = 0) -> dict[Lang, list[str]]:
    """A test set: things that a child says first."""
    dice = random.Random(f"held-out {seed}")
    langs: tuple[Lang, ...] = ("zh", "en")
    return {lang: [_say("child", 3, lang, dice) for _ in range(HELD_OUT)] for lang in langs}


def _spoilt(talk: Conversation, lot: int, tests: dict[Lang, list[str]], dice: random.Random) -> Conversation:
    """A talk with the fault that falls to `lot`, if one does: against the rules, personal data, a text of the test set."""
    lang: Lang = talk.meta.lang or "zh"
    if lot < BAD:
        return _saying(talk, "assistant", dice.choice(_lines(lang)["bad"]), dice)
    if lot < BAD + PRIVATE:
        return _saying(talk, "user", _fill(dice.choice(_lines(lang)["private"]), lang, dice), dice)
    if lot < BAD + PRIVATE + TESTED:
        return _saying(talk, "assistant", dice.choice(tests[lang]), dice)
    return talk


def planted(count: int, seed: int = 0) -> Iterator[Planted]:
    """`count` talks; a repeated one is the same but for its id (EXACT) and one turn of the child (NEAR)."""
    dice, tests = random.Random(seed), held_out(seed)
    recent: list[Conversation] = []
    for number in range(count):
        name, lot = f"t{number:07}", dice.randrange(1000)
        if recent and lot < EXACT + NEAR:
            old = dice.choice(recent)
            again = old.model_copy(update={"id": name})
            lang: Lang = old.meta.lang or "zh"
            yield Planted(again if lot < EXACT else _saying(again, "user", _say("child", 1, lang, dice), dice), old.id)
            continue
        talk = _spoilt(_fresh(name, dice), lot - EXACT - NEAR if lot >= EXACT + NEAR else 1000, tests, dice)
        if len(recent) < _REMEMBERED:
            recent.append(talk)
        else:
            recent[dice.randrange(_REMEMBERED)] = talk
        yield Planted(talk, None)
