"""The growing file: a disk that is really full, marks that lie, a file shorter than its marks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qiaoban.models.partial import DiskFullError, Marks, Partial, Silent, free_disk_bytes


def partial(folder: Path) -> Partial:
    return Partial(folder, "toy", progress=Silent())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_write_that_the_kernel_refuses_for_space(tmp_path: Path) -> None:
    (tmp_path / "toy.part").symlink_to("/dev/full")
    one = partial(tmp_path)
    one.expect(Marks(total=100))
    with pytest.raises(DiskFullError, match="the disk is full: 100 more bytes are needed") as caught:
        one.append([b"x" * 100])
    assert caught.value.needed == 100
    assert caught.value.free > 0
    assert caught.value.retryable


def test_other_write_errors_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "toy.part").mkdir()
    with pytest.raises(IsADirectoryError):
        partial(tmp_path).append([b"x"])


def test_marks_outlive_the_process(tmp_path: Path) -> None:
    one = partial(tmp_path)
    one.expect(Marks(etag='"e"', total=6, claimed="c"))
    one.append([b"abc"])
    one.mark_wheel()
    again = partial(tmp_path)
    assert again.marks == Marks(etag='"e"', total=6, claimed="c", ends=[3])
    assert again.size == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"etag": 1}', '{"etag":null,"total":1,"claimed":null,"ends":["a"]}'])
def test_marks_that_are_not_ours_are_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "toy.marks.json").write_text(text)
    assert partial(tmp_path).marks == Marks()


def test_bytes_past_the_last_whole_wheel_are_cut(tmp_path: Path) -> None:
    one = partial(tmp_path)
    one.append([b"abc"])
    one.mark_wheel()
    one.append([b"de"])
    one.drop_half_wheel()
    assert one.path.read_bytes() == b"abc"


def test_a_file_shorter_than_its_marks_is_begun_anew(tmp_path: Path) -> None:
    one = partial(tmp_path)
    one.append([b"abc"])
    one.mark_wheel()
    os.truncate(one.path, 2)
    one.drop_half_wheel()
    assert one.size == 0
    assert one.whole_wheels == 0


def test_what_is_left_counts_towards_the_room_that_is_needed(tmp_path: Path) -> None:
    one = Partial(tmp_path, "toy", progress=Silent(), free_bytes=lambda _: 4)
    one.append([b"abcdef"])
    one.expect(Marks(total=10))
    with pytest.raises(DiskFullError, match=r"5 more bytes are needed under .* and 4 are free"):
        one.expect(Marks(total=11))


def test_free_bytes_are_those_of_the_disk(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path) > 0
