"""`qiaoban doctor`: what is installed, where files are, what is missing and the exact command for it."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

import qiaoban
from qiaoban.cli.batch import emit
from qiaoban.engine.choose import engines
from qiaoban.errors import QiaobanError
from qiaoban.models.registry import DEFAULT_MODEL
from qiaoban.models.store import ModelStore
from qiaoban.safety.respond import load_hotlines
from qiaoban.settings import Settings, load

_FREE_WANTED = 2_000_000_000  # bytes; the default model is half a gigabyte and is written once beside itself


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where it is not well. `ok` None is for information."""

    what: str
    state: str
    ok: bool | None = None
    todo: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
def command(as_json: bool) -> int:
    """Look at this installation. Exit code 1 when something that `qiaoban chat` needs is missing."""
    findings = list(_look(load()))
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        if as_json:
            emit({"what": finding.what, "state": finding.state, "ok": finding.ok, "todo": finding.todo})
        else:
            mark, colour = {True: ("ok  ", "green"), False: ("need", "red"), None: ("info", "cyan")}[finding.ok]
            console.print(Text.assemble((mark, colour), f"  {finding.what}: {finding.state}"))
            if finding.todo:
                console.print(Text(f"      {finding.todo}", style="bold"))
    return 1 if any(finding.ok is False for finding in findings) else 0


def _look(settings: Settings) -> Iterator[Finding]:
    yield Finding("qiaoban", qiaoban.__version__)
    yield Finding("python", f"{platform.python_version()} at {sys.executable}", ok=sys.version_info >= (3, 11))
    yield Finding("machine", f"{platform.system()} {platform.machine()}, {_cpu_features()}")
    yield from _engines()
    yield from _models(settings)
    yield _disk(settings.home)
    yield _endpoint(settings)
    yield _hotlines()


def _engines() -> Iterator[Finding]:
    needs = {"llamacpp": "xllamacpp", "openai": "openai", "transformers": "transformers"}
    for name, entry in engines().items():
        package = needs.get(name)
        if package is None:
            yield Finding(f"engine {name}", f"plug-in {entry.value}")
        elif find_spec(package):
            yield Finding(f"engine {name}", f"{package} {_version(package)}", ok=True)
        elif name == "transformers":
            yield Finding(f"engine {name}", "not installed (optional)", todo="pip install 'qiaoban[train]'")
        else:
            yield Finding(f"engine {name}", f"{package} is missing", ok=False, todo=f"pip install {package}")


def _models(settings: Settings) -> Iterator[Finding]:
    store = ModelStore(settings.home, settings=settings)
    yield Finding("model store", str(settings.home / "models"))
    for model in store.installed():
        state = model.problem or f"{model.size / 1e6:,.0f} MB from {model.source}, {model.trust}"
        yield Finding(
            f"model {model.id}", state, ok=not model.problem, todo=model.problem and f"qiaoban models pull {model.id}"
        )
    try:
        store.path(DEFAULT_MODEL)
    except QiaobanError as error:
        yield Finding(f"default model {DEFAULT_MODEL}", error.message, ok=False, todo="qiaoban models pull")


def _disk(home: Path) -> Finding:
    """Free space where models go: the nearest folder that exists."""
    folder = next(parent for parent in (home, *home.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    todo = "" if free > _FREE_WANTED else "free some space, or set QIAOBAN_HOME to another disk"
    return Finding("disk", f"{free / 1e9:.1f} GB free at {folder}", ok=None if todo else True, todo=todo)


def _endpoint(settings: Settings) -> Finding:
    key = "with a key" if settings.openai_api_key else "without a key"
    return Finding("OPENAI_BASE_URL", f"{settings.openai_base_url}, {key}" if settings.openai_base_url else "not set")


def _hotlines() -> Finding:
    today = datetime.now(UTC).date()
    expired = [line.id for line in load_hotlines().lines if line.expired(today)]
    if expired:
        return Finding("help lines", f"to be checked again: {', '.join(expired)}", todo="upgrade qiaoban, or check the numbers")
    return Finding("help lines", "all within their date", ok=True)


def _cpu_features() -> str:
    """The instruction sets that decide speed, as Linux tells them."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return "CPU features unknown"
    flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if name in flags.split()]
    return " ".join(known) or "no vector extensions known here"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"
