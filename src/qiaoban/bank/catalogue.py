"""The topic bank as typed data: life scenes, emotions, acts, failing styles, people, names and safety scenarios.

Everything is authored in both languages and read from the TOML files of this package. The files hold what a person reviews;
this module only says their shape. `qiaoban.bank.lint` proves that they cover what a planner needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from qiaoban.bank import read_table
from qiaoban.conversation import Act, Category, Emotion, Lang, explain
from qiaoban.errors import DataError

YOUNGEST, OLDEST = 5, 17


class _Entry(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Line = Annotated[str, Field(min_length=1)]
Lines = Annotated[tuple[Line, ...], Field(min_length=1)]


class Bilingual(_Entry):
    """One text in each language."""

    zh: Line
    en: Line


class BilingualLines(_Entry):
    """Several texts in each language."""

    zh: Lines
    en: Lines


def _in_order(ages: tuple[int, int]) -> tuple[int, int]:
    if not YOUNGEST <= ages[0] <= ages[1] <= OLDEST:
        raise ValueError(f"ages run from {YOUNGEST} to {OLDEST}, the first not above the last")
    return ages


Ages = Annotated[tuple[int, int], AfterValidator(_in_order)]
OptionalCategory = Annotated[Category | None, BeforeValidator(lambda value: value or None)]


class Scene(_Entry):
    """A situation that a child lives through and could open a talk with. `hidden` is what is not said at first."""

    id: Line
    zh: Line
    en: Line
    ages: Ages
    emotions: tuple[Emotion, ...] = Field(min_length=1, max_length=4)
    positive: bool
    risk: OptionalCategory
    hidden: Bilingual


class Domain(_Entry):
    """A field of a child's life with its scenes."""

    id: Line
    name: Bilingual
    about: Bilingual
    scenes: tuple[Scene, ...] = Field(min_length=1, alias="scene")


class EmotionEntry(_Entry):
    """A leaf of the emotion tree: from what age the word is understood, what a child says instead, how it feels in the body."""

    id: Emotion
    family: Line
    zh: Line
    en: Line
    min_age: int = Field(ge=3, le=OLDEST)
    phrases: BilingualLines
    body: BilingualLines
    near: tuple[Emotion, ...]


class ActEntry(_Entry):
    """What a companion turn does. In a talk about pain one of `not_before` must have come first."""

    id: Act
    name: Bilingual
    definition: Bilingual
    examples: BilingualLines
    counterexamples: BilingualLines
    not_before: tuple[Act, ...]


class Style(_Entry):
    """A way of meeting a feeling that fails a child (Gottman, Katz & Hooven 1996); the rejected side of preference pairs."""

    id: Literal["dismissing", "disapproving", "laissez_faire"]
    name: Bilingual
    definition: Bilingual
    lines: BilingualLines
    why: Bilingual


class Outcome(_Entry):
    """How a talk ends. The weights of all outcomes sum to 1."""

    id: Line
    weight: float = Field(gt=0, le=1)
    definition: Bilingual


class Scenario(_Entry):
    """A safeguarding scenario, with what a reply must and must not do in it."""

    id: Line
    category: Category
    ages: Ages
    directness: Literal["direct", "indirect", "over_turns"]
    guardian_may_be_source: bool
    zh: Line
    en: Line
    must: Bilingual
    must_not: Bilingual


class Lookalike(_Entry):
    """A situation that resembles a kind of harm and is none."""

    id: Line
    resembles: Category
    ages: Ages
    zh: Line
    en: Line


class Family(_Entry):
    """With whom the child lives, and the adults whom it could trust."""

    id: Line
    zh: Line
    en: Line
    weight: float = Field(gt=0)
    trusted: BilingualLines
    min_age: int = YOUNGEST
    langs: tuple[Lang, ...] = ("zh", "en")


class Temperament(_Entry):
    """How the child meets the world, on three knobs from 1 to 5, and how it shows in talk."""

    id: Line
    name: Bilingual
    weight: float = Field(gt=0)
    talkativeness: int = Field(ge=1, le=5)
    persistence: int = Field(ge=1, le=5)
    sensitivity: int = Field(ge=1, le=5)
    talk: BilingualLines


