"""Curation on a Ray cluster: two workers, and the same files as in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from qiaoban.cluster import Crew
from qiaoban.conversation import Conversation, Turn, read_conversations, write_conversations
from qiaoban.curate.decontaminate import HeldOut
from qiaoban.curate.pipeline import CurateOptions, curate
from qiaoban.curate.scale import ray_hands
from tests.curate.test_pipeline import GOOD, TALKS
from tests.curate.test_planted import PLANTED, rows, talk

pytest.importorskip("ray", reason="Ray is not installed (extra `scale`)")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own, of its own settings and of its sockets


def many() -> list[Conversation]:
    """Clean talks, some that the rules drop, copies, and phone numbers: every stage has something to leave out."""
    clean = [talk(row["id"], row) for row in rows(PLANTED / "clean.jsonl")]
    bad = [talk(f"secret-{n}", row) for n, row in enumerate(rows(PLANTED / "secrecy.jsonl"))]
    odd = GOOD.model_copy(update={"id": "odd", "turns": tuple(_broken(turn) for turn in GOOD.turns[:4])})
    return [*TALKS, odd, *clean, *bad, *(one.model_copy(update={"id": f"again-{one.id}"}) for one in clean[:20])]


def _broken(turn: Turn) -> Turn:
    """With characters in it at which some programs end a line."""
    return turn.model_copy(update={"content": f"\x85{turn.content}\u2028\u2029"})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json*"))}


@pytest.mark.timeout(300)
def test_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    write_conversations(tmp_path / "talks.jsonl", many())
    read = partial(read_conversations, tmp_path / "talks.jsonl")
    options = CurateOptions(against=(HeldOut("test", ("站到前面去的那几步，腿会不会发软？",)),), redact=True)
    counts = curate(read, tmp_path / "one", options)
    assert all(count.dropped for count in counts[:3])
    with ray_hands(Crew(workers=2), batch=40) as hands:
        assert curate(read, tmp_path / "two", options, hands) == counts
        assert [count.read for count in curate(list, tmp_path / "none", options, hands)] == [0, 0, 0, 0]
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert GOOD.to_json().encode() in (tmp_path / "two" / "kept.jsonl").read_bytes()
