"""The dataset card: `README.md` with the front matter that Hugging Face reads, and `croissant.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from qiaoban.errors import UsageError
from qiaoban.files import write_atomically, write_json
from qiaoban.formats.figures import UNLABELLED
from qiaoban.report.croissant import croissant
from qiaoban.report.facts import Facts
from qiaoban.report.figures import Figures, gather
from qiaoban.report.licences import OWN, hub_name
from qiaoban.report.page import environment
from qiaoban.report.plain import markdown, visible

CARD, CROISSANT = "README.md", "croissant.json"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGEST = "10M<n<100M"
_TAGS = ("children", "emotional-support", "emotion-coaching", "dialogue")


@dataclass(frozen=True)
class Card:
    """A card that was written: which licences its parts have besides that of the whole, and how many talks name none."""

    other_licences: Mapping[str, int]
    unlicensed: int
    missing: tuple[str, ...]


def write_card(folder: Path, facts: Facts, *, force: bool = False) -> Card:
    """Write `README.md` and `croissant.json` into a curated folder.

    `UsageError` where one of them is there and `force` is not given, `DataError` where `qiaoban curate` did not write the
    folder. What Croissant asks for and `facts` lack is named in the result.
    """
    for name in (CARD, CROISSANT):
        if not force and (folder / name).exists():
            raise UsageError(f"{folder / name} is there already", hint="give --force to write over it")
    figures = gather(folder)
    with write_atomically(folder / CARD) as file:
        file.write(render_card(figures, facts).encode())
    write_json(folder / CROISSANT, croissant(figures, facts))
    parts = figures.talks.labels("licence")
    return Card(
        other_licences={name: count for name, count in parts.items() if name not in (facts.licence, UNLABELLED)},
        unlicensed=parts.get(UNLABELLED, 0),
        missing=facts.missing,
    )


def render_card(figures: Figures, facts: Facts) -> str:
    """The card: front matter, English, Chinese. Whatever a talk brought is escaped and stays text."""
    given = {
        "f": figures,
        "facts": facts,
        "languages": languages(figures, facts),
        "licences": _named(figures, "licence"),
        "teachers": _named(figures, "teacher"),
        "sources": _named(figures, "source"),
        "modes": _named(figures, "mode"),
        "labels": {name: _named(figures, name) for name in ("lang", "age_band", "domain", "outcome", "risk")},
        "other_licences": [name for name, _ in _named(figures, "licence") if name not in (facts.licence, UNLABELLED)],
    }
    bodies = [_templates().get_template(f"card.{lang}.md").render(given) for lang in ("en", "zh")]
    return "\n".join([_front_matter(figures, facts), *bodies])


def languages(figures: Figures, facts: Facts) -> tuple[str, ...]:
    """The languages that were given, else those that the talks are in."""
    return facts.languages or tuple(sorted(figures.talks.labels("lang"), reverse=True))


@cache
def _templates() -> Environment:
    return environment().overlay(autoescape=False, finalize=markdown)


def _named(figures: Figures, label: str) -> list[tuple[str, int]]:
    """Values of a label with their counts, the most frequent first, talks without it last."""
    return sorted(figures.talks.labels(label).items(), key=lambda row: (row[0] == UNLABELLED, -row[1], row[0]))


def _front_matter(figures: Figures, facts: Facts) -> str:
    """YAML for the hub. Every text is written as JSON writes it, which is YAML too and cannot end early."""
    count = figures.talks.talks
    fields: dict[str, Any] = {
        "pretty_name": visible(facts.name),
        "language": list(languages(figures, facts)),
        "license": hub_name(facts.licence),
        **({"license_name": facts.licence.removeprefix(OWN).lower()} if hub_name(facts.licence) == "other" else {}),
        "size_categories": [next((name for limit, name in _SIZES if count < limit), _LARGEST)],
        "task_categories": ["text-generation"],
        "tags": [*_TAGS, *(["synthetic"] if figures.talks.origin["synthetic"] else [])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "kept.jsonl"}]}],
    }
    return "\n".join(["---", *(f"{key}: {_yaml(value)}" for key, value in fields.items()), "---", ""])


def _yaml(value: str | Sequence[Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
