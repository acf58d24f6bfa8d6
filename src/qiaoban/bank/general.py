"""Tasks for general chat that a child may bring: curiosity, homework, stories, riddles, daily things."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Ages, Line
from qiaoban.conversation import explain
from qiaoban.errors import DataError


class Task(BaseModel):
    """What the child asks for. `single` is one question and its answer, `talk` a short conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Line
    kind: Literal["curiosity", "homework", "story", "riddle", "daily", "chat", "make"]
    form: Literal["single", "talk"]
    ages: Ages
    zh: Line
    en: Line


class _Tasks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[Task, ...] = Field(min_length=1, alias="task")


@cache
def load_tasks() -> tuple[Task, ...]:
    """The tasks of `general.toml`. `DataError` names the entry and the key that is wrong."""
    name = "general.toml"
    try:
        return _Tasks.model_validate(read_table(name)).tasks
    except ValidationError as error:
        raise DataError(explain(error, _Tasks), path=name) from None
