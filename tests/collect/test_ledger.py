"""The ledger over real SQLite files: nothing that was paid for is lost, overwritten or counted wrongly."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qiaoban.errors import DataError
from qiaoban.teacher.ledger import Call, Ledger, Usage, passes

from .conftest import call_for

USAGE = Usage(prompt=100, completion=20, cached=60)


def store(ledger: Ledger, call: Call, raw: str = "raw", usage: Usage = USAGE) -> str:
    ledger.sent(call, call.key)
    ledger.answered(call.key, raw, usage)
    return call.key


def doubt(ledger: Ledger, call: Call) -> str:
    ledger.sent(call, call.key)
    ledger.unanswered(call.key, "timeout", doubtful=True)
    return call.key


# ---- keys


def test_a_key_follows_all_that_determines_an_answer_and_not_the_order() -> None:
    def key(card: str = "c", slot: str = "s#0", tokens: int = 1, **body: Any) -> str:
        return Call(card=card, slot=slot, tokens=tokens, body={"model": "m", "messages": [{"role": "user"}], **body}).key

    variants = [
        key(),
        key(card="d"),
        key(slot="s#1"),
        key(model="n"),
        key(messages=[{"role": "system"}]),
        key(messages=[{"role": "user"}, {"role": "user"}]),
        key(max_tokens=5),
        key(max_tokens=6),
        key(response_format={"type": "json_object"}),
        key(thinking={"a": 1, "b": 2}),
        key(card="c\x00s"),
    ]
    assert len(set(variants)) == len(variants)
    assert key(thinking={"a": 1, "b": 2}) == key(thinking={"b": 2, "a": 1})
    assert (
        Call(card="c", slot="s", tokens=1, body={"a": 1, "b": 2}).key
        == Call(card="c", slot="s", tokens=2, body={"b": 2, "a": 1}).key
    )
    assert len(key()) == 64


# ---- calls


def test_an_answer_is_committed_when_the_call_returns(ledger: Ledger) -> None:
    call = call_for()
    with sqlite3.connect(ledger.path) as other:
        ledger.sent(call, call.key)
        assert other.execute("SELECT state, sends FROM calls").fetchall() == [("sent", 1)]
        ledger.answered(call.key, "答案", USAGE)
        assert other.execute("SELECT state, raw, cached_tokens FROM calls").fetchall() == [("answered", "答案", 60)]
    other.close()


def test_only_an_answered_call_has_an_answer(ledger: Ledger) -> None:
    call = call_for()
    assert ledger.answer(call.key) is None
    assert ledger.sends(call.key) == (0, "")
    ledger.sent(call, call.key)
    assert ledger.answer(call.key) is None
    ledger.unanswered(call.key, "not_chat", doubtful=False, raw="<html>")
    assert ledger.answer(call.key) is None
    assert ledger.sends(call.key) == (1, "not_chat")
    assert store(ledger, call, "答") == call.key
    assert ledger.answer(call.key) == "答"
    assert ledger.sends(call.key) == (2, "")


def test_an_unreadable_answer_stays_stored(ledger: Ledger) -> None:
    key = store(ledger, call_for())
    ledger.unreadable(key, "bad_json")
    assert ledger.answer(key) == "raw"
    assert ledger.totals().faults == {"bad_json": 1}


def test_calls_in_flight_at_a_kill_become_doubtful_once(ledger: Ledger) -> None:
    flying, done = call_for(card="a", tokens=700), call_for(card="b")
    ledger.sent(flying, flying.key)
    store(ledger, done)
    assert ledger.recover() == 1
    assert ledger.recover() == 0
    totals = ledger.totals()
    assert (totals.doubtful, totals.doubtful_tokens, totals.answered) == (1, 700, 1)
    store(ledger, flying)
    assert ledger.totals().doubtful_tokens == 700, "it may have been paid the first time as well"


def test_totals(ledger: Ledger) -> None:
    assert ledger.totals().usage == Usage()
    store(ledger, call_for(card="a"), usage=Usage(100, 20, 60))
    store(ledger, call_for(card="b"), usage=Usage(10, 2))
    for _ in range(2):
        doubt(ledger, call_for(card="c", tokens=300))
    refused = call_for(card="d")
    ledger.sent(refused, refused.key)
    ledger.unanswered(refused.key, "too_many", doubtful=False)
    ledger.done("a", "sha", "{}")
    ledger.done("b", "sha", "{}")
    ledger.failed("c", "sha", "why")
    totals = ledger.totals()
    assert (totals.answered, totals.usage) == (2, Usage(110, 22, 60))
    assert (totals.doubtful, totals.doubtful_tokens) == (2, 600)
    assert (totals.done, totals.failed) == (2, 1)
    assert totals.faults == {"timeout": 1, "too_many": 1}


# ---- cards


def test_a_card_is_done_or_failed(ledger: Ledger) -> None:
    assert ledger.state("a") is None
    ledger.done("a", "sha-a", '{"id":"a"}')
    ledger.failed("b", "sha-b", "nobody answered")
    assert ledger.state("a") == ("done", "sha-a")
    assert ledger.state("b") == ("failed", "sha-b")
    assert ledger.record("a") == '{"id":"a"}'
    assert ledger.record("b") is None
    assert list(ledger.failures()) == [("b", "nobody answered")]


def failed_card(ledger: Ledger) -> tuple[str, str]:
    good = store(ledger, call_for(card="bad", slot="outline#0"))
    unread = store(ledger, call_for(card="bad", slot="child/1#0"))
    ledger.unreadable(unread, "empty")
    ledger.failed("bad", "sha", "empty (3 tries)")
    return good, unread


def test_a_retry_asks_again_for_what_could_not_be_read_and_for_nothing_else(ledger: Ledger) -> None:
    good, unread = failed_card(ledger)
    elsewhere = store(ledger, call_for(card="fine"))
    ledger.unreadable(elsewhere, "empty")
    ledger.done("fine", "sha", "{}")
    assert ledger.retry_failed() == 1
    assert ledger.state("bad") is None
    assert ledger.rounds("bad") == 2, "fresh tries, beyond the one that could not be read"
    assert ledger.rounds("fine") == 1
    assert ledger.answer(unread) == "raw", "what was paid for stays"
    assert ledger.answer(good) == "raw"
    assert ledger.answer(elsewhere) == "raw"
    assert ledger.state("fine") == ("done", "sha")
    assert ledger.retry_failed() == 0


def test_a_retry_does_not_forget_what_was_spent(ledger: Ledger) -> None:
    failed_card(ledger)
    doubt(ledger, call_for(card="bad", slot="child/2#0", tokens=300))
    before = ledger.totals()
    ledger.retry_failed()
    after = ledger.totals()
    assert (after.usage, after.doubtful_tokens) == (before.usage, before.doubtful_tokens)


# ---- batches and runs


def test_batches_are_open_until_they_are_fetched(ledger: Ledger) -> None:
    ledger.batch("one", "submitted", 10)
    ledger.batch("two", "submitted", 20)
    ledger.batch("one", "fetched", 10)
    assert ledger.open_batches() == ["two"]


def test_the_last_run_is_seen_from_elsewhere_while_it_goes_on(ledger: Ledger) -> None:
    assert ledger.last_run() is None
    ledger.begin_run(1)
    number = ledger.begin_run(4711)
    ledger.beat(number, {"done": 3, "trouble": "停"})
    with Ledger(ledger.path, read_only=True) as reader:
        run = reader.last_run()
        assert run is not None
        assert (run["pid"], run["live"], run["ended"]) == (4711, {"done": 3, "trouble": "停"}, None)
        ledger.beat(number, {}, "finished")
        assert (reader.last_run() or {})["ended"] == "finished"
        with pytest.raises(sqlite3.OperationalError):
            reader.done("a", "sha", "{}")


# ---- files


def test_a_ledger_that_is_not_there_cannot_be_read_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none" / "ledger.sqlite"
    with pytest.raises(DataError, match="is not there"):
        Ledger(path, read_only=True)
    assert not path.exists()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_text_file_is_no_ledger_and_is_left_alone(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("dear diary\n" * 500, "utf-8")
    with pytest.raises(DataError, match="cannot be used as a ledger") as caught:
        Ledger(path, read_only=read_only)
    assert caught.value.path == path
    assert path.read_text("utf-8") == "dear diary\n" * 500


@pytest.mark.parametrize("read_only", [True, False])
def test_a_newer_version_is_named_and_left_alone(ledger: Ledger, read_only: bool) -> None:
    with sqlite3.connect(ledger.path) as other:
        other.execute("PRAGMA user_version=2")
    other.close()
    with pytest.raises(DataError, match="version 2"):
        Ledger(ledger.path, read_only=read_only)


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        Ledger(tmp_path)


@pytest.mark.parametrize("name", ["run #1", "run?2", "50%41", "一次", "file:x"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "ledger.sqlite"
    with Ledger(path) as ledger:
        key = store(ledger, call_for())
    assert path.is_file()
    with Ledger(path, read_only=True) as reader:
        assert reader.answer(key) == "raw"


def test_it_works_without_shared_memory(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, exclusive=True) as ledger:
        key = store(ledger, call_for())
        assert not path.with_name("ledger.sqlite-shm").exists()
    with Ledger(path, read_only=True) as reader:
        assert reader.answer(key) == "raw"


# ---- shards


def test_an_answer_may_come_from_the_ledger_behind(tmp_path: Path, ledger: Ledger) -> None:
    call = call_for()
    store(ledger, call, "old")
    with Ledger(tmp_path / "front.sqlite", behind=ledger) as front:
        assert front.answer(call.key) == "old"
        assert front.answer("unknown") is None
        store(front, call, "new")
        assert front.answer(call.key) == "new"
        assert ledger.answer(call.key) == "old"


def test_a_copy_holds_the_answers_of_open_cards_and_nothing_else(tmp_path: Path, ledger: Ledger) -> None:
    open_one = store(ledger, call_for(card="open"))
    settled = [store(ledger, call_for(card=name)) for name in ("done", "failed")]
    ledger.done("done", "sha", "{}")
    ledger.failed("failed", "sha", "why")
    doubtful = doubt(ledger, call_for(card="open", slot="child/2#0"))
    ledger.copy_unsettled(tmp_path / "copy.sqlite")
    with Ledger(tmp_path / "copy.sqlite", read_only=True) as copy:
        assert copy.answer(open_one) == "raw"
        assert [copy.answer(key) for key in settled] == [None, None]
        assert copy.sends(doubtful) == (0, "")
        assert (copy.totals().answered, copy.totals().done) == (1, 0)


def test_a_merge_takes_what_is_new_and_overwrites_no_answer(tmp_path: Path, ledger: Ledger) -> None:
    both, new, flying = (call_for(card=name, tokens=40) for name in ("both", "new", "flying"))
    store(ledger, both, "mine")
    ledger.sent(new, new.key)
    with Ledger(tmp_path / "shard.sqlite") as shard:
        store(shard, both, "theirs")
        store(shard, new, "theirs")
        shard.sent(flying, flying.key)
        shard.done("new", "sha", '{"id":"new"}')
    for _ in range(2):  # a second time changes nothing
        ledger.merge(tmp_path / "shard.sqlite")
        assert ledger.answer(both.key) == "mine"
        assert ledger.answer(new.key) == "theirs"
        assert ledger.sends(flying.key) == (1, "")
        assert ledger.recover() == 0, "the shard's calls in flight are doubtful already"
        assert (ledger.totals().doubtful, ledger.totals().doubtful_tokens) == (1, 40)
        assert ledger.record("new") == '{"id":"new"}'


def test_a_merge_overwrites_no_finished_dialogue(tmp_path: Path, ledger: Ledger) -> None:
    ledger.done("a", "sha", "{}")
    with Ledger(tmp_path / "shard.sqlite") as shard:
        shard.failed("a", "sha", "why")
    ledger.merge(tmp_path / "shard.sqlite")
    assert ledger.state("a") == ("done", "sha")


def test_a_merge_forgets_no_doubt(tmp_path: Path, ledger: Ledger) -> None:
    call = call_for(tokens=40)
    doubt(ledger, call)
    with Ledger(tmp_path / "shard.sqlite") as shard:
        store(shard, call)
    ledger.merge(tmp_path / "shard.sqlite")
    assert ledger.answer(call.key) == "raw"
    assert ledger.totals().doubtful_tokens == 40


# ---- no room, and a kill


def limit_pages(ledger: Ledger, more: int) -> None:
    """Let the file grow by `more` pages and no further."""
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages + more}")


def test_a_full_disk_is_told_from_other_errors_and_loses_nothing(ledger: Ledger) -> None:
    first, second = call_for(card="a"), call_for(card="b")
    key = store(ledger, first)
    ledger.sent(second, second.key)
    limit_pages(ledger, 0)
    with pytest.raises(sqlite3.Error) as full:
        ledger.answered(second.key, "x" * 100_000, USAGE)
    assert passes(full.value)
    assert ledger.answer(key) == "raw"
    assert ledger.answer(second.key) is None
    limit_pages(ledger, 1000)
    ledger.answered(second.key, "x" * 100_000, USAGE)
    assert ledger.answer(second.key) == "x" * 100_000


def test_other_errors_are_not_a_full_disk(ledger: Ledger) -> None:
    with Ledger(ledger.path, read_only=True) as reader, pytest.raises(sqlite3.Error) as read_only:
        reader.done("a", "sha", "{}")
    assert not passes(read_only.value)
    ledger.close()
    with pytest.raises(sqlite3.Error) as closed:
        ledger.done("a", "sha", "{}")
    assert not passes(closed.value)


WRITER = """
import sys
from pathlib import Path
from qiaoban.teacher.ledger import Call, Ledger, Usage
with Ledger(Path(sys.argv[1])) as ledger:
    print("recovered", ledger.recover(), flush=True)
    for n in range(int(sys.argv[2]), 10**9):
        call = Call(card=str(n), slot="s#0", tokens=10, body={})
        ledger.sent(call, call.key)
        ledger.answered(call.key, f"{n} " + "x" * (n * 37 % 9000), Usage(1, 1))
        print(n, flush=True)
"""


def test_a_kill_in_mid_writing_loses_no_committed_answer(tmp_path: Path) -> None:
    path, chance, committed, killed = tmp_path / "ledger.sqlite", random.Random(), list[int](), 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path), str(1_000_000 * killed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            recovered = int(writer.stdout.readline().split()[1])
            assert recovered <= (killed > 0)
            for _, line in zip(range(chance.randrange(20, 400)), writer.stdout, strict=False):
                committed.append(int(line))
            writer.kill()
            committed += [int(line) for line in writer.stdout if line.endswith("\n")]
        killed += 1
    with Ledger(path) as ledger:
        assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for n in committed:
            assert ledger.answer(Call(card=str(n), slot="s#0", tokens=10, body={}).key) == f"{n} " + "x" * (n * 37 % 9000)
        assert len(committed) <= ledger.totals().answered <= len(committed) + killed
        assert ledger.recover() <= 1
