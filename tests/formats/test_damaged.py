"""Files as they should not be: every fault is named with its place, costs little memory and leaves no half-written file."""

from __future__ import annotations

import codecs
import gzip
import json
import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiaoban.conversation import Conversation, Turn
from qiaoban.errors import DataError, QiaobanError, UsageError
from qiaoban.formats import LONGEST, TALKS, detect, read_pairs, read_talks, write_talks
from tests.formats.talks import calm

LINE = json.dumps({"messages": [{"role": "user", "content": "在吗"}]}, ensure_ascii=False).encode()
TALK = Conversation(id="1", turns=(Turn(role="user", content="在吗"),))


def fault(path: Path, form: str | None = None, *, limit: int = LONGEST) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_talks(path, form, limit=limit))
    assert caught.value.hint or ": " in caught.value.message
    return caught.value


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + LINE + b"\n",
        LINE + b"\r\n" + b"\r\n",
        b"\n\n  " + LINE,
        codecs.BOM_UTF8 + b"\r\n[\r\n" + LINE + b"\r\n]\r\n",
        b"[" + LINE + b"]",
    ],
)
def test_marks_and_line_ends_of_other_systems(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", content)
    assert detect(path) == "openai"
    assert [talk.turns for talk in read_talks(path)] == [TALK.turns]


@pytest.mark.parametrize("content", [b"", b"\n \n", codecs.BOM_UTF8, b"[]", b" [ \n ] "])
def test_an_empty_file_has_no_format_and_no_talks(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", content)
    assert "empty" in fault(path).message
    assert list(read_talks(path, "sharegpt")) == []


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        (LINE + b"\n" + LINE[:-4] + b"\n", ":2:", "not JSON"),
        (LINE + b"\n[1]\n", ":2:", "an object is wanted"),
        (LINE + b"\n" + "你好".encode("gb18030") + b"\n", ":2:", "byte 0 is not UTF-8"),
        (LINE + b'\n{"messages": []}\n', ":2:", "messages: a list with at least one entry"),
        (LINE + b'\n{"massages": []}\n', ":2:", "no key 'messages'"),
        (LINE + b'\n{"messages": [{"role": "tool", "content": ""}]}', ":2:", "messages.0.role: 'tool' has no place"),
        (LINE + b'\n{"messages": [{"role": "user", "content": null}]}', ":2:", "messages.0.content: text is wanted"),
        (LINE + b'\n{"messages": [{"role": "user", "content": "\\ud800"}]}', ":2:", "half of a character"),
        (LINE + b'\n{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', ":2:", "only text can be read"),
        (LINE + b"\n" + b"[" * 100_000, ":2:", "not JSON"),
        (LINE + b'\n{"messages": ' + b"1" * 5000 + b"}", ":2:", "not JSON"),
        (b"[" + LINE + b",\n\n" + LINE[:-4], ":3: record 2:", "not JSON"),
        (b"[" + LINE + b",\n" + LINE + b"\n", ":3:", "the end of the file"),
        (b"[" + LINE + b"\n" + LINE + b"]", ":2:", "',' or ']' is wanted"),
        (b"[" + LINE + b",]", ":1: record 2:", "not JSON"),
        (b"[" + LINE + b"]\n{}", ":2:", "more after the array"),
        (b"[" + LINE + b",\n 7]", ":2: record 2:", "an object is wanted"),
        (b"[" + LINE + b',\n{"a": tru}' + b"," + LINE * 9, ":2: record 2:", "not JSON"),
        (b"[" + LINE + b",\n" + "你".encode("gb18030") + b"]", ":1:", "is not UTF-8 (0xc4)"),
        (b"[" + LINE + b", " + b'{"a":' * 100_000 + b"]", ":1: record 2:", "not JSON"),
    ],
)
def test_a_damaged_record_is_named_with_its_place(content: bytes, place: str, words: str, tmp_path: Path) -> None:
    error = fault(put(tmp_path / "x.jsonl", content), "openai")
    assert f"x.jsonl{place}" in error.message
    assert words in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("form", "row", "words"),
    [
        ("sharegpt", {"conversations": [{"from": "human"}]}, "there is no key 'content' (found 'from')"),
        ("sharegpt", {"conversations": [{"from": 3, "value": ""}]}, "conversations.0.from: text is wanted (found 3)"),
        ("alpaca", {"instruction": "a"}, "there is no key 'output'"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history.0: [question, answer] is wanted"),
        ("baize", {"topic": "x", "input": "nobody"}, "input: nobody speaks in it (found 'nobody')"),
        ("qiaoban2023-flat", {"topic": "x", "input": "孩子：a</s>谁？</s>"}, "input: part 2 does not say who speaks"),
        ("qiaoban2023", {"dialog": [{"text": "a", "speaker": "妈妈"}]}, "dialog.0.speaker: 孩子 or 智能助手 is wanted"),
        ("qiaoban", {"id": "a", "messages": [], "mata": {}}, "unknown key 'mata'; did you mean 'meta'?"),
        ("parquet", {"id": "a", "messages": [{"role": "user", "content": "x"}], "turns": [{}, {}]}, "turns: one entry"),
        ("parquet", {"messages": [{"role": "user", "content": "x"}], "lang": "fr"}, "lang: Input should be"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(form: str, row: dict[str, object], words: str, tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", json.dumps(row).encode())
    error = fault(path, form)
    assert "x.jsonl:1: " in error.message
    assert words in error.message


def test_utf16_is_named(tmp_path: Path) -> None:
    assert "UTF-16" in fault(put(tmp_path / "x.jsonl", '{"messages": []}'.encode("utf-16"))).message


def test_no_known_format_says_what_was_looked_for(tmp_path: Path) -> None:
    for content in (b"question,answer\nhi,ho\n", b'{"question": "hi"}\n', b"[1]"):
        error = fault(put(tmp_path / "x.jsonl", content))
        assert "no known format" in error.message
        assert all(name in error.hint for name in TALKS)
    assert "question" in fault(put(tmp_path / "x.jsonl", b'{"question": "hi"}\n')).message


def test_talks_and_pairs_are_told_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", LINE)
    with pytest.raises(UsageError, match="holds talks, not pairs"):
        list(read_pairs(path))
    with pytest.raises(UsageError, match="no format 'opnai'"):
        list(read_talks(path, "opnai"))


class TestLongRecords:
    def test_a_long_line_is_refused_and_can_be_passed_over(self, tmp_path: Path) -> None:
        path = put(tmp_path / "x.jsonl", LINE + b"\n" + b"x" * 300_000 + b"\n" + LINE + b"\n")
        error = fault(path, limit=1000)
        assert ":2: the record is longer than" in error.message
        assert "limit" in error.hint
        bad: list[DataError] = []
        assert len(list(read_talks(path, limit=1000, on_bad=bad.append))) == 2
        assert [each.line for each in bad] == [2]

    def test_a_line_at_the_limit_is_read(self, tmp_path: Path) -> None:
        path = put(tmp_path / "x.jsonl", LINE + b"\n")
        assert len(list(read_talks(path, limit=len(LINE)))) == 1
        assert "longer" in fault(path, "openai", limit=len(LINE) - 1).message

    def test_an_array_that_is_never_closed(self, tmp_path: Path) -> None:
        path = put(tmp_path / "x.json", b'[{"messages": [{"role": "user", "content": "' + b"x" * 3_000_000)
        assert "record 1: the record is longer than" in fault(path, limit=500_000).message

    def test_a_text_in_an_archive(self, tmp_path: Path) -> None:
        write_talks(tmp_path / "x.tar.gz", [TALK], "cpsycoun")
        assert "longer" in fault(tmp_path / "x.tar.gz", limit=10).message

    @pytest.mark.parametrize("form", ["sharegpt", "qiaoban"])
    def test_memory_does_not_grow_with_the_file(self, form: str, tmp_path: Path) -> None:
        talk = Conversation(id="x", turns=tuple(Turn(role="user", content="很长的一句话" * 20) for _ in range(10)))
        path = tmp_path / ("x.json" if form == "sharegpt" else "x.jsonl")
        write_talks(path, (talk.model_copy(update={"id": f"{n:05}"}) for n in range(2000)), form)
        size = path.stat().st_size
        tracemalloc.start()
        count = sum(1 for _ in read_talks(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (count, size > 7_000_000) == (2000, True)
        assert peak < size / 2


class TestIds:
    def rows(self, *ids: object) -> bytes:
        turns = [{"from": "human", "value": "在吗"}]
        return b"".join(json.dumps({"id": each, "conversations": turns}).encode() + b"\n" for each in ids)

    def test_repeats_get_a_number_and_are_counted(self, tmp_path: Path) -> None:
        notes: Counter[str] = Counter()
        path = put(tmp_path / "x.jsonl", self.rows("a", "a", "a-2", "a", "b", 1, "1"))
        ids = [talk.id for talk in read_talks(path, notes=notes)]
        assert ids == ["a", "a-2", "a-2-2", "a-3", "b", "1", "1-2"]
        assert notes == {"repeated ids, made unique": 4}

    def test_a_number_that_is_taken_is_passed_over(self, tmp_path: Path) -> None:
        path = put(tmp_path / "x.jsonl", self.rows("a", "a-2", "a", "a"))
        assert [talk.id for talk in read_talks(path)] == ["a", "a-2", "a-3", "a-4"]

    def test_without_one_it_comes_from_the_content(self, tmp_path: Path) -> None:
        path = put(tmp_path / "x.jsonl", self.rows(None, "", None))
        first, second, third = (talk.id for talk in read_talks(path))
        assert (len(first), second, third) == (16, f"{first}-2", f"{first}-3")

    def test_a_strange_one_is_refused(self, tmp_path: Path) -> None:
        assert "id: text is wanted" in fault(put(tmp_path / "x.jsonl", self.rows({"a": 1}))).message


def test_bad_records_are_passed_over_where_that_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", b"oops\n" + LINE + b'\n\xff\n{"messages": 3}\n' + LINE + b"\n")
    bad: list[DataError] = []
    assert len(list(read_talks(path, on_bad=bad.append))) == 2
    assert [each.line for each in bad] == [1, 3, 4]


@pytest.mark.parametrize("name", ["x.parquet", "x.tar.gz"])
def test_a_cut_container_is_named(name: str, tmp_path: Path) -> None:
    form = "parquet" if name == "x.parquet" else "cpsycoun"
    whole = tmp_path / name
    write_talks(whole, [TALK.model_copy(update={"id": f"t{n}"}) for n in range(50)], form)
    for share in (0.3, 0.6, 0.95):
        cut = put(tmp_path / f"cut-{name}", whole.read_bytes()[: int(whole.stat().st_size * share)])
        assert "cannot be read" in fault(cut, form).message


def test_an_archive_with_a_wrong_checksum_is_named(tmp_path: Path) -> None:
    write_talks(tmp_path / "x.tar.gz", [TALK], "cpsycoun")
    raw = bytearray((tmp_path / "x.tar.gz").read_bytes())
    raw[-8] ^= 1
    assert "CRC" in fault(put(tmp_path / "y.tar.gz", bytes(raw)), "cpsycoun").message


def test_gzip_that_is_no_archive_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in fault(put(tmp_path / "x.jsonl.gz", gzip.compress(LINE))).message


def test_a_text_in_another_encoding_inside_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "来访者：你好".encode("gb18030"))
    put(tmp_path / "b.txt", "来访者：你好".encode())
    bad: list[DataError] = []
    assert [talk.id for talk in read_talks(tmp_path, "cpsycoun", on_bad=bad.append)] == ["b"]
    assert "a.txt: byte 0 is not UTF-8" in bad[0].message


@given(content=st.binary(max_size=60) | st.binary(max_size=30).map(lambda raw: b"[" + LINE + b"," + raw))
@calm
def test_whatever_stands_in_a_file_the_error_is_ours(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path / "x", content)
    for form in (None, "openai", "cpsycoun", "qiaoban"):
        with suppress(QiaobanError):
            list(read_talks(path, form))


@given(cut=st.integers(1, 10**6), size=st.integers(1, 40))
@calm
def test_an_array_is_split_wherever_the_chunks_end(cut: int, size: int, tmp_path: Path) -> None:
    """Elements that are cut in numbers, escapes, words and characters of several bytes."""
    row = {"conversations": [{"from": "human", "value": '你\\"😀\n' * (cut % 97), "n": [-1.5e-7, True, None]}], "a": {"b": 12}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row] * size, ensure_ascii=bool(cut % 2), indent=cut % 3 or None), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qiaoban.formats.store._CHUNK", cut % 211 + 1)
        found = list(read_talks(path, "sharegpt"))
    assert [talk.turns[0].content for talk in found] == [row["conversations"][0]["value"]] * size  # type: ignore[index]


def test_a_byte_that_is_not_utf8_is_counted_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"[" + LINE + b"," + '{"a": "你好你好'.encode()
    for chunk in range(1, 12):
        monkeypatch.setattr("qiaoban.formats.store._CHUNK", chunk)
        error = fault(put(tmp_path / "x.json", head + b"\xe4A" + LINE), "openai")
        assert f"byte {len(head)} of the file is not UTF-8 (0xe4)" in error.message


class TestWriting:
    def test_many_parts_of_parquet_are_one_file_in_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qiaoban.formats.parquet._ROWS", 3)
        talks = [TALK.model_copy(update={"id": f"t{n}"}) for n in range(10)]
        write_talks(tmp_path / "x.parquet", talks, "parquet")
        assert list(read_talks(tmp_path / "x.parquet")) == talks
        assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]

    def test_a_fault_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        def talks() -> object:
            yield TALK
            raise DataError("broken")

        for form in TALKS:
            path = put(tmp_path / ("x.tar.gz" if form == "cpsycoun" else "x.json"), b"old")
            with pytest.raises(DataError, match="broken"):
                write_talks(path, talks(), form)  # type: ignore[arg-type]
            assert path.read_bytes() == b"old"
        assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x.tar.gz"}

    def test_a_place_that_cannot_be_written_is_a_wrong_call(self, tmp_path: Path) -> None:
        put(tmp_path / "file", b"")
        for form in ("openai", "parquet"):
            with pytest.raises(UsageError, match="cannot be written"):
                write_talks(tmp_path / "file" / "x.json", [TALK], form)

    def test_texts_want_an_archive(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="archive"):
            write_talks(tmp_path / "x.txt", [TALK], "cpsycoun")
