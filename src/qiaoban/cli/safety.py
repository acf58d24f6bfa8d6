"""`qiaoban safety`: see what the guard makes of messages."""

from __future__ import annotations

from typing import Any

import click

from qiaoban.cli.batch import Batch, emit
from qiaoban.safety.check import CheckedMessage, check
from qiaoban.safety.policy import default_classifier, load_policy


@click.group()
def command() -> None:
    """See what the guard makes of a message."""


@command.command("check")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
@click.option("--jurisdiction", default="CN", show_default=True, metavar="CODE", help="Country whose policy decides.")
def check_file(file: str, as_json: bool, jurisdiction: str) -> int:
    """Check the messages of a JSONL FILE (- for standard input): {"id", "text", "context", "lang", "age"}."""
    policy = load_policy()
    classifier = default_classifier(policy)
    batch = Batch(file)
    for message in batch.records(CheckedMessage):
        row = check(message, classifier, policy, jurisdiction=jurisdiction)
        if as_json:
            emit(row)
        else:
            click.echo(_line(message.text, row))
    return 1 if batch.failed else 0


def _line(text: str, row: dict[str, Any]) -> str:
    rules = " ".join(e["rule"] for e in row["evidence"]) or "-"
    return f"{row['severity']:<8}{row['category']:<20}{row['action']:<8}{rules}\t{text}"
