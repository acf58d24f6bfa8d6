"""The documentation says what is true: generated pages are current, commands parse, the example runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from qiaoban.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "README.zh-CN.md", *(ROOT / "docs").rglob("*.md")])


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("script", "page"), [("generate_cli.py", "cli.md"), ("draw_architecture.py", "architecture.svg")])
def test_generated_pages_are_current(script: str, page: str) -> None:
    """Run `python docs/<script>` when this fails."""
    assert load(ROOT / "docs" / script).render() == (ROOT / "docs" / page).read_text("utf-8")


def commands() -> Iterator[tuple[str, str]]:
    """Every `qiaoban …` line inside a code block, with the page it stands on."""
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\||;", line.split("  #")[0]):
                    if match := re.match(r"(?:[A-Z_]+=\S+ )*\$? ?(?:\.venv/bin/|python -m )?qiaoban (.+)", part.strip()):
                        yield page.name, match[1]


COMMANDS = list(commands())


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_in_the_docs_parses(page: str, command: str) -> None:
    words = shlex.split(re.sub(r"[<>]\s*\S+$", "", command))
    group: click.Command = cli
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = group.get_command(click.Context(group), name)
        assert found is not None, f"{page}: no command {name}"
        group = found
    group.make_parser(click.Context(group)).parse_args(words)  # raises NoSuchOption


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text("utf-8")))
        assert named <= targets, page.name


def test_the_example_engine_is_the_one_in_the_docs_and_runs_as_a_plug_in(tmp_path: Path) -> None:
    example = ROOT / "examples" / "echo_engine"
    code = (example / "qiaoban_echo_engine.py").read_text("utf-8")
    page = (ROOT / "docs" / "add-an-engine.md").read_text("utf-8")
    assert code in page
    assert (example / "pyproject.toml").read_text("utf-8") in page
    (tmp_path / "qiaoban_echo_engine.py").write_text(code, "utf-8")
    installed = tmp_path / "qiaoban_echo_engine-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: qiaoban-echo-engine\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("[qiaoban.plugins]\nengine.echo = qiaoban_echo_engine:open_engine\n")
    answer = subprocess.run(
        [sys.executable, "-m", "qiaoban", "chat", "--engine", "echo", "--once", "the sun is out today"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "AI" in answer.stdout or "computer" in answer.stdout


def test_both_readmes_name_the_two_commands_first() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        screen = (ROOT / name).read_text("utf-8").splitlines()[:25]
        text = "\n".join(screen)
        assert "make chat" in text
        assert "make test" in text
