"""What only one kind of source does: redirects, tokens, entity tags, stated digests; pip and the wheels it brings."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qiaoban.errors import EngineError
from qiaoban.models.partial import Marks, Partial, Silent, SourceError
from qiaoban.models.registry import Source
from qiaoban.models.sources import Access, Expected, fetch

TOKEN = "hf_secret"


@pytest.fixture(params=["huggingface", "modelscope"])
def either_hub(request: pytest.FixtureRequest, make_world: Callable[[str], Any]) -> Any:
    return make_world(request.param)


@pytest.fixture
def index(make_world: Callable[[str], Any]) -> Any:
    return make_world("pypi")


def half_fetched(world: Any) -> None:
    """Leave a partial file of 100,000 bytes: the connection is cut there, and every retry is refused."""
    world.fake.cut[world.hub_path] = [100_000]
    world.fake.statuses = {}
    notes: list[str] = []

    class RefuseAfterCut(Silent):
        def note(self, text: str) -> None:
            notes.append(text)
            if "connection lost" in text:
                world.fake.statuses[world.hub_path] = 503

    with pytest.raises(EngineError, match="HTTP 503"):
        world.pull(RefuseAfterCut())
    assert world.part_files[0].stat().st_size == 100_000
    world.fake.statuses.clear()
    world.fake.log.clear()


def test_the_next_pull_continues_a_half_fetched_file(either_hub: Any, told: Any) -> None:
    half_fetched(either_hub)
    either_hub.pull(told)
    (request,) = either_hub.fake.of(either_hub.hub_path)
    assert (request.range, request.status, request.sent) == ("bytes=100000-", 206, len(either_hub.body) - 100_000)
    assert told.count == len(either_hub.body)


def test_a_file_that_changed_meanwhile_is_begun_anew(either_hub: Any) -> None:
    either_hub.pinned = False
    half_fetched(either_hub)
    either_hub.body = either_hub.body[:24] + bytes(300_000)
    either_hub.serve()
    assert either_hub.pull().read_bytes() == either_hub.body
    (request,) = either_hub.fake.of(either_hub.hub_path)
    assert (request.range, request.status) == ("bytes=100000-", 200)


def test_without_an_entity_tag_an_unpinned_file_is_begun_anew(either_hub: Any) -> None:
    either_hub.fake.etags[either_hub.hub_path] = 'W/"weak"'
    half_fetched(either_hub)
    either_hub.pinned = False
    assert either_hub.pull().read_bytes() == either_hub.body
    assert [request.range for request in either_hub.fake.of(either_hub.hub_path)] == [None]


def test_without_an_entity_tag_a_pinned_file_is_continued(either_hub: Any) -> None:
    either_hub.fake.etags[either_hub.hub_path] = 'W/"weak"'
    half_fetched(either_hub)
    either_hub.fake.etags.clear()
    either_hub.pull()
    assert [request.range for request in either_hub.fake.of(either_hub.hub_path)] == ["bytes=100000-"]


def test_a_login_page_does_not_cost_the_half_that_was_fetched(either_hub: Any) -> None:
    half_fetched(either_hub)
    either_hub.fake.pages[either_hub.hub_path] = b"<html>the login page of a hotel</html>"
    with pytest.raises(EngineError, match="has 38 bytes, not the expected 300,024"):
        either_hub.pull()
    assert either_hub.part_files[0].stat().st_size == 100_000


def test_a_login_page_is_never_trusted_on_first_use(either_hub: Any) -> None:
    either_hub.pinned = False
    either_hub.fake.pages[either_hub.hub_path] = b"<html>the login page of a hotel</html>"
    with pytest.raises(EngineError, match="not a model file"):
        either_hub.pull()
    assert either_hub.model_files == []
    assert either_hub.part_files == []


def test_a_file_fetched_whole_but_not_yet_named_needs_no_network(either_hub: Any) -> None:
    """A process can die after the last byte and before the check."""
    half_fetched(either_hub)
    either_hub.part_files[0].write_bytes(either_hub.body)
    assert either_hub.pull().read_bytes() == either_hub.body
    assert either_hub.fake.log == []


def test_an_answer_from_another_offset_is_not_appended(either_hub: Any) -> None:
    half_fetched(either_hub)
    either_hub.fake.headers[either_hub.hub_path] = {"Content-Range": f"bytes 5-300023/{len(either_hub.body)}"}
    with pytest.raises(EngineError, match="asked for bytes from 100,000 and got 'bytes 5-300023/300024"):
        either_hub.pull()
    assert either_hub.part_files[0].stat().st_size == 100_000


def test_a_partial_longer_than_the_file_is_begun_anew(either_hub: Any) -> None:
    half_fetched(either_hub)
    either_hub.part_files[0].write_bytes(either_hub.body + b"more")
    assert either_hub.pull().read_bytes() == either_hub.body
    assert [request.range for request in either_hub.fake.of(either_hub.hub_path)] == [None]


def test_a_file_that_shrank_below_the_partial_is_begun_anew_next_time(either_hub: Any) -> None:
    either_hub.pinned = False
    half_fetched(either_hub)
    either_hub.fake.etags[either_hub.hub_path] = f'"{hashlib.sha256(either_hub.body).hexdigest()}"'
    either_hub.body = either_hub.body[:50_000]
    either_hub.serve()
    with pytest.raises(EngineError, match="HTTP 416"):
        either_hub.pull()
    assert either_hub.pull().read_bytes() == either_hub.body


def test_a_server_that_hides_the_length_is_not_trusted_on_first_use(hub: Any) -> None:
    hub.fake.lengthless = {hub.hub_path}
    hub.pinned = False
    with pytest.raises(EngineError, match="does not say how long the file is"):
        hub.pull()
    assert hub.part_files == []


def test_a_hidden_length_does_not_hide_a_cut_from_a_pinned_file(hub: Any) -> None:
    hub.fake.lengthless = {hub.hub_path}
    hub.fake.cut[hub.hub_path] = [100_000]
    with pytest.raises(EngineError, match="it ended after 100,000 of 300,024 bytes"):
        hub.pull()
    assert hub.pull().read_bytes() == hub.body
    assert hub.fake.of(hub.hub_path)[-1].range == "bytes=100000-"


@pytest.mark.parametrize(("status", "says"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "HTTP 404"), (500, "500")])
def test_a_refusal_says_what_to_do(hub: Any, status: int, says: str) -> None:
    hub.fake.statuses[hub.hub_path] = status
    with pytest.raises(EngineError, match=says):
        hub.pull()


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def test_the_token_stays_with_the_hub_when_it_redirects(hub: Any, make_server: Callable[[], Any]) -> None:
    elsewhere = make_server()
    elsewhere.files["/blob"] = hub.body
    hub.fake.redirects = {hub.hub_path: "/renamed", "/renamed": f"{elsewhere.url}/blob"}
    assert hub.pull(huggingface_token=TOKEN).read_bytes() == hub.body
    assert [request.authorization for request in hub.fake.log] == [f"Bearer {TOKEN}"] * 2
    assert [request.authorization for request in elsewhere.log] == [None]


def test_a_resumed_redirect_keeps_its_range(hub: Any, make_server: Callable[[], Any]) -> None:
    elsewhere = make_server()
    elsewhere.files["/blob"] = hub.body
    elsewhere.cut["/blob"] = [100_000]
    hub.fake.redirects = {hub.hub_path: f"{elsewhere.url}/blob"}
    assert hub.pull().read_bytes() == hub.body
    assert [request.range for request in elsewhere.log] == [None, "bytes=100000-"]


def test_no_token_goes_to_modelscope(make_world: Callable[[str], Any]) -> None:
    world = make_world("modelscope")
    world.pull(huggingface_token=TOKEN)
    assert [request.authorization for request in world.fake.log] == [None]


def test_the_stated_digest_is_checked_when_none_is_pinned(hub: Any, make_server: Callable[[], Any], told: Any) -> None:
    elsewhere = make_server()
    elsewhere.files["/blob"] = hub.body[:-1] + b"?"
    hub.pinned = False
    hub.fake.redirects = {hub.hub_path: f"{elsewhere.url}/blob"}
    hub.fake.headers[hub.hub_path] = {"X-Linked-Etag": f'"{hashlib.sha256(hub.body).hexdigest()}"'}
    with pytest.raises(EngineError, match=f"expected {hashlib.sha256(hub.body).hexdigest()}; deleted"):
        hub.pull()
    elsewhere.files["/blob"] = hub.body
    hub.pull(told)
    assert hub.store().installed()[0].trust == "hub"
    assert "the hub states the same one" in told.text


def test_a_stated_digest_other_than_the_pinned_one_saves_the_download(hub: Any) -> None:
    hub.fake.headers[hub.hub_path] = {"X-Linked-Etag": f'"{"0" * 64}"'}
    with pytest.raises(EngineError, match=f"sha256 {'0' * 64}, not the expected .*; not fetched"):
        hub.pull()
    assert hub.part_files == []


def test_an_endpoint_that_is_no_address_is_a_reason(hub: Any) -> None:
    with pytest.raises(EngineError, match="huggingface org/toy: UnsupportedProtocol"):
        hub.pull(huggingface_url="hub.example")


# ---- package indexes -------------------------------------------------------------------------------------------------


def fetch_wheels(world: Any, source: Source, size: int | None = None, python: str = sys.executable) -> Partial:
    partial = Partial(world.home, "toy", progress=Silent())
    fetch(source, Expected(size=size, sha256=None), partial, Access(settings=world.settings(), python=python))
    return partial


def toy(member: str = "*/data/part*.bin", *packages: str) -> Source:
    return Source(kind="pypi", packages=packages or ("toy-part1==1.0",), member=member)


def test_a_python_without_pip_says_how_to_get_it(index: Any, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = next(path for path in (tmp_path / "bare").glob("*/python*") if path.is_file())
    with pytest.raises(SourceError, match="pip is missing from this Python; `python -m ensurepip`"):
        fetch_wheels(index, toy(), python=str(bare))


def test_a_python_that_does_not_exist_is_a_reason(index: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="pip cannot be run"):
        fetch_wheels(index, toy(), python=str(tmp_path / "nowhere"))


def test_a_file_named_pip_is_not_run(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch_wheels(index, toy()).size == len(index.body) // 3


def test_an_sdist_is_never_built(index: Any) -> None:
    index.fake.files["/files/evil-1.0.tar.gz"] = b"not even opened"
    link = b'<a href="/files/evil-1.0.tar.gz">evil-1.0.tar.gz</a>'
    index.fake.pages["/simple/evil/"] = b"<!DOCTYPE html><html><body>" + link
    with pytest.raises(SourceError, match=r"pip could not download evil==1\.0: .*No matching distribution"):
        fetch_wheels(index, toy("*", "evil==1.0"))
    assert index.fake.of("/files/evil-1.0.tar.gz") == []


@pytest.mark.parametrize(("member", "found"), [("*.gguf", 0), ("*.dist-info/*", 3)])
def test_a_member_must_be_one(index: Any, member: str, found: int) -> None:
    with pytest.raises(SourceError, match=f"holds {found} files that match"):
        fetch_wheels(index, toy(member))


def test_a_member_that_is_too_big_is_not_unpacked(index: Any) -> None:
    with pytest.raises(SourceError, match=r"toy_part1-1\.0-.*\.whl brings the file to 100,008 bytes, past 90,000"):
        fetch_wheels(index, toy(), size=90_000)


def test_a_damaged_wheel_is_named(index: Any) -> None:
    wheel = bytearray(index.fake.files[index.file_paths[0]])
    wheel[5_000] ^= 0xFF
    index.fake.files[index.file_paths[0]] = bytes(wheel)
    with pytest.raises(SourceError, match=r"toy_part1-1\.0-py3-none-any\.whl cannot be read: Bad CRC-32"):
        fetch_wheels(index, toy())


def test_wheels_do_not_stay(index: Any) -> None:
    partial = fetch_wheels(index, toy("*/data/part*.bin", "toy-part1==1.0", "toy-part2==1.0"))
    assert sorted(path.name for path in index.home.iterdir()) == ["toy.marks.json", "toy.part"]
    assert partial.marks == Marks(ends=[100_008, 200_016])
