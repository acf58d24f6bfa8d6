"""Talks written as one line, the way the examples of the rules are: `child: … | companion: …` without the gaps."""

from __future__ import annotations

import re

from qiaoban.conversation import Conversation, Lang, Meta, Role, Turn

_ROLES: dict[str, Role] = {"孩子": "user", "child": "user", "七巧板": "assistant", "companion": "assistant"}
_BAND = re.compile(r"^\[([\d-]+)\] ")  # before the first speaker, for the rules that go by age
_CUT = re.compile(r"\|(?=(?:孩子|七巧板)：|(?:child|companion):)")


def parse_talk(line: str, *, lang: Lang | None = None, name: str = "talk", **about: str | None) -> Conversation:
    """The turns of `line`; the speaker stands before the first colon, and `[6-8] ` before all, where the age matters."""
    turns = []
    if band := _BAND.match(line):
        about = {"age_band": band[1], **about}
    for part in _CUT.split(_BAND.sub("", line)):
        speaker, said = re.split("[：:]", part, maxsplit=1)
        turns.append(Turn(role=_ROLES[speaker], content=said[1:] if speaker.isascii() else said))
    return Conversation(id=name, turns=tuple(turns), meta=Meta.model_validate({"lang": lang, **about}))


def language(line: str) -> Lang:
    """The language of the speaker's name."""
    return "en" if _BAND.sub("", line).startswith(("child", "companion")) else "zh"
