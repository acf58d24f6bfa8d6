"""The command line: speed, exit codes, batch forms, and a surface that does not change by accident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qiaoban.cli.main import cli, run

SURFACE = Path(__file__).with_name("surface.txt")
EXAMPLES = Path(__file__).parents[2] / "examples" / "talks"


def qiaoban(*arguments: str, stdin: str | bytes = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the tool as a person does."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return subprocess.run(
        [sys.executable, "-m", "qiaoban", *arguments],
        input=data,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **(env or {})},
    )


def rows(answer: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.stdout.splitlines()]


def surface(command: click.Command, name: str = "qiaoban") -> list[str]:
    """Every command with its options, a line each."""
    words = sorted(o for p in command.params for o in (p.opts if isinstance(p, click.Option) else [p.make_metavar(context())]))
    lines = [" ".join([name, *words])]
    if isinstance(command, click.Group):
        for child in command.list_commands(context()):
            inner = command.get_command(context(), child)
            assert inner is not None
            lines += surface(inner, f"{name} {child}")
    return lines


def context() -> click.Context:
    return click.Context(cli)


def test_the_surface_is_frozen() -> None:
    """A changed command or option is a change for everyone who scripts it: change the file with it, and the changelog."""
    assert "\n".join(surface(cli)) + "\n" == SURFACE.read_text("utf-8")


def test_help_loads_nothing_heavy() -> None:
    """That is what keeps `qiaoban --help` far under 300 ms."""
    probe = "import sys; from qiaoban.cli.main import run; run(['--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "xllamacpp", "pydantic", "rich", "openai", "tokenizers", "jinja2"):
        assert f"'{heavy}'" not in loaded


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["nonsense"], 2),
        (["chat", "--nonsense"], 2),
        (["chat", "--age", "2", "--once", "hi"], 2),
        (["chat", "--json"], 2),
        (["chat", "--once", "hi", "--script", "x"], 2),
        (["chat", "--engine", "lamacpp", "--once", "hi"], 2),
        (["chat", "--model", "qwen-typo", "--once", "hi"], 2),
        (["chat", "--engine", "openai", "--base-url", "localhost:8000", "--once", "hi"], 2),
        (["chat", "--script", "no-such-file.jsonl", "--json"], 1),
        (["safety", "check", "no-such-file.jsonl"], 1),
    ],
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    if code:
        assert capsys.readouterr().err.strip()


def test_an_error_says_what_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "--engine", "lamacpp", "--once", "hi"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'llamacpp'?" in err
    assert "hint: installed: llamacpp, openai, transformers" in err


def test_a_model_that_is_not_here_names_the_command(tmp_path: Path) -> None:
    answer = qiaoban("chat", "--once", "hi", env={"QIAOBAN_HOME": str(tmp_path)})
    assert answer.returncode in (1, 2)
    assert b"qiaoban models pull" in answer.stderr
    assert answer.stdout == b""


class TestSafetyCheck:
    def test_the_batch_form_is_exact_and_in_order(self) -> None:
        lines = [
            {"id": "a", "text": "我不想活了", "context": [], "lang": "zh", "age": 12},
            {
                "id": "b",
                "text": "my cat is so fluffy",
                "context": [{"role": "assistant", "content": "Hi!"}],
                "lang": "en",
                "age": 8,
            },
        ]
        answer = qiaoban("safety", "check", "-", "--json", stdin="\n".join(map(json.dumps, lines)))
        assert answer.returncode == 0
        first, second = rows(answer)
        assert list(first) == [
            "id",
            "severity",
            "category",
            "scores",
            "action",
            "notify",
            "guardian_may_be_source",
            "evidence",
            "ms",
        ]
        assert (first["id"], first["severity"], first["category"], first["action"]) == ("a", "urgent", "suicide", "vetted")
        assert first["notify"] == {"to": "guardian", "when": "now"}
        assert first["scores"] == {"suicide": 1.0}
        assert (second["id"], second["severity"], second["action"], second["notify"]) == ("b", "none", "allow", None)

    def test_bad_lines_are_named_and_skipped_and_the_good_ones_done(self) -> None:
        good = json.dumps({"id": "x", "text": "你好"}, ensure_ascii=False)
        stdin = (
            b"\xef\xbb\xbf"
            + f"{good}\r\n\nnot json\n".encode()
            + "中文".encode("gb18030")
            + f'\n{{"id": 7}}\n{good}\n'.encode()
        )
        answer = qiaoban("safety", "check", "-", "--json", stdin=stdin)
        assert answer.returncode == 1
        assert [row["id"] for row in rows(answer)] == ["x", "x"]
        err = answer.stderr.decode()
        for place in ("-:3:", "-:4: byte 0 is not UTF-8", "-:5: id:"):
            assert place in err

    def test_an_empty_file_is_no_error(self) -> None:
        answer = qiaoban("safety", "check", "-", "--json")
        assert (answer.returncode, answer.stdout) == (0, b"")

    def test_a_reader_that_leaves_is_no_traceback(self, tmp_path: Path) -> None:
        file = tmp_path / "many.jsonl"
        file.write_text("".join(json.dumps({"id": str(i), "text": "hello there"}) + "\n" for i in range(3000)))
        pipe = f"{sys.executable} -m qiaoban safety check {file} --json | head -n 1"
        answer = subprocess.run(["sh", "-c", pipe], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(answer.stdout)["id"] == "0"
        assert "Traceback" not in answer.stderr
        assert "Exception" not in answer.stderr

    def test_plain_output_names_the_rule(self) -> None:
        answer = qiaoban("safety", "check", "-", stdin=json.dumps({"id": "a", "text": "我不想活了"}, ensure_ascii=False))
        assert "zh.suicide" in answer.stdout.decode()


def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    answer = qiaoban("doctor", "--json", env={"QIAOBAN_HOME": str(tmp_path)})
    found = {str(row["what"]): row for row in rows(answer)}
    assert answer.returncode == 1
    assert found["engine llamacpp"]["ok"] is True
    assert found["default model qwen2.5-coder-0.5b"]["todo"] == "qiaoban models pull"


def test_doctor_never_prints_a_key(tmp_path: Path) -> None:
    answer = qiaoban("doctor", env={"OPENAI_API_KEY": "sk-very-secret", "OPENAI_BASE_URL": "http://localhost:1/v1"})
    assert b"sk-very-secret" not in answer.stdout + answer.stderr
    assert b"with a key" in answer.stdout


def test_models_list(tmp_path: Path) -> None:
    answer = qiaoban("models", "list", "--json", env={"QIAOBAN_HOME": str(tmp_path)})
    listed = {row["id"]: row for row in rows(answer)}
    assert listed["qwen2.5-coder-0.5b"]["default"] is True
    assert all(row["path"] is None for row in listed.values())


def test_no_color_is_respected() -> None:
    answer = qiaoban("chat", "--engine", "x", "--once", "hi", env={"NO_COLOR": "1", "FORCE_COLOR": ""})
    assert b"\x1b[" not in answer.stderr


def test_bank_lint_and_show() -> None:
    assert qiaoban("bank", "lint", "--json").returncode == 0
    scenes = rows(qiaoban("bank", "show", "--domain", "friends", "--age", "9", "--json"))
    assert scenes
    assert all(str(scene["id"]).startswith("friends.") for scene in scenes)
    assert qiaoban("bank", "show", "--domain", "freinds").returncode == 2
    assert "friends" in qiaoban("bank", "show").stdout.decode()
