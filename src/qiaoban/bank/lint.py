"""Does the bank hold what a planner needs? Coverage, ages, uniqueness, both languages."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from qiaoban.bank.catalogue import Bilingual, BilingualLines, Catalogue, Scene
from qiaoban.conversation import Act, AgeBand, Category, Emotion

# What the bank promises.
DOMAINS, SCENES, SCENES_OF_BAND, SCENES_OF_EMOTION, SCENARIOS_OF_CATEGORY = 14, 560, 8, 8, 5
POSITIVE_SHARE = (0.18, 0.35)
LONGEST_SCENE = {"zh": 40, "en": 25}  # Han characters, words
SHARED_RUN = 8  # Han characters in a row that no two scenes may share
BANDS = (AgeBand.B6_8, AgeBand.B9_11, AgeBand.B12_14, AgeBand.B15_17)


@dataclass(frozen=True)
class Finding:
    """One hit: where, which rule, how grave, and in words."""

    id: str
    rule: str
    severity: Literal["error", "warning"]
    message: str


def lint(bank: Catalogue) -> list[Finding]:
    """Every finding, in the order of the rules."""
    rules = (_coverage, _bands, _emotions, _acts, _safety, _people, _unique, _alike, _lengths, _languages, _word_ages)
    return [finding for rule in rules for finding in rule(bank)]


def _coverage(bank: Catalogue) -> Iterator[Finding]:
    scenes = bank.scenes
    if len(bank.domains) < DOMAINS:
        yield Finding("topics", "coverage", "error", f"{len(bank.domains)} domains, at least {DOMAINS} are wanted")
    if len(scenes) < SCENES:
        yield Finding("topics", "coverage", "error", f"{len(scenes)} scenes, at least {SCENES} are wanted")
    share = sum(scene.positive for scene in scenes) / len(scenes)
    if not POSITIVE_SHARE[0] <= share <= POSITIVE_SHARE[1]:
        yield Finding("topics", "coverage", "error", f"{share:.0%} of the scenes are good ones, about a quarter is wanted")


def _bands(bank: Catalogue) -> Iterator[Finding]:
    for domain in bank.domains:
        for band in BANDS:
            low, high = band.years
            count = sum(scene.ages[0] <= high and scene.ages[1] >= low for scene in domain.scenes)
            if count < SCENES_OF_BAND:
                yield Finding(domain.id, "bands", "error", f"{count} scenes for ages {band}, at least {SCENES_OF_BAND}")


def _emotions(bank: Catalogue) -> Iterator[Finding]:
    known = {entry.id: entry for entry in bank.emotions}
    used = Counter(emotion for scene in bank.scenes for emotion in scene.emotions)
    for emotion in Emotion:
        if emotion not in known:
            yield Finding("emotions", "emotions", "error", f"{emotion} has no entry")
        elif known[emotion].family != emotion.family:
            yield Finding(emotion, "emotions", "error", f"family is {known[emotion].family}, it belongs to {emotion.family}")
        if used[emotion] < SCENES_OF_EMOTION:
            yield Finding(emotion, "emotions", "warning", f"{used[emotion]} scenes raise it, at least {SCENES_OF_EMOTION}")


def _acts(bank: Catalogue) -> Iterator[Finding]:
    for missing in set(Act) - {entry.id for entry in bank.acts}:
        yield Finding("acts", "acts", "error", f"{missing} has no entry")


def _safety(bank: Catalogue) -> Iterator[Finding]:
    count = Counter(scenario.category for scenario in bank.scenarios)
    for category in Category:
        if category is not Category.BENIGN and count[category] < SCENARIOS_OF_CATEGORY:
            yield Finding(
                "scenarios", "safety", "error", f"{count[category]} scenarios of {category}, at least {SCENARIOS_OF_CATEGORY}"
            )


def _people(bank: Catalogue) -> Iterator[Finding]:
    total = sum(outcome.weight for outcome in bank.people.outcomes)
    if abs(total - 1) > 1e-6:
        yield Finding("people", "people", "error", f"the weights of the outcomes sum to {total:g} and not to 1")
    if len(bank.styles) != 3:
        yield Finding("styles", "people", "error", f"{len(bank.styles)} failing styles, there are three")


def _unique(bank: Catalogue) -> Iterator[Finding]:
    ids = chain(
        (scene.id for scene in bank.scenes),
        (scenario.id for scenario in bank.scenarios),
        (lookalike.id for lookalike in bank.lookalikes),
    )
    for name, count in Counter(ids).items():
        if count > 1:
            yield Finding(name, "unique", "error", f"the id stands {count} times")
    for domain in bank.domains:
        for scene in domain.scenes:
            if not re.fullmatch(rf"{domain.id}\.[a-z0-9_]+", scene.id):
                yield Finding(scene.id, "unique", "error", f"an id of this file is {domain.id}.<lower_case_words>")
    for lang, names in (("zh", bank.names.zh), ("en", bank.names.en)):
        for name, count in Counter(entry.name for entry in names).items():
            if count > 1:
                yield Finding(f"names.{lang}", "unique", "error", f"{name} stands {count} times")


def _alike(bank: Catalogue) -> Iterator[Finding]:
    """Scenes that share a long run of characters are one scene in other words."""
    owners: dict[str, set[str]] = defaultdict(set)
    for scene in bank.scenes:
        text = re.sub(r"[^\u3400-\u9fff]", "", scene.zh)
        for start in range(len(text) - SHARED_RUN + 1):
            owners[text[start : start + SHARED_RUN]].add(scene.id)
    pairs = {tuple(sorted(ids)): run for run, ids in owners.items() if len(ids) > 1}
    for ids, run in sorted(pairs.items()):
        yield Finding(ids[0], "alike", "error", f"shares “{run}” with {', '.join(ids[1:])}")


def _lengths(bank: Catalogue) -> Iterator[Finding]:
    for scene in bank.scenes:
        for lang, size in _sizes(scene).items():
            if size > LONGEST_SCENE[lang]:
                yield Finding(scene.id, "length", "error", f"{lang} has {size}, at most {LONGEST_SCENE[lang]}")


def _sizes(scene: Scene) -> dict[str, int]:
    return {"zh": len(re.findall(r"[\u3400-\u9fff]", scene.zh)), "en": len(scene.en.split())}


def _languages(bank: Catalogue) -> Iterator[Finding]:
    """Chinese text holds Han characters and English text none: a swapped pair is easily overlooked."""
    texts: list[tuple[str, Bilingual | BilingualLines | Scene]] = [
        *((scene.id, scene) for scene in bank.scenes),
        *((scene.id, scene.hidden) for scene in bank.scenes),
        *((entry.id, entry.phrases) for entry in bank.emotions),
        *((entry.id, entry.examples) for entry in bank.acts),
        *((style.id, style.lines) for style in bank.styles),
    ]
    for owner, text in texts:
        if not _has_han(text.zh):
            yield Finding(owner, "languages", "error", "the Chinese text holds no Chinese")
        if _has_han(text.en):
            yield Finding(owner, "languages", "error", "the English text holds Chinese characters")


def _has_han(text: str | tuple[str, ...]) -> bool:
    return any(re.search(r"[\u3400-\u9fff]", line) for line in ([text] if isinstance(text, str) else text))


def _word_ages(bank: Catalogue) -> Iterator[Finding]:
    """A scene whose every emotion word is beyond its oldest child cannot be labelled with the child."""
    least = {entry.id: entry.min_age for entry in bank.emotions}
    for scene in bank.scenes:
        if all(least.get(emotion, 3) > scene.ages[1] for emotion in scene.emotions):
            yield Finding(scene.id, "word_ages", "error", f"no child of {scene.ages[1]} knows any word for its feelings")
