"""The header reader returns what was written, quickly, and turns every hostile file into a DataError."""

from __future__ import annotations

import re
import struct
import time
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiaoban.errors import DataError
from qiaoban.models.gguf import read_metadata

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
on_one_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def plain(kind: int, value: object) -> bytes:
    if kind == 9:
        inner, elements = cast("tuple[int, list[object]]", value)
        return struct.pack("<IQ", inner, len(elements)) + b"".join(plain(inner, one) for one in elements)
    return text(value) if kind == 8 else struct.pack(f"<{FORMS[kind]}", value)  # type: ignore[arg-type]


def header(pairs: dict[str, tuple[int, object]], version: int = 3) -> bytes:
    body = b"".join(text(key) + struct.pack("<I", kind) + plain(kind, value) for key, (kind, value) in pairs.items())
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + body


def unwrapped(kind: int, value: object) -> object:
    return [unwrapped(value[0], one) for one in value[1]] if kind == 9 else value  # type: ignore[index]


def refusal(path: Path) -> str | None:
    """What the reader has against the file; any other exception than DataError fails the test."""
    try:
        read_metadata(path)
    except DataError as error:
        return error.message
    return None


BY_KIND: dict[int, st.SearchStrategy[object]] = {
    0: st.integers(0, 2**8 - 1),
    1: st.integers(-(2**7), 2**7 - 1),
    2: st.integers(0, 2**16 - 1),
    3: st.integers(-(2**15), 2**15 - 1),
    4: st.integers(0, 2**32 - 1),
    5: st.integers(-(2**31), 2**31 - 1),
    6: st.floats(width=32, allow_nan=False),
    7: st.booleans(),
    8: st.text(max_size=20),
    10: st.integers(0, 2**64 - 1),
    11: st.integers(-(2**63), 2**63 - 1),
    12: st.floats(allow_nan=False),
}


def lists(depth: int) -> st.SearchStrategy[tuple[int, object]]:
    kinds = st.sampled_from([*BY_KIND, *([9] if depth else [])])
    return kinds.flatmap(
        lambda kind: st.tuples(st.just(kind), st.lists(BY_KIND[kind] if kind != 9 else lists(depth - 1), max_size=5))
    )


values = st.one_of(*(st.tuples(st.just(kind), one) for kind, one in BY_KIND.items()), st.tuples(st.just(9), lists(2)))
headers = st.dictionaries(st.text(max_size=20), values, max_size=8)


@given(pairs=headers, version=st.sampled_from([2, 3]))
@on_one_file
def test_what_was_written_is_read(tmp_path: Path, pairs: dict[str, tuple[int, object]], version: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(pairs, version) + b"tensors follow")
    assert read_metadata(path) == {key: unwrapped(kind, value) for key, (kind, value) in pairs.items()}


@given(pairs=headers, data=st.data())
@on_one_file
def test_a_hostile_header_is_a_data_error_or_is_read(
    tmp_path: Path, pairs: dict[str, tuple[int, object]], data: st.DataObject
) -> None:
    raw = bytearray(header(pairs))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.gguf"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    assert refusal(path) is None or re.search(f"^{path}: .* byte", str(refusal(path)), re.DOTALL)


@given(junk=st.binary(max_size=400))
@on_one_file
def test_junk_after_the_magic_is_refused_or_read(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(8) + junk)
    assert refusal(path) is None or str(refusal(path)).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "only 0 bytes"),
        (b"<html>the login page of a hotel</html>", "starts with b'<htm' .at byte 0"),
        (header({}, version=1), "version 1"),
        (header({}, version=9), "version 9"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1),
            "8 bytes are announced, which runs past the end of the file .at byte 24",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "pairs are more than"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "9,223,372,036,854,775,808 bytes are announced"),
        (header({"k": (4, 1)})[:-2], "4 bytes are announced"),
        (header({"k": (8, "abc")})[:-1], "3 bytes are announced, which runs past the end of the file .at byte 45"),
        (header({"k": (9, (8, ["abc", "d"]))})[:-5], "8 bytes are announced"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 99), "type 99 does not exist"),
        (header({"k": (9, (4, []))})[:-8] + struct.pack("<Q", 2**62), "elements is more than a header may hold"),
        (header({"k": (9, (4, []))})[:-8] + struct.pack("<Q", 3_000_000), "12,000,000 bytes are announced"),
        (header({"k": (0, 2)}).replace(struct.pack("<I", 0) + b"\2", struct.pack("<I", 7) + b"\2"), "neither 0 nor 1"),
    ],
)
def test_each_way_to_be_wrong_is_named(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=says):
        read_metadata(path)


def test_keys_appear_once_and_are_utf8(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("k") + struct.pack("<IB", 0, 1)))
    with pytest.raises(DataError, match="'k' appears twice"):
        read_metadata(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"\xff") + struct.pack("<IB", 0, 1))
    with pytest.raises(DataError, match="not UTF-8"):
        read_metadata(path)


def test_split_characters_in_a_vocabulary_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header({"tokens": (9, (8, [b"\xe4\xbd", "好"]))}))
    assert read_metadata(path) == {"tokens": ["\ufffd", "好"]}


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    deep: tuple[int, object] = (0, [])
    for _ in range(6):
        deep = (9, [deep])
    path = tmp_path / "model.gguf"
    path.write_bytes(header({"k": (9, deep)}))
    with pytest.raises(DataError, match="nested more than 4 deep"):
        read_metadata(path)


def test_a_large_vocabulary_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    tokens, merges = [f"字{n}" for n in range(151_936)], [f"a{n} b{n}" for n in range(151_387)]
    path = tmp_path / "model.gguf"
    path.write_bytes(header({"tokens": (9, (8, tokens)), "types": (9, (5, [1] * 151_936)), "merges": (9, (8, merges))}))
    before = time.process_time()
    read = read_metadata(path)
    spent = time.process_time() - before
    assert read["tokens"] == tokens
    assert read["merges"] == merges
    assert spent < 1.5  # 0.2 s on a quiet core; the bound is for a busy one
