"""The words of other data sets, from `bank/formats.toml` and the emotion tree: speakers, and what feelings are called."""

from __future__ import annotations

from functools import cache

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import load_catalogue
from qiaoban.conversation import Emotion
from qiaoban.formats.record import Notes


@cache
def speaker(table: str, who: str) -> str:
    """How a data set calls a speaker, such as ("qiaoban2023", "child")."""
    return str(read_table("formats.toml")[table][who])


@cache
def _feelings() -> dict[str, Emotion]:
    """Every word that names exactly one leaf of the emotion tree."""
    found = {leaf.value: leaf for leaf in Emotion}
    for entry in load_catalogue().emotions:
        found |= {entry.zh: entry.id, entry.en.lower(): entry.id}
    for leaf, names in read_table("formats.toml")["emotions"].items():
        found |= dict.fromkeys(names, Emotion(leaf))
    return found


def feeling(word: str | None, notes: Notes) -> Emotion | None:
    """The leaf that `word` names exactly; a word with no counterpart is counted in `notes`."""
    if not word:
        return None
    leaf = _feelings().get(word.strip().lower())
    if leaf is None:
        notes[f"emotion {word[:40]!r} has no counterpart"] += 1
    return leaf


def feeling_word(leaf: Emotion) -> str:
    """How QiaoBan 2023 writes a leaf: its own word where it has one, else ours."""
    return str(read_table("formats.toml")["qiaoban2023"]["emotions"].get(leaf, leaf.value))
