"""Every paid call and every finished dialogue of a run, in one SQLite file.

A call is known by the hash of everything that determines its answer. It is marked before it is sent and its raw answer is
committed before anybody reads it, so a process that is killed loses no answer that had arrived, and a second run pays for
nothing twice. Write-ahead logging with `synchronous=NORMAL`: safe against a killed process; a power cut may lose the last
commits, never the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiaoban.errors import DataError

_VERSION = 1
_SCHEMA = """
CREATE TABLE calls (
    key TEXT PRIMARY KEY,          -- sha256 of model, parameters, messages, card, slot and try
    card TEXT NOT NULL,
    slot TEXT NOT NULL,            -- which call of the dialogue, e.g. "companion/3", and which try
    state TEXT NOT NULL,           -- sent, answered, refused (the endpoint said no) or doubtful (nobody knows)
    sends INTEGER NOT NULL,        -- how often it was sent
    doubts INTEGER NOT NULL,       -- how often nobody knows whether it was paid
    tokens INTEGER NOT NULL,       -- the most that it is likely to take: what a doubt is counted as
    fault TEXT,                    -- what was wrong with the answer, or why there is none
    raw TEXT,                      -- the body of the answer as it came
    prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER,
    at REAL NOT NULL               -- seconds since the epoch, of the last change
) WITHOUT ROWID;
CREATE TABLE cards (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, sha TEXT NOT NULL, record TEXT, reason TEXT, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE rounds (card TEXT PRIMARY KEY, again INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (id TEXT PRIMARY KEY, state TEXT NOT NULL, calls INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (id INTEGER PRIMARY KEY, pid INTEGER, started REAL, beat REAL, live TEXT, ended TEXT);
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request to a teacher. `tokens` is the most that prompt and answer can take; `body` is what is sent."""

    card: str
    slot: str
    body: Mapping[str, Any]
    tokens: int

    @property
    def key(self) -> str:
        """SHA-256 over all that determines the answer; also the Idempotency-Key."""
        whole = json.dumps([self.card, self.slot, self.body], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True)
class Usage:
    """Tokens that the endpoint billed. `cached` is the part of `prompt` that it had seen before."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached)

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a ledger holds.

    `doubtful` counts sends of which nobody knows whether they were paid, `doubtful_tokens` the most that they can have taken.
    """

    answered: int
    doubtful: int
    doubtful_tokens: int
    usage: Usage
    done: int
    failed: int
    faults: Mapping[str, int]


class Ledger:
    """See the module. One process writes at a time; any number may read."""

    def __init__(self, path: Path, *, read_only: bool = False, exclusive: bool = False, behind: Ledger | None = None) -> None:
        """Open, or make, the file. `exclusive` needs no shared memory, so that it also works on a network file system.

        Answers that are not here are looked for in the ledger `behind`.
        """
        self.path = path
        self._behind = behind
        if read_only and not path.exists():
            raise DataError("is not there: nothing was collected yet", path=path)
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve().as_uri() + ("?mode=ro" if read_only else "")
        if read_only and not os.access(path.parent, os.W_OK):
            target += "&immutable=1"  # a write-ahead log cannot be shared there, and nobody writes
        try:
            self._db = sqlite3.connect(target, uri=True, isolation_level=None, timeout=30, check_same_thread=False)
        except sqlite3.Error as error:
            raise DataError(f"cannot be opened: {error}", path=path, hint="give another folder") from None
        try:
            self._prepare(read_only=read_only, exclusive=exclusive)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise DataError(f"cannot be used as a ledger: {error}", path=path, hint="give another folder") from None

    def _prepare(self, *, read_only: bool, exclusive: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION) or (version == 0 and read_only):
            raise sqlite3.DatabaseError(f"it is of version {version}, this program writes {_VERSION}")
        if read_only:
            return
        if exclusive:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA busy_timeout=500")
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- calls ------------------------------------------------------------------------------------------------------------

    def recover(self) -> int:
        """Turn calls that were in flight when a run was killed into doubtful ones; returns how many."""
        return self._db.execute("UPDATE calls SET state='doubtful', doubts=doubts+1 WHERE state='sent'").rowcount

    def answer(self, key: str) -> str | None:
        """The raw answer to a call, if one is stored."""
        row = self._db.execute("SELECT raw FROM calls WHERE key=? AND state='answered'", (key,)).fetchone()
        if row is None and self._behind is not None:
            return self._behind.answer(key)
        return None if row is None else str(row[0])

    @property
    def has_answers(self) -> bool:
        """Whether anything was ever answered."""
        if self._db.execute("SELECT 1 FROM calls WHERE state='answered' LIMIT 1").fetchone():
            return True
        return self._behind is not None and self._behind.has_answers

    def sends(self, key: str) -> tuple[int, str]:
        """How often a call was sent, and what was wrong the last time."""
        row = self._db.execute("SELECT sends, fault FROM calls WHERE key=?", (key,)).fetchone()
        return (0, "") if row is None else (int(row[0]), str(row[1] or ""))

    def sent(self, call: Call, key: str) -> None:
        """Mark a call as on its way."""
        self._db.execute(
            "INSERT INTO calls (key, card, slot, state, sends, doubts, tokens, at) VALUES (?,?,?,'sent',1,0,?,?) "
            "ON CONFLICT (key) DO UPDATE SET state='sent', sends=sends+1, at=excluded.at",
            (key, call.card, call.slot, call.tokens, time.time()),
        )

    def answered(self, key: str, raw: str, usage: Usage) -> None:
        """Store a raw answer. Returns only when it is committed."""
        self._db.execute(
            "UPDATE calls SET state='answered', raw=?, prompt_tokens=?, completion_tokens=?, cached_tokens=?, fault=NULL, at=? "
            "WHERE key=?",
            (raw, usage.prompt, usage.completion, usage.cached, time.time(), key),
        )

    def unanswered(self, key: str, fault: str, *, doubtful: bool, raw: str | None = None) -> None:
        """The endpoint said no, or (`doubtful`) nobody knows what became of it. `raw` is a body of no use, to be read."""
        self._db.execute(
            "UPDATE calls SET state=?, doubts=doubts+?, fault=?, raw=?, at=? WHERE key=?",
            ("doubtful" if doubtful else "refused", int(doubtful), fault, raw, time.time(), key),
        )

    def unreadable(self, key: str, fault: str) -> None:
        """An answer was paid for and cannot be used; it stays stored."""
        self._db.execute("UPDATE calls SET fault=? WHERE key=?", (fault, key))

    # -- cards ------------------------------------------------------------------------------------------------------------

    def state(self, card: str) -> tuple[str, str] | None:
        """`done` or `failed` with the card's SHA-256; None for a card that is still to do."""
        row = self._db.execute("SELECT state, sha FROM cards WHERE id=?", (card,)).fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    def record(self, card: str) -> str | None:
        """The finished dialogue of a card, as a line of JSON."""
        row = self._db.execute("SELECT record FROM cards WHERE id=? AND state='done'", (card,)).fetchone()
        return None if row is None else str(row[0])

    def done(self, card: str, sha: str, record: str) -> None:
        """Store a finished dialogue."""
        self._put(card, "done", sha, record, None)

    def failed(self, card: str, sha: str, reason: str) -> None:
        """Store why a card has no dialogue."""
        self._put(card, "failed", sha, None, reason)

    def _put(self, card: str, state: str, sha: str, record: str | None, reason: str | None) -> None:
        self._db.execute("INSERT OR REPLACE INTO cards VALUES (?,?,?,?,?,?)", (card, state, sha, record, reason, time.time()))

    def failures(self) -> Iterator[tuple[str, str]]:
        """Cards that failed, with the reason."""
        yield from self._db.execute("SELECT id, reason FROM cards WHERE state='failed' ORDER BY id")

    def failure(self, card: str) -> str | None:
        """Why a card failed, if it did."""
        row = self._db.execute("SELECT reason FROM cards WHERE id=? AND state='failed'", (card,)).fetchone()
        return None if row is None else str(row[0])

    def kinds(self, separator: str) -> list[str]:
        """What stands before the first `separator` in the ids of settled cards, each once, in order."""
        rows = self._db.execute("SELECT DISTINCT substr(id, 1, instr(id, ?) - 1) FROM cards ORDER BY 1", (separator,))
        return [str(row[0]) for row in rows]

    def retry_failed(self, prefix: str = "") -> int:
        """Open failed cards again whose ids begin with `prefix`, with another round of tries; returns how many."""
        which = (len(prefix), prefix)
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute(
                "INSERT INTO rounds SELECT id, 1 FROM cards WHERE state='failed' AND substr(id, 1, ?)=? "
                "ON CONFLICT (card) DO UPDATE SET again=again+1",
                which,
            )
            return self._db.execute("DELETE FROM cards WHERE state='failed' AND substr(id, 1, ?)=?", which).rowcount

    def rounds(self, card: str) -> int:
        """How many rounds of tries a card has: one, and one more for each `retry_failed`."""
        row = self._db.execute("SELECT again FROM rounds WHERE card=?", (card,)).fetchone()
        if row is None:
            return 1 if self._behind is None else self._behind.rounds(card)
        return 1 + int(row[0])

    # -- batches and runs -------------------------------------------------------------------------------------------------

    def batch(self, identifier: str, state: str, calls: int) -> None:
        """Remember a batch job of the provider, or its new state."""
        self._db.execute("INSERT OR REPLACE INTO batches VALUES (?,?,?,?)", (identifier, state, calls, time.time()))

    def open_batches(self) -> list[str]:
        """Jobs that were handed in and whose answers have not been fetched."""
        return [str(row[0]) for row in self._db.execute("SELECT id FROM batches WHERE state='submitted' ORDER BY at")]

    def knows_batch(self, identifier: str) -> bool:
        """Whether a job was remembered before."""
        return self._db.execute("SELECT 1 FROM batches WHERE id=?", (identifier,)).fetchone() is not None

    def begin_run(self, pid: int) -> int:
        """Start a line in the history of runs; returns its number."""
        now = time.time()
        row = self._db.execute("INSERT INTO runs (pid, started, beat, live) VALUES (?,?,?,'{}')", (pid, now, now))
        return int(row.lastrowid or 0)

    def beat(self, run: int, live: Mapping[str, Any], ended: str | None = None) -> None:
        """Write what a run is doing, for `status` in another process; `ended` says how it ended."""
        self._db.execute("UPDATE runs SET beat=?, live=?, ended=? WHERE id=?", (time.time(), json.dumps(live), ended, run))

    def last_run(self) -> Mapping[str, Any] | None:
        """The latest run: pid, started, beat (seconds since the epoch), live, ended."""
        row = self._db.execute("SELECT pid, started, beat, live, ended FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            return None
        return {"pid": row[0], "started": row[1], "beat": row[2], "live": json.loads(row[3]), "ended": row[4]}

    def totals(self) -> Totals:
        """Sums over everything stored."""
        answered, prompt, completion, cached = self._db.execute(
            "SELECT COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(cached_tokens) FROM calls WHERE state='answered'"
        ).fetchone()
        doubtful, doubtful_tokens = self._db.execute(
            "SELECT COALESCE(SUM(doubts), 0), COALESCE(SUM(doubts * tokens), 0) FROM calls WHERE doubts > 0"
        ).fetchone()
        cards = dict(self._db.execute("SELECT state, COUNT(*) FROM cards GROUP BY state"))
        faults = dict(
            self._db.execute("SELECT fault, COUNT(*) FROM calls WHERE fault IS NOT NULL GROUP BY fault ORDER BY fault")
        )
        return Totals(
            answered=answered,
            doubtful=doubtful,
            doubtful_tokens=doubtful_tokens,
            usage=Usage(prompt or 0, completion or 0, cached or 0),
            done=cards.get("done", 0),
            failed=cards.get("failed", 0),
            faults=faults,
        )

    def copy_unsettled(self, target: Path) -> None:
        """Make a ledger that holds the answers to calls of cards that are not settled yet, for others to read."""
        Ledger(target).close()
        self._db.execute("ATTACH ? AS copy", (str(target),))
        try:
            self._db.execute("INSERT OR REPLACE INTO copy.rounds SELECT * FROM main.rounds")
            self._db.execute(
                "INSERT OR REPLACE INTO copy.calls SELECT * FROM main.calls AS old WHERE old.state = 'answered' "
                "AND NOT EXISTS (SELECT 1 FROM main.cards AS settled WHERE settled.id = old.card)"
            )
        finally:
            self._db.execute("DETACH copy")
        with Ledger(target) as copy:  # read by several hosts: that goes with this journal only
            copy._db.execute("PRAGMA journal_mode=DELETE")

    def merge(self, other: Path) -> None:
        """Take over all that another ledger holds and this one has not, as the shards of a cluster."""
        with Ledger(other) as shard:
            shard.recover()
        self._db.execute("ATTACH ? AS shard", (str(other),))
        try:
            with self._db:
                self._db.execute("BEGIN")
                self._db.execute(
                    "UPDATE shard.calls AS new SET doubts = "
                    "doubts + COALESCE((SELECT doubts FROM main.calls AS old WHERE old.key = new.key AND old.at != new.at), 0)"
                )
                self._db.execute(
                    "INSERT OR REPLACE INTO calls SELECT * FROM shard.calls AS new WHERE NOT EXISTS "
                    "(SELECT 1 FROM main.calls AS old WHERE old.key = new.key AND old.state = 'answered')"
                )
                self._db.execute(
                    "INSERT OR REPLACE INTO cards SELECT * FROM shard.cards AS new WHERE NOT EXISTS "
                    "(SELECT 1 FROM main.cards AS old WHERE old.id = new.id AND old.state = 'done')"
                )
        finally:
            self._db.execute("DETACH shard")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def passes(error: sqlite3.Error) -> bool:
    """Whether a write failed for what may pass: no room on the disk, or another program that holds the file."""
    passing = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in passing
