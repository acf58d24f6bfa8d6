"""Data that people read and review: rules, policies, vetted replies, help lines, prompts. Loaded once, never changed."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from qiaoban.errors import DataError


@cache
def read_table(name: str) -> dict[str, Any]:
    """A TOML file of the bank, such as `signals/zh.toml`. `DataError` names the line where it is not TOML."""
    try:
        return tomllib.loads(files(__name__).joinpath(name).read_text("utf-8"))
    except FileNotFoundError:
        raise DataError("the bank has no such file", path=name) from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(str(error), path=name) from None
