"""The conversation type and its JSONL form: what is written is read, faults are named, files are whole or absent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qiaoban.conversation import (
    EMOTION_FAMILIES,
    Act,
    AgeBand,
    Category,
    Conversation,
    Emotion,
    Meta,
    Provenance,
    Turn,
    decode_lines,
    parse_conversation,
    read_conversations,
    write_conversations,
)
from qiaoban.errors import DataError

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

optional_text = st.none() | st.text()
turns = st.builds(
    Turn,
    role=st.sampled_from(["system", "user", "assistant"]),
    content=st.text() | st.text(alphabet='\n\r\t\u2028\x00\x85"\\ 你好👩‍👩‍👧😀e\u0301'),
    acts=st.lists(st.sampled_from(Act), max_size=3).map(tuple),
    emotion=st.none() | st.sampled_from(Emotion),
    distress=st.none() | st.integers(0, 4),
)
metas = st.builds(
    Meta,
    lang=st.sampled_from([None, "zh", "en"]),
    topic=optional_text,
    domain=optional_text,
    age_band=st.none() | st.sampled_from(AgeBand),
    emotion=st.none() | st.sampled_from(Emotion),
    outcome=optional_text,
    risk=st.none() | st.sampled_from(Category),
    relation=optional_text,
)
provenances = st.builds(
    Provenance, source=optional_text, teacher=optional_text, licence=optional_text, synthetic=st.none() | st.booleans()
)
talks = st.builds(
    Conversation,
    id=st.text(min_size=1),
    turns=st.lists(turns, min_size=1, max_size=4).map(tuple),
    meta=metas,
    provenance=provenances,
    split=st.sampled_from([None, "train", "valid", "test"]),
)


def talk(name: str = "t", *contents: str) -> Conversation:
    return Conversation(id=name, turns=tuple(Turn(role="user", content=c) for c in contents or ("你好",)))


def line_of(**changes: object) -> str:
    """One good line with some keys changed."""
    return json.dumps({"id": "a", "messages": [{"role": "user", "content": "hi"}], **changes}, ensure_ascii=False)


@calm
@given(talks)
def test_what_is_written_is_read_and_the_bytes_do_not_change(one: Conversation) -> None:
    line = one.to_json()
    assert "\n" not in line
    read = parse_conversation(line)
    assert read == one
    assert read.to_json().encode() == line.encode()


@calm
@given(st.lists(talks, max_size=4))
def test_a_file_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, many: list[Conversation]) -> None:
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    assert write_conversations(path, many) == len(many)
    assert list(read_conversations(path)) == many
    first = path.read_bytes()
    write_conversations(path, read_conversations(path))  # onto itself, while it is being read
    assert path.read_bytes() == first


def test_the_form_on_disk_is_messages_and_labels() -> None:
    one = Conversation(
        id="a",
        turns=(
            Turn(role="user", content="我好难过"),
            Turn(role="assistant", content="嗯，我听到了。", acts=(Act.NOTICE,), emotion=Emotion.SAD, distress=2),
        ),
        meta=Meta(lang="zh", age_band=AgeBand.B6_8),
    )
    assert json.loads(one.to_json()) == {
        "id": "a",
        "messages": [{"role": "user", "content": "我好难过"}, {"role": "assistant", "content": "嗯，我听到了。"}],
        "turns": [{"acts": []}, {"acts": ["NOTICE"], "emotion": "sad", "distress": 2}],
        "meta": {"lang": "zh", "age_band": "6-8"},
        "provenance": {},
    }
    assert "我好难过" in one.to_json()  # readable, not escaped


def test_labels_may_be_absent() -> None:
    assert parse_conversation(line_of()).turns == (Turn(role="user", content="hi"),)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", ["line: Invalid JSON"]),
        ("[1]", ["line: Input should be an object", "(found [1])"]),
        (line_of(id=""), ["id: ", "(found '')"]),
        (line_of(id=7), ["id: Input should be a valid string", "(found 7)"]),
        (line_of(messages=[]), ["messages: ", "(found [])"]),
        (line_of(messages=[{"role": "robot", "content": "x"}]), ["messages.0.role: ", "'assistant'", "(found 'robot')"]),
        (line_of(messages=[{"role": "user"}]), ["messages.0.content: Field required", "(found {'role': 'user'})"]),
        (line_of(turns=[]), ["turns has 0 entries for 1 messages"]),
        (line_of(turns=[{}, {}]), ["turns has 2 entries for 1 messages"]),
        (line_of(turns=[{"distress": 5}]), ["turns.0.distress: ", "(found 5)"]),
        (line_of(turns=[{"acts": ["HUG"]}]), ["turns.0.acts.0: ", "(found 'HUG')"]),
        (line_of(meta={"age_band": "6-9"}), ["meta.age_band: ", "(found '6-9')"]),
        (line_of(split="dev"), ["split: ", "(found 'dev')"]),
        (line_of(mesages=[]), ["unknown key 'mesages'; did you mean 'messages'?"]),
        (line_of(meta={"langs": "zh"}), ["unknown key 'meta.langs'; did you mean 'lang'?"]),
        (line_of(provenance={"license": "x"}), ["unknown key 'provenance.license'; did you mean 'licence'?"]),
        (line_of(messages=[{"rol": "user", "role": "user", "content": ""}]), ["'messages.0.rol'; did you mean 'role'?"]),
        (line_of(zzzzzz=1), ["unknown key 'zzzzzz'"]),
        (line_of(turns=[{"distres": 1}]), ["unknown key 'turns.0.distres'; did you mean 'distress'?"]),
    ],
)
def test_a_fault_is_named_by_place_key_value_and_nearest_key(line: str, says: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        parse_conversation(line, path="talks.jsonl", number=12)
    assert caught.value.message.startswith("talks.jsonl:12: ")
    assert (caught.value.path, caught.value.line) == ("talks.jsonl", 12)
    for part in says:
        assert part in caught.value.message


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(DataError) as caught:
        parse_conversation(line_of(split="哭" * 10_000))
    assert len(caught.value.message) < 200


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match="line: Invalid JSON"):
        parse_conversation('{"id": "a", "messages": [{"role": "user", "content": "\\ud83d"}]}')


def test_bom_crlf_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    lines = [talk("a").to_json(), "", "  \t", talk("b", "x\r\ny").to_json(), ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert list(read_conversations(path)) == [talk("a"), talk("b", "x\r\ny")]


@pytest.mark.parametrize("raw", [b"", b"\n\n \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_an_empty_file_holds_nothing(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_bytes(raw)
    assert list(read_conversations(path)) == []


def test_the_line_number_counts_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(f"{talk('a').to_json()}\n\n\n{{}}\n", encoding="utf-8")
    read = read_conversations(path)
    assert next(read) == talk("a")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:4: id: Field required"):
        next(read)


def test_gb18030_is_named_with_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_bytes(talk("a").to_json().encode() + b"\n" + '{"id": "你好"}\n'.encode("gb18030"))
    read = read_conversations(path)
    assert next(read) == talk("a")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:2: byte 8 is not UTF-8 \(0xc4\)") as caught:
        next(read)
    assert "iconv" in caught.value.hint


def test_the_byte_is_right_behind_a_bom() -> None:
    (found,) = decode_lines([b"\xef\xbb\xbf" + '{"id": "你好"}'.encode("gb18030")], "x")
    assert isinstance(found[1], DataError)
    assert "(0xc4)" in found[1].message


def test_one_bad_line_does_not_hide_the_next() -> None:
    lines = [b"{}\n", b"\xff\n", b"[]\n"]
    kinds = [(number, line if isinstance(line, str) else "bad") for number, line in decode_lines(lines, "x")]
    assert kinds == [(1, "{}"), (2, "bad"), (3, "[]")]


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "no.jsonl", tmp_path):
        with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: cannot be read: "):
            list(read_conversations(path))


def test_a_fault_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    write_conversations(path, [talk("old")])

    def faulty() -> Iterator[Conversation]:
        yield talk("new")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_conversations(path, faulty())
    assert list(read_conversations(path)) == [talk("old")]
    assert [file.name for file in tmp_path.iterdir()] == ["talks.jsonl"]


def test_a_folder_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "talks.jsonl"
    write_conversations(path, [])
    assert path.read_bytes() == b""


STOPS_HALFWAY = """
import sys, time
from pathlib import Path
from qiaoban.conversation import Conversation, Turn, write_conversations

