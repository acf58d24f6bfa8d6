"""LLaMA-Factory's `dataset_info.json`: without an entry there it does not see a file.

The keys are those of data/README.md in its repository.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qiaoban.errors import DataError, UsageError
from qiaoban.files import write_atomically
from qiaoban.formats.record import Format

NAME = "dataset_info.json"


def entry(form: Format[Any], file_name: str) -> dict[str, Any]:
    """What LLaMA-Factory must know of a file in `form`. `UsageError` where it cannot read that format."""
    if form.info is None:
        raise UsageError(f"LLaMA-Factory does not read {form.name}", hint="write openai, sharegpt, alpaca or llamafactory")
    return {"file_name": file_name, **form.info}


def entries_beside(path: Path) -> dict[str, Any]:
    """The entries of the `dataset_info.json` beside `path`; none where there is no such file. `DataError` for a damaged one."""
    index = path.with_name(NAME)
    if not index.exists():
        return {}
    try:
        entries = json.loads(index.read_bytes())
    except ValueError as error:
        raise DataError(f"it is not JSON: {error}", path=index, hint="mend it, or move it away") from None
    if not isinstance(entries, dict):
        raise DataError("it is no object of data sets", path=index, hint="mend it, or move it away")
    return entries


def register(path: Path, form: Format[Any]) -> Path:
    """Put `path` into the `dataset_info.json` beside it under its stem; other entries stay as they are."""
    entries = entries_beside(path) | {path.stem: entry(form, path.name)}
    index = path.with_name(NAME)
    with write_atomically(index) as file:
        file.write(json.dumps(entries, ensure_ascii=False, indent=2).encode() + b"\n")
    return index
