"""The one data type: a `Conversation` of `Turn`s, and its JSONL form.

On disk a conversation is one JSON object a line: `messages` holds strictly what every chat tool reads (role, content) and
`turns`, of the same length, holds what only Qiaoban knows (acts, emotion, distress). In memory both are one `Turn`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qiaoban.errors import DataError
from qiaoban.files import write_lines

Role = Literal["system", "user", "assistant"]
Lang = Literal["zh", "en"]
Model = TypeVar("Model", bound=BaseModel)


class Act(StrEnum):
    """What a companion turn does, after emotion coaching (Gottman, Katz & Hooven 1996)."""

    NOTICE = "NOTICE"  # picks up that there is a feeling
    INVITE = "INVITE"  # opens the door to tell more
    ACCEPT = "ACCEPT"  # the feeling is allowed
    EMPATHISE = "EMPATHISE"  # shows how it must feel from inside
    LABEL = "LABEL"  # gives the feeling a word
    LIMIT = "LIMIT"  # every feeling is fine, not every deed
    EXPLORE = "EXPLORE"  # looks for what the child could try, the child's own idea first
    PLAN = "PLAN"  # settles one next step
    SAVOUR = "SAVOUR"  # stays with a good feeling
    SAFEGUARD = "SAFEGUARD"  # safety question, trusted adult, help line
    REDIRECT = "REDIRECT"  # declines warmly and offers what is possible
    CLOSE = "CLOSE"  # a clean goodbye


class Emotion(StrEnum):
    """Leaves of the emotion tree; `family` names the branch."""

    HAPPY = "happy"
    EXCITED = "excited"
    PROUD = "proud"
    AMUSED = "amused"
    GRATEFUL = "grateful"
    HOPEFUL = "hopeful"
    RELIEVED = "relieved"
    CALM = "calm"
    LOVED = "loved"
    BELONGING = "belonging"
    CARING = "caring"
    ADMIRING = "admiring"
    SAD = "sad"
    LONELY = "lonely"
    DISAPPOINTED = "disappointed"
    GRIEVING = "grieving"
    HOMESICK = "homesick"
    HURT = "hurt"
    LEFT_OUT = "left_out"
    HELPLESS = "helpless"
    ANGRY = "angry"
    FRUSTRATED = "frustrated"
    ANNOYED = "annoyed"
    WRONGED = "wronged"
    JEALOUS = "jealous"
    AFRAID = "afraid"
    WORRIED = "worried"
    NERVOUS = "nervous"
    PANICKED = "panicked"
    INSECURE = "insecure"
    ASHAMED = "ashamed"
    EMBARRASSED = "embarrassed"
    GUILTY = "guilty"
    INFERIOR = "inferior"
    SURPRISED = "surprised"
    CONFUSED = "confused"
    CURIOUS = "curious"
    DISGUSTED = "disgusted"
    BORED = "bored"
    TIRED = "tired"
    OVERWHELMED = "overwhelmed"
    NUMB = "numb"

    @property
    def family(self) -> str:
        """One of joy, love, sadness, anger, fear, shame, surprise, aversion."""
        return _FAMILY_OF[self]


EMOTION_FAMILIES: dict[str, tuple[Emotion, ...]] = {
    "joy": tuple(Emotion(e) for e in ["happy", "excited", "proud", "amused", "grateful", "hopeful", "relieved", "calm"]),
    "love": tuple(Emotion(e) for e in ["loved", "belonging", "caring", "admiring"]),
    "sadness": tuple(
        Emotion(e) for e in ["sad", "lonely", "disappointed", "grieving", "homesick", "hurt", "left_out", "helpless"]
    ),
    "anger": tuple(Emotion(e) for e in ["angry", "frustrated", "annoyed", "wronged", "jealous"]),
    "fear": tuple(Emotion(e) for e in ["afraid", "worried", "nervous", "panicked", "insecure"]),
    "shame": tuple(Emotion(e) for e in ["ashamed", "embarrassed", "guilty", "inferior"]),
    "surprise": tuple(Emotion(e) for e in ["surprised", "confused", "curious"]),
    "aversion": tuple(Emotion(e) for e in ["disgusted", "bored", "tired", "overwhelmed", "numb"]),
}
_FAMILY_OF = {leaf: family for family, leaves in EMOTION_FAMILIES.items() for leaf in leaves}


class Category(StrEnum):
    """Kinds of risk, from the child-safety specification."""

    SELF_HARM = "self_harm"
    SUICIDE = "suicide"
    PHYSICAL_ABUSE = "physical_abuse"
    SEXUAL_ABUSE = "sexual_abuse"
    GROOMING_ONLINE = "grooming_online"
    NEGLECT = "neglect"
    DOMESTIC_VIOLENCE = "domestic_violence"
    BULLYING = "bullying"
    VIOLENCE_TO_OTHERS = "violence_to_others"
    EATING_DISORDER = "eating_disorder"
    RUNNING_AWAY = "running_away"
    DANGEROUS_ACT = "dangerous_act"
    MEDICAL_EMERGENCY = "medical_emergency"
    SUBSTANCE = "substance"
    SEXUAL_CONTENT = "sexual_content"
    PII_SHARING = "pii_sharing"
    SECRET_KEEPING = "secret_keeping"  # noqa: S105 - not a password
    OVER_RELIANCE_ON_AI = "over_reliance_on_ai"
    HATE_INSULT = "hate_insult"
    PROMPT_INJECTION = "prompt_injection"
    BENIGN = "benign"


class AgeBand(StrEnum):
    """Bands in years. The product serves 6–17; the corpus holds 5–17."""

    B3_5 = "3-5"
    B6_8 = "6-8"
    B9_11 = "9-11"
    B12_14 = "12-14"
    B15_17 = "15-17"

    @classmethod
    def of(cls, age: int) -> AgeBand:
        """The band that holds `age` in years; `ValueError` outside 3–17."""
        for band in cls:
            low, high = band.years
            if low <= age <= high:
                return band
        raise ValueError(f"age {age} is outside 3-17")

    @property
    def years(self) -> tuple[int, int]:
        """First and last year of the band, both inside."""
        low, high = self.value.split("-")
        return int(low), int(high)


class _Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _whole(text: str) -> str:
    """Half of a surrogate pair is no character: it can neither be written nor tokenised."""
    text.encode()  # UnicodeEncodeError is a ValueError, which pydantic reports
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Turn(_Strict):
    """One message and what Qiaoban knows of it. `distress` runs from 0 (at ease) to 4 (overwhelmed)."""

    role: Role
    content: Text
    acts: tuple[Act, ...] = ()
    emotion: Emotion | None = None
    distress: int | None = Field(default=None, ge=0, le=4)


class Meta(_Strict):
    """What the conversation is about. `risk` is the kind of harm that it is about, if any."""

    lang: Lang | None = None
    topic: str | None = None
    domain: str | None = None
    age_band: AgeBand | None = None
    emotion: Emotion | None = None
    outcome: str | None = None
    risk: Category | None = None
    relation: str | None = None


class Provenance(_Strict):
    """Where the conversation came from, so that it can be traced and taken out again."""

    source: str | None = None
    teacher: str | None = None
    mode: str | None = None
    template_sha: str | None = None
    card_sha: str | None = None
    licence: str | None = None
    synthetic: bool | None = None
    created_at: str | None = None


class Conversation(_Strict):
    """A talk: turns in order, with what it is about and where it came from."""

    id: str = Field(min_length=1)
    turns: tuple[Turn, ...] = Field(min_length=1)
    meta: Meta = Meta()
    provenance: Provenance = Provenance()
    split: Literal["train", "valid", "test"] | None = None

    def to_json(self) -> str:
        """One line of JSONL without its newline; empty fields are left out, so equal talks give equal bytes."""
        return json.dumps(_Record.of(self).model_dump(mode="json", exclude_none=True), ensure_ascii=False)


class _Message(_Strict):
    role: Role
    content: Text


class _Labels(_Strict):
    acts: tuple[Act, ...] = ()
    emotion: Emotion | None = None
    distress: int | None = Field(default=None, ge=0, le=4)


class _Record(_Strict):
    """The shape on disk."""

    id: str = Field(min_length=1)
    messages: tuple[_Message, ...] = Field(min_length=1)
    turns: tuple[_Labels, ...] | None = None
    meta: Meta = Meta()
    provenance: Provenance = Provenance()
    split: Literal["train", "valid", "test"] | None = None

    @model_validator(mode="after")
    def _one_label_a_message(self) -> _Record:
        if self.turns is not None and len(self.turns) != len(self.messages):
            raise ValueError(f"turns has {len(self.turns)} entries for {len(self.messages)} messages")
        return self

    @classmethod
    def of(cls, talk: Conversation) -> _Record:
        return cls(
            id=talk.id,
            messages=tuple(_Message(role=t.role, content=t.content) for t in talk.turns),
            turns=tuple(_Labels(acts=t.acts, emotion=t.emotion, distress=t.distress) for t in talk.turns),
            meta=talk.meta,
            provenance=talk.provenance,
            split=talk.split,
        )

    def conversation(self) -> Conversation:
        labels = self.turns or tuple(_Labels() for _ in self.messages)
        return Conversation(
            id=self.id,
            turns=tuple(
                Turn(role=m.role, content=m.content, acts=x.acts, emotion=x.emotion, distress=x.distress)
                for m, x in zip(self.messages, labels, strict=True)
            ),
            meta=self.meta,
            provenance=self.provenance,
            split=self.split,
        )


def parse_conversation(line: str, *, path: Path | str | None = None, number: int | None = None) -> Conversation:
    """Read one JSONL line. `DataError` names path:line, the key, its value and, for an unknown key, the nearest one."""
    return parse_record(_Record, line, path=path, number=number).conversation()


def parse_record(kind: type[Model], line: str, *, path: Path | str | None = None, number: int | None = None) -> Model:
    """One JSON object as the pydantic model `kind`; `DataError` as for `parse_conversation`."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise DataError(explain(error, kind), path=path, line=number) from None


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Stream a JSONL file in UTF-8 (a BOM is accepted, blank lines are skipped). `DataError` at the first bad line."""
    with open_bytes(path) as file:
        for number, line in whole_lines(file, path):
            yield parse_conversation(line, path=path, number=number)


def read_records(path: Path, kind: type[Model]) -> Iterator[Model]:
    """Stream a JSONL file of `kind`. `DataError` at the first bad line."""
    with open_bytes(path) as file:
        for number, line in whole_lines(file, path):
            yield parse_record(kind, line, path=path, number=number)


def write_conversations(path: Path, talks: Iterable[Conversation]) -> int:
    """Write a JSONL file atomically; returns how many talks it holds."""
    return write_lines(path, (talk.to_json() for talk in talks))


def open_bytes(path: Path | str) -> BinaryIO:
    """The file, opened for reading bytes. `DataError` where it cannot be."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


