"""Every rule against cases that were written by somebody who saw only its description, and frozen before it was measured.

There are two batches. `*_first.json` hold what was reached when each was measured for the first time (recall, share of false
hits), `*_first_missed.txt` what was wrong then. The rules were mended afterwards with the cases in sight, so that what is
asserted here guards against regressions. How they do on words that nobody here has seen is what the second batch first showed:
a mean recall of 0.79.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qiaoban.conversation import Act, AgeBand, Category, Conversation, Meta, Turn
from qiaoban.curate.lint import lint
from qiaoban.curate.rules import ERRORS, load_rules

HERE = Path(__file__).parent
PLANTED, SECOND = HERE / "planted", HERE / "planted_second"
RECALL, FALSE, CLEAN = 0.95, 0.02, 0.03
_ROLES: dict[str, Any] = {"child": "user", "companion": "assistant"}


def talk(name: str, row: dict[str, Any]) -> Conversation:
    turns = tuple(
        Turn(role=_ROLES[who], content=text, acts=tuple(map(Act, acts[0] if acts else ()))) for who, text, *acts in row["turns"]
    )
    meta = Meta(
        lang=row.get("lang"),
        domain=row.get("domain"),
        age_band=AgeBand(row["band"]) if row.get("band") else None,
        risk=Category(row["risk"]) if row.get("risk") else None,
    )
    return Conversation(id=name, turns=turns, meta=meta)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def measured(rule: str, folder: Path = PLANTED) -> tuple[float, float, list[str]]:
    """Recall, share of false hits, and what was wrong."""
    cases = rows(folder / f"{rule}.jsonl")
    talks = [talk(str(number), case) for number, case in enumerate(cases)]
    hit = {finding.id for finding in lint(talks, rules=[rule])}
    wrong = [
        f"{'missed' if case['hit'] else 'false'}: {case['turns']}"
        for n, case in enumerate(cases)
        if (str(n) in hit) != case["hit"]
    ]
    found = sum(case["hit"] and str(n) in hit for n, case in enumerate(cases))
    false = sum(not case["hit"] and str(n) in hit for n, case in enumerate(cases))
    positives = sum(case["hit"] for case in cases)
    return found / positives, false / (len(cases) - positives), wrong


def rules_in(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.glob("*.jsonl")} - {"clean"})


@pytest.mark.parametrize(
    ("folder", "rule"),
    [(folder, rule) for folder in (PLANTED, SECOND) for rule in rules_in(folder)],
    ids=lambda each: each.name if isinstance(each, Path) else each,
)
def test_a_rule_finds_what_breaks_it_and_leaves_what_resembles_it(folder: Path, rule: str) -> None:
    recall, false, wrong = measured(rule, folder)
    assert recall >= RECALL, wrong
    assert false <= FALSE, wrong


def test_there_are_twenty_cases_for_every_rule_that_looks_at_single_talks() -> None:
    assert {rule.id for rule in load_rules() if rule.scope != "corpus"} == set(rules_in(PLANTED))
    for folder in (PLANTED, SECOND):
        assert all(sum(case["hit"] for case in rows(folder / f"{rule}.jsonl")) >= 20 for rule in rules_in(folder))


@pytest.mark.parametrize("name", ["planted", "planted_second"])
def test_what_was_first_reached_is_on_record(name: str) -> None:
    first = json.loads((HERE / f"{name}_first.json").read_text("utf-8"))
    missed = (HERE / f"{name}_first_missed.txt").read_text("utf-8").splitlines()
    assert set(first) == set(rules_in(HERE / name))
    assert {row[2:] for row in missed if row.startswith("= ")} == {rule for rule, (r, f) in first.items() if r < 1 or f > 0}


@pytest.mark.parametrize("folder", [PLANTED, SECOND], ids=lambda folder: folder.name)
def test_clean_lines_are_left_alone(folder: Path) -> None:
    talks = [talk(row["id"], row) for row in rows(folder / "clean.jsonl")]
    lines = {(finding.id, finding.turn) for finding in lint(talks) if finding.severity in ERRORS}
    assert sum(len(each.turns) for each in talks) >= 300
    assert len(lines) <= CLEAN * sum(len(each.turns) for each in talks), sorted(lines, key=str)
