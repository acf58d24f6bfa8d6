"""What a teacher's answer says, or why it cannot be used. Nothing is guessed: what cannot be read is asked for again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qiaoban.conversation import Act, Turn, explain

_THINKING = re.compile(r"\A.*?</think>|\A\s*<think>.*\Z", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_TAGS = re.compile(r"\A\s*[\[［【]([A-Za-z,，、|/\s]*)[\]］】]\s*(.*)\Z", re.DOTALL)
Speaker = Literal["child", "companion"]
_SPEAKERS: Mapping[Speaker, tuple[str, ...]] = {
    "child": ("孩子", "小朋友", "child"),
    "companion": ("七巧板", "智能助手", "助手", "陪伴者", "qiaoban", "assistant", "companion"),
}
_ROLE_OF = {name: role for role, names in _SPEAKERS.items() for name in names}
_LINE = re.compile(r"\A\s*[*_]*(?P<who>[^\s:：*_]{1,12})[*_]*\s*[:：][*_]*\s*(?P<text>.*)\Z", re.DOTALL)
_LEAK = re.compile(rf"(?:^|\n)\s*[*_]*(?:{'|'.join(_ROLE_OF)})[*_]*\s*[:：]", re.IGNORECASE)
_WHOLE = ("stop", "eos", "end_turn", None)  # ways to end that are an end
_NOTES = re.compile(r"【(?:导演|只给你看)】|\[(?:Director|For you only)\]", re.IGNORECASE)
_WORD = re.compile(r"\w")
_QUOTES = (("“", "”"), ('"', '"'), ("「", "」"))
Model = TypeVar("Model", bound=BaseModel)


class BadReplyError(Exception):
    """An answer was paid for and cannot be used. `fault` is one word to count by; the message says what was wrong."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def content_of(raw: str) -> str:
    """The words of a chat completion without a thinking part. Raises `BadReplyError` for a cut, filtered or empty one."""
    try:
        choice = json.loads(raw)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        raise BadReplyError("empty", "there was no message in it") from None
    if finish == "length":
        raise BadReplyError("length", "it was cut off at the longest length")
    if finish == "content_filter" or refusal:
        raise BadReplyError("content_filter", "it was filtered or refused")
    if finish not in _WHOLE:
        raise BadReplyError("cut_off", f"it ended with {finish!r}")
    if isinstance(content, list):  # content parts, of which some models make thinking one
        content = "".join(
            str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text"
        )
    text = _THINKING.sub("", str(content or "")).strip()
    if not text:
        raise BadReplyError("empty", "it was empty")
    return _whole(text)


def json_of(text: str) -> Any:
    """The JSON in an answer, also where it stands in a fenced block or between sentences."""
    fenced = _FENCE.search(text)
    inner = fenced[1] if fenced else text
    start, end = inner.find("{"), inner.rfind("}")
    try:
        return json.loads(inner[start : end + 1]) if 0 <= start < end else json.loads(inner)
    except (ValueError, RecursionError) as error:
        raise BadReplyError("bad_json", f"it was not JSON ({error})") from None


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
    return _validated(_Outlines, json_of(text)).outlines


def script_of(text: str) -> tuple[Turn, ...]:
    """The turns of a dialogue in JSON."""
    lines = _validated(_Script, json_of(text)).turns
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


def _whole(text: str) -> str:
    """Half of a surrogate pair can neither be kept nor sent to anybody."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadReplyError("half_a_character", "it had half of a character in it") from None
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


def _validated(kind: type[Model], value: Any) -> Model:
    _whole(json.dumps(value, ensure_ascii=False))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise BadReplyError("wrong_json", explain(error, kind)) from None
