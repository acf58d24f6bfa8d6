"""The outlines, dialogues and turns in a teacher's answers. Nothing is guessed: what cannot be read is asked for again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qiaoban.conversation import Act, Turn
from qiaoban.teacher.answers import BadReplyError, json_of, validated

_TAGS = re.compile(r"\A\s*[\[［【]([A-Za-z,，、|/\s]*)[\]］】]\s*(.*)\Z", re.DOTALL)
Speaker = Literal["child", "companion"]
_SPEAKERS: Mapping[Speaker, tuple[str, ...]] = {
    "child": ("孩子", "小朋友", "child"),
    "companion": ("七巧板", "智能助手", "助手", "陪伴者", "qiaoban", "assistant", "companion"),
}
_ROLE_OF = {name: role for role, names in _SPEAKERS.items() for name in names}
_LINE = re.compile(r"\A\s*[*_]*(?P<who>[^\s:：*_]{1,12})[*_]*\s*[:：][*_]*\s*(?P<text>.*)\Z", re.DOTALL)
_LEAK = re.compile(rf"(?:^|\n)\s*[*_]*(?:{'|'.join(_ROLE_OF)})[*_]*\s*[:：]", re.IGNORECASE)
_NOTES = re.compile(r"【(?:导演|只给你看)】|\[(?:Director|For you only)\]", re.IGNORECASE)
_WORD = re.compile(r"\w")
_QUOTES = (("“", "”"), ('"', '"'), ("「", "」"))


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Outline(_Strict):
    """What happens in one dialogue, as the teacher made it up."""

    p: float = Field(default=0.5, ge=0, le=1)
    incident: str = Field(min_length=1)
    hides: str = ""
    beats: tuple[str, ...] = Field(min_length=1)
    worse: str = ""
    detail: str = ""


class _Outlines(_Strict):
    outlines: tuple[Outline, ...] = Field(min_length=1)


class _Line(_Strict):
    s: str
    t: str = Field(min_length=1)
    d: int | None = Field(default=None, ge=0, le=4)
    a: tuple[str, ...] = ()


class _Script(_Strict):
    turns: tuple[_Line, ...] = Field(min_length=2)


def outlines_of(text: str) -> tuple[Outline, ...]:
    """The outlines in an answer."""
    return validated(_Outlines, json_of(text)).outlines


def script_of(text: str) -> tuple[Turn, ...]:
    """The turns of a dialogue in JSON."""
    lines = validated(_Script, json_of(text)).turns
    return dialogue([Turn(role=_role(line.s), content=line.t.strip(), distress=line.d, acts=acts_of(line.a)) for line in lines])


def lines_of(text: str) -> tuple[Turn, ...]:
    """The turns of a dialogue in plain lines, as `孩子：…`; lines without a speaker belong to the one before."""
    turns: list[Turn] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        found = _LINE.match(line)
        role = _ROLE_OF.get(found["who"].lower()) if found else None
        if found and role:
            turns.append(Turn(role=_role(role), content=found["text"]))
        elif turns:
            turns[-1] = turns[-1].model_copy(update={"content": f"{turns[-1].content}\n{line}".strip()})
    return dialogue(turns)


def dialogue(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns that alternate, the child's first; neighbours of one role are joined. `BadReplyError` where that is no dialogue."""
    joined: list[Turn] = []
    for turn in turns:
        if not turn.content.strip():
            raise BadReplyError("empty_turn", "a turn was empty")
        if joined and joined[-1].role == turn.role:
            acts = joined[-1].acts + tuple(act for act in turn.acts if act not in joined[-1].acts)
            text = f"{joined[-1].content}\n{turn.content}"
            joined[-1] = joined[-1].model_copy(update={"content": text, "acts": acts})
        else:
            joined.append(turn)
    if len(joined) < 2 or joined[0].role != "user":
        raise BadReplyError("no_dialogue", "the child did not speak first, or nobody answered")
    for turn in joined:
        check_words(turn.content, "child" if turn.role == "user" else "companion")
    return tuple(joined)


def tagged(text: str, *, said: Sequence[str] = (), asked: str = "") -> tuple[tuple[Act, ...], str]:
    """Acts and words of a companion's `[ACT, ACT] words`. Without tags there are no acts: it is kept, to be labelled later.

    `asked` is the text of the question: an example that stands in it is no answer.
    """
    acts: tuple[Act, ...] = ()
    text = _unquoted(_unnamed(text, "companion"))
    if found := _TAGS.match(text):
        acts, text = acts_of(re.split(r"[,，、|/\s]+", found[1])), found[2]
    words = spoken(text, "companion", said=said)
    if words in asked:
        raise BadReplyError("copied", "it was the example of the question")
    return acts, words


def spoken(text: str, speaker: Speaker = "child", *, name: str = "", said: Sequence[str] = ()) -> str:
    """The words of one turn, without the speaker's name before them and quotation marks around them.

    `name` is another name of the speaker; `said` are turns that were said before, which nobody says again word for word.
    """
    text = _unquoted(_unnamed(text, speaker, name))
    check_words(text, speaker)
    if text in said:
        raise BadReplyError("repeated", "it had been said before, word for word")
    return text


def _unnamed(text: str, speaker: Speaker, name: str = "") -> str:
    line = _LINE.match(text)
    if line and line["who"].lower() in (name.lower(), *_SPEAKERS[speaker]):
        text = line["text"]
    return text.strip()


def _unquoted(text: str) -> str:
    """Without quotation marks that stand around the whole and nowhere inside."""
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text.startswith(first) and text.endswith(last) and not {first, last} & set(inner):
            return inner.strip()
    return text


def check_words(text: str, speaker: Speaker) -> None:
    """`BadReplyError` where a turn is empty, or goes on to speak for the other. Only a child says "……"."""
    if not text.strip() or (speaker == "companion" and not _WORD.search(text)):
        raise BadReplyError("empty_turn", "there were no words")
    if _LEAK.search(text):
        raise BadReplyError("role_leak", "it spoke for both")
    if _NOTES.search(text):
        raise BadReplyError("note_leak", "it said the private note aloud")


def acts_of(names: Sequence[str]) -> tuple[Act, ...]:
    """The acts among `names`, once each; what is no act is a fault."""
    wanted = [name.strip().upper() for name in names if name.strip()]
    if unknown := [name for name in wanted if name not in Act.__members__]:
        raise BadReplyError("unknown_act", f"{unknown[0]!r} is no act")
    return tuple(Act[name] for name in dict.fromkeys(wanted))


def _role(speaker: str) -> Any:
    role = _ROLE_OF.get(speaker.strip().lower())
    if role is None:
        raise BadReplyError("unknown_speaker", f"{speaker!r} is neither the child nor the companion")
    return "user" if role == "child" else "assistant"
