"""A talk at a real (pseudo) terminal, with the example engine as a plug-in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="a pseudo terminal needs Unix")

ENGINE = """
import asyncio
from qiaoban.engine.protocol import EngineInfo
from qiaoban.engine.scripted import ScriptedEngine

async def open_engine(choice, settings):
    slow = ScriptedEngine(lambda turns: "That sounds big. " * 40, piece=3, delay=0.05)
    quick = ScriptedEngine(lambda turns: "That sounds big. What happened next?")
    return slow if choice.context_tokens == 600 else quick
"""


class Terminal:
    """The tool on one end, a person on the other."""

    def __init__(self, path: Path, *arguments: str) -> None:
        (path / "scripted_plugin.py").write_text(ENGINE)
        installed = path / "scripted_plugin-0.1.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-plugin\nVersion: 0.1\n")
        (installed / "entry_points.txt").write_text("[qiaoban.plugins]\nengine.script = scripted_plugin:open_engine\n")
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qiaoban", "chat", "--engine", "script", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(path), "TERM": "xterm", "COLUMNS": "100"},
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.shown = ""

    def type(self, line: str) -> None:
        """Type a line and press return."""
        os.write(self._master, line.encode() + b"\n")

    def wait_for(self, words: str, seconds: float = 30) -> str:
        """Read until `words` are on the screen; gives back all that is."""
        end = time.monotonic() + seconds
        while words not in self.shown:
            assert time.monotonic() < end, f"{words!r} never came; the screen: {self.shown[-2000:]!r}"
            self._read()
            time.sleep(0.02)
        return self.shown

    def leaves(self, seconds: float = 30) -> int:
        """The exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read()
            time.sleep(0.02)
        assert self.process.returncode is not None, f"it does not leave; the screen: {self.shown[-2000:]!r}"
        self._read()
        return self.process.returncode

    def close(self) -> None:
        """Whatever happened, nothing stays behind."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nothing to read yet, or the other end is gone
            self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._master, 65536).decode("utf-8", "replace"))


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, "--context", "600")
    yield terminal
    terminal.close()


def test_a_talk_from_the_banner_to_the_goodbye(quick: Terminal) -> None:
    banner = quick.wait_for("› ")
    assert "no therapy, no emergency service" in banner
    quick.type("i learned to ride a bike")
    said = quick.wait_for("What happened next?")
    assert "computer" in said, "the first reply says that it is a computer"
    quick.type("/help")
    quick.wait_for("/lang zh|en")
    quick.type("/age 99")
    quick.type("/age 7")
    quick.type("/lang en")
    quick.type("/new")
    quick.type("i want to die")
    flagged = quick.wait_for("urgent · suicide")
    assert "to tell: guardian, now" in flagged or quick.wait_for("to tell: guardian, now")
    quick.type("/new")
    quick.type("bye")
    assert quick.leaves() == 0


def test_quit_and_the_end_of_input_leave(tmp_path: Path, quick: Terminal) -> None:
    quick.wait_for("› ")
    quick.type("/quit")
    assert quick.leaves() == 0


def test_ctrl_d_leaves(quick: Terminal) -> None:
    quick.wait_for("› ")
    quick.type("\x04")
    assert quick.leaves() == 0


def test_ctrl_c_stops_a_reply_and_leaves_when_nothing_is_said(slow: Terminal) -> None:
    slow.wait_for("› ")
    slow.type("tell me about dinosaurs")
    slow.wait_for("That sounds big.")
    os.killpg(slow.process.pid, signal.SIGINT)
    slow.type("are you a real person?")
    slow.wait_for("not a", 30)
    assert slow.process.poll() is None, "Ctrl-C in a reply must not end the talk"
    slow.wait_for("› ")
    time.sleep(0.5)
    os.killpg(slow.process.pid, signal.SIGINT)
    assert slow.leaves() in (0, 130)
    assert "Traceback" not in slow.shown