class Knob(_Entry):
    """One knob of a temperament set to an end, for variety."""

    id: Line
    field: Literal["talkativeness", "persistence", "sensitivity"]
    value: int = Field(ge=1, le=5)
    weight: float = Field(gt=0)
    talk: BilingualLines


class Dialect(_Entry):
    """A colour of speech: a place and a few of its words."""

    name: Line
    words: Lines


class Hints(_Entry):
    """Dialects of each language."""

    zh: tuple[Dialect, ...]
    en: tuple[Dialect, ...]


class Region(_Entry):
    """Where the child lives, in small things and in speech."""

    id: Line
    weight: float = Field(gt=0)
    setting: BilingualLines
    hints: Hints


class Channel(_Entry):
    """How the words come: typed, or from a voice transcript."""

    id: Line
    weight: float = Field(gt=0)
    shows: BilingualLines


class TalkHabit(_Entry):
    """A way in which a child sidles into a topic or avoids it."""

    id: Line
    name: Bilingual
    ages: Ages
    weight: float = Field(gt=0)
    examples: BilingualLines


class People(_Entry):
    """Who the child is and how the talk is shaped."""

    temperaments: tuple[Temperament, ...] = Field(alias="temperament")
    knobs: tuple[Knob, ...] = Field(alias="knob")
    families: tuple[Family, ...] = Field(alias="family")
    regions: tuple[Region, ...] = Field(alias="region")
    outcomes: tuple[Outcome, ...] = Field(alias="outcome")
    channels: tuple[Channel, ...] = Field(alias="channel")
    talk_habits: tuple[TalkHabit, ...] = Field(alias="talk_habit")


class Name(_Entry):
    """A fictional name of a child."""

    name: Line
    gender: Literal["girl", "boy", "any"]
    kind: Literal["given", "nick"]


class Pet(_Entry):
    """A fictional name of an animal."""

    name: Line
    kind: Line


class Names(_Entry):
    """Fictional names of children and of their animals, by language."""

    zh: tuple[Name, ...]
    en: tuple[Name, ...]
    pets_zh: tuple[Pet, ...]
    pets_en: tuple[Pet, ...]


class _Emotions(_Entry):
    emotion: tuple[EmotionEntry, ...]


class _Acts(_Entry):
    act: tuple[ActEntry, ...]


class _Styles(_Entry):
    style: tuple[Style, ...]


class _Scenarios(_Entry):
    scenario: tuple[Scenario, ...]
    lookalike: tuple[Lookalike, ...]


class Catalogue(_Entry):
    """The whole bank."""

    domains: tuple[Domain, ...]
    emotions: tuple[EmotionEntry, ...]
    acts: tuple[ActEntry, ...]
    styles: tuple[Style, ...]
    people: People
    names: Names
    scenarios: tuple[Scenario, ...]
    lookalikes: tuple[Lookalike, ...]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Every scene of every domain."""
        return tuple(scene for domain in self.domains for scene in domain.scenes)


@cache
def load_catalogue() -> Catalogue:
    """Read the bank. `DataError` names the file, the entry and the key that is wrong."""
    safety = _read(_Scenarios, "scenarios.toml")
    return Catalogue(
        domains=tuple(_read(Domain, f"topics/{name}") for name in _topic_files()),
        emotions=_read(_Emotions, "emotions.toml").emotion,
        acts=_read(_Acts, "acts.toml").act,
        styles=_read(_Styles, "styles.toml").style,
        people=_read(People, "people.toml"),
        names=_read(Names, "names.toml"),
        scenarios=safety.scenario,
        lookalikes=safety.lookalike,
    )


Table = TypeVar("Table", bound=BaseModel)


def _read(kind: type[Table], name: str) -> Table:
    return parse_table(kind, read_table(name), name)


def parse_table(kind: type[Table], table: Mapping[str, Any], name: str) -> Table:
    """A parsed TOML file as `kind`; `name` is the file's name for messages."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise DataError(explain(error, kind), path=name) from None


def _topic_files() -> list[str]:
    return sorted(entry.name for entry in files("qiaoban.bank").joinpath("topics").iterdir() if entry.name.endswith(".toml"))
