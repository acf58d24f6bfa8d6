"""What `docs` and reviewers cannot hold by hand: sizes of functions and files, where things may be read and printed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "src" / "qiaoban").rglob("*.py"))
by_file = pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(SOURCES[0].parent)) for p in SOURCES])


@by_file
def test_functions_and_files_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"


@by_file
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    text = path.read_text("utf-8")
    reads = "os.environ" in text.replace("os.environ.setdefault(", "") or "os.getenv" in text
    assert not reads or path.name == "settings.py"


@by_file
def test_public_things_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
