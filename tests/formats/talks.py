"""Talks for tests: any at all, and those that mean harm to a format by carrying its own marks."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from qiaoban.conversation import Act, AgeBand, Category, Conversation, Emotion, Meta, Provenance, Turn
from qiaoban.formats import PAIRS, TALKS, Pair

PUBLIC = Path(__file__).parents[3] / "shared" / "data"
calm = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

MARKS = ["Human:", "\nAssistant:", "Human：", "[|Human|]", "[|AI|] ", "</s>", "孩子：", "智能助手:"]
MARKS += ["来访者：", "\n心理咨询师：", "\n\n妈妈：", "来访者（小李）：", "The conversation between human and AI assistant."]
MARKS += ["\r\n", "\r", "\n", "\n\n", " ", "\x00", "\x1c", "\u2028", "\ufeff", '"', "\\", "\\u12", "[", "}"]
plain = st.sampled_from(["你好呀", "没事", "i lost it", "😀👩‍👩‍👧", "e\u0301", "，。"])
nasty = st.lists(st.sampled_from(MARKS) | plain, max_size=5).map("".join) | st.text(max_size=12)
# Text that every format can hold: something at both ends, no mark of a speaker.
tame = st.text(alphabet="你好abc 1\n，。？😀", max_size=20).map(lambda text: f"啊{text.replace(chr(10) * 2, ' ')}吧")
optional = st.none() | st.text(max_size=8)


def turns_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Turn]:
    return st.builds(
        Turn,
        role=st.sampled_from(["user", "assistant", "user", "assistant", "system"]),
        content=texts,
        acts=st.lists(st.sampled_from(Act), max_size=2).map(tuple),
        emotion=st.none() | st.sampled_from(Emotion),
        distress=st.none() | st.integers(0, 4),
    )


metas = st.builds(
    Meta,
    lang=st.sampled_from([None, "zh", "en"]),
    topic=optional,
    domain=optional,
    age_band=st.none() | st.sampled_from(AgeBand),
    emotion=st.none() | st.sampled_from(Emotion),
    outcome=optional,
    risk=st.none() | st.sampled_from(Category),
    relation=optional,
)
provenances = st.builds(Provenance, source=optional, licence=optional, synthetic=st.none() | st.booleans())
ids = st.text(min_size=1, max_size=10) | st.integers(0, 10**18).map(str) | st.just("case_7")


def said(texts: st.SearchStrategy[str], *, system: bool) -> st.SearchStrategy[tuple[Turn, ...]]:
    """Bare turns that alternate from user to assistant, some with a system turn before them."""

    def build(parts: list[tuple[str, str]], before: str | None) -> tuple[Turn, ...]:
        turns = [Turn(role="system", content=before)] if before is not None else []
        for ask, reply in parts:
            turns += [Turn(role="user", content=ask), Turn(role="assistant", content=reply)]
        return tuple(turns)

    preamble = st.none() | texts if system else st.none()
    return st.builds(build, st.lists(st.tuples(texts, texts), min_size=1, max_size=4), preamble)


talks = st.builds(
    Conversation,
    id=ids,
    turns=st.lists(turns_of(nasty), min_size=1, max_size=6).map(tuple) | said(nasty, system=True),
    meta=metas,
    provenance=provenances,
    split=st.sampled_from([None, "train", "valid", "test"]),
)


def messages(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Turn, ...]]:
    roles = st.sampled_from(["user", "assistant", "system"])
    return st.lists(st.builds(Turn, role=roles, content=texts), min_size=1, max_size=3).map(tuple)


pairs = st.builds(
    Pair,
    id=ids,
    prompt=messages(nasty),
    chosen=messages(nasty),
    rejected=messages(nasty),
    pair_type=optional,
    lang=st.sampled_from([None, "zh", "en"]),
)


def file_name(form: str) -> str:
    """A file name that the format takes."""
    return {"cpsycoun": "out.tar.gz", "parquet": "out.parquet"}.get(form, "out.json")


TALK_FORMATS, PAIR_FORMATS = sorted(TALKS), sorted(PAIRS)