def whole_lines(file: Iterable[bytes], path: Path | str) -> Iterator[tuple[int, str]]:
    """As `decode_lines`; a line that is not UTF-8 is raised."""
    for number, line in decode_lines(file, path):
        if isinstance(line, DataError):
            raise line
        yield number, line


def decode_lines(file: Iterable[bytes], path: Path | str) -> Iterator[tuple[int, str | DataError]]:
    """Non-blank lines with their numbers from 1; a line that is not UTF-8 comes as the error that names its byte."""
    for number, row in enumerate(file, start=1):
        raw = row.removeprefix(codecs.BOM_UTF8) if number == 1 else row
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            yield (
                number,
                DataError(
                    f"byte {error.start} is not UTF-8 (0x{raw[error.start]:02x})",
                    path=path,
                    line=number,
                    hint="convert the file to UTF-8, for instance with `iconv -f GB18030 -t UTF-8`",
                ),
            )
            continue
        if line:
            yield number, line


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault of a pydantic error in words: key, what is wrong, the value that was found. A typo comes before a gap."""
    fault = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in fault["loc"]) or "line"
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(str(fault["loc"][-1]), sorted(_keys(kind)), n=1)
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{key}: {fault['msg']} (found {_shorten(fault.get('input'))})"


def _keys(kind: type[BaseModel]) -> set[str]:
    """Every key that `kind` and the models inside it know."""
    inner = (model for field in kind.model_fields.values() for model in _models_in(field.annotation))
    return set(kind.model_fields).union(*map(_keys, inner))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation speaks of, such as `Turn` in `tuple[Turn, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _shorten(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def language(talk: Conversation) -> Lang:
    """The talk's language as labelled, else Chinese if there is any Han character in it."""
    return talk.meta.lang or language_of("".join(turn.content for turn in talk.turns))


def language_of(text: str) -> Lang:
    """Chinese if there is any Han character in the text, else English."""
    return "zh" if any("\u3400" <= char <= "\u9fff" for char in text) else "en"
