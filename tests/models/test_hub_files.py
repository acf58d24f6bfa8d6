"""Data files by their names on a hub, from a real server that plays both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qiaoban.errors import EngineError, UsageError
from qiaoban.formats.hub import local_file
from qiaoban.settings import Settings

BODY = b'{"id": "a", "messages": []}\n' * 5000


@pytest.fixture
def server(make_server: Callable[[], Any]) -> Any:
    fake = make_server()
    fake.files["/datasets/org/talks/resolve/main/data/train.jsonl"] = BODY
    fake.files["/datasets/org/talks/resolve/v2/data/train.jsonl"] = BODY[:100]
    fake.files["/datasets/org/talks/resolve/master/train.jsonl"] = BODY[:50]
    return fake


def env(server: Any, home: Path) -> Settings:
    return Settings(home=home, huggingface_url=server.url, modelscope_url=server.url, huggingface_token="t")


def test_a_file_is_fetched_once(server: Any, tmp_path: Path) -> None:
    path = local_file("hf:org/talks/data/train.jsonl", env(server, tmp_path))
    assert path.read_bytes() == BODY
    asked = len(server.log)
    assert local_file("hf:org/talks/data/train.jsonl", env(server, tmp_path)) == path
    assert len(server.log) == asked
    assert server.log[0].authorization == "Bearer t"
    assert not list(path.parent.glob("*.part"))


def test_a_revision_is_a_file_of_its_own_and_the_other_hub_too(server: Any, tmp_path: Path) -> None:
    assert local_file("hf:org/talks@v2/data/train.jsonl", env(server, tmp_path)).read_bytes() == BODY[:100]
    assert local_file("ms:org/talks/train.jsonl", env(server, tmp_path)).read_bytes() == BODY[:50]


def test_a_download_that_was_cut_goes_on(server: Any, tmp_path: Path) -> None:
    server.cut["/datasets/org/talks/resolve/main/data/train.jsonl"] = [20_000]
    assert local_file("hf:org/talks/data/train.jsonl", env(server, tmp_path)).read_bytes() == BODY
    assert any(request.range for request in server.log)


def test_a_path_is_a_path(server: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(BODY)
    assert local_file(str(tmp_path / "mine.jsonl"), env(server, tmp_path)) == tmp_path / "mine.jsonl"


@pytest.mark.parametrize("name", ["nowhere.jsonl", "hf:org", "hf:org/talks", "hf:org/talks/../../etc/passwd", "ms:/x/y"])
def test_what_is_no_file_is_refused(server: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no file|not a file on a hub"):
        local_file(name, env(server, tmp_path))


def test_a_file_that_the_hub_has_not_is_an_error_and_leaves_nothing(server: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        local_file("hf:org/talks/data/other.jsonl", env(server, tmp_path))
    assert not list(tmp_path.rglob("*other.jsonl"))