def talks():
    for n in range(1_000):
        yield Conversation(id=str(n), turns=(Turn(role="user", content="x" * 1_000),))
    print("half", flush=True)
    time.sleep(60)

write_conversations(Path(sys.argv[1]), talks())
"""

NEVER_STOPS = """
import sys
from pathlib import Path
from qiaoban.conversation import Conversation, Turn, write_conversations

path, versions = Path(sys.argv[1]), [[Conversation(id=str(n), turns=(Turn(role="user", content=c * 500),)) for n in range(200)]
                                     for c in "ab"]
print("half", flush=True)
while True:
    for version in versions:
        write_conversations(path, version)
"""


def killed_while_writing(code: str, path: Path, *, after: float) -> None:
    """Run `code` on `path` and SIGKILL it `after` seconds after it says that it is halfway."""
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(after)
    finally:
        child.kill()
        child.communicate()
    if os.name != "nt":
        assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("there", [True, False])
def test_sigkill_in_the_middle_leaves_the_old_file_or_none(tmp_path: Path, *, there: bool) -> None:
    path = tmp_path / "talks.jsonl"
    if there:
        write_conversations(path, [talk("old")])
    killed_while_writing(STOPS_HALFWAY, path, after=0.01)
    half = [file.stat().st_size for file in tmp_path.iterdir() if file != path]
    assert len(half) == 1
    assert half[0] > 500_000  # it really was in the middle
    assert path.exists() == there
    if there:
        assert list(read_conversations(path)) == [talk("old")]


@pytest.mark.parametrize("after", [0.031, 0.083, 0.147])
def test_sigkill_at_any_moment_leaves_a_whole_file(tmp_path: Path, after: float) -> None:
    path = tmp_path / "talks.jsonl"
    write_conversations(path, [talk("old")])
    killed_while_writing(NEVER_STOPS, path, after=after)
    found = list(read_conversations(path))
    assert found == [talk("old")] or [one.id for one in found] == [str(n) for n in range(200)]
    assert len({one.turns[0].content for one in found}) == 1  # of one version


def test_every_age_from_3_to_17_is_in_one_band() -> None:
    for age in range(3, 18):
        low, high = AgeBand.of(age).years
        assert low <= age <= high
        assert sum(band.years[0] <= age <= band.years[1] for band in AgeBand) == 1
    for age, band in [(3, "3-5"), (5, "3-5"), (6, "6-8"), (8, "6-8"), (9, "9-11"), (12, "12-14"), (15, "15-17"), (17, "15-17")]:
        assert AgeBand.of(age) == band


@pytest.mark.parametrize("age", [-1, 0, 2, 18, 40])
def test_other_ages_are_refused(age: int) -> None:
    with pytest.raises(ValueError, match=f"age {age} is outside 3-17"):
        AgeBand.of(age)


def test_every_emotion_is_in_one_family() -> None:
    leaves = [leaf for family in EMOTION_FAMILIES.values() for leaf in family]
    assert sorted(leaves) == sorted(Emotion)
    for emotion in Emotion:
        assert emotion in EMOTION_FAMILIES[emotion.family]


def test_a_talk_cannot_be_changed_or_made_wrong() -> None:
    one = talk()
    with pytest.raises(ValidationError, match="frozen"):
        one.id = "b"
    for wrong in ({"distress": 5}, {"distress": -1}, {"mood": "x"}):
        with pytest.raises(ValidationError):
            Turn.model_validate({"role": "user", "content": "x", **wrong})


def test_a_turn_cannot_hold_half_a_character() -> None:
    with pytest.raises(ValidationError):
        Turn(role="user", content="a\ud83d")
