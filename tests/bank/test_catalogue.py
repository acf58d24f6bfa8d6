"""The topic bank: whole, typed, and checked by a linter that can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qiaoban.bank import read_table
from qiaoban.bank.catalogue import Catalogue, Domain, People, Scene, load_catalogue, parse_table
from qiaoban.bank.lint import lint
from qiaoban.conversation import Act, Emotion
from qiaoban.errors import DataError

BANK = load_catalogue()


def test_the_bank_is_clean() -> None:
    assert [finding for finding in lint(BANK) if finding.severity == "error"] == []


def test_what_the_bank_promises() -> None:
    assert len(BANK.domains) >= 14
    assert len(BANK.scenes) >= 560
    assert len(BANK.lookalikes) >= 40
    assert {entry.id for entry in BANK.emotions} == set(Emotion)
    assert {entry.id for entry in BANK.acts} == set(Act)


def test_the_seed_gaps_are_filled() -> None:
    """What the 2023 topic list lacked, by its kernel words in either language."""
    text = "\n".join(f"{scene.zh} {scene.en.lower()} {scene.hidden.zh}" for scene in BANK.scenes)
    for kernel in ("欺负", "去世", "医院", "弟弟", "离婚", "打工", "例假", "群", "钱", "轮椅", "ai"):
        assert kernel in text, kernel


def _with_scenes(change: Callable[[Scene], Scene]) -> Catalogue:
    first, *rest = BANK.domains
    scene, *others = first.scenes
    domain = first.model_copy(update={"scenes": (change(scene), *others)})
    return BANK.model_copy(update={"domains": (domain, *rest)})


def _rules(bank: Catalogue) -> set[str]:
    return {finding.rule for finding in lint(bank) if finding.severity == "error"}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("unique", lambda s: s.model_copy(update={"id": BANK.scenes[1].id})),
        ("unique", lambda s: s.model_copy(update={"id": "Elsewhere"})),
        ("alike", lambda s: s.model_copy(update={"zh": BANK.scenes[-1].zh})),
        ("length", lambda s: s.model_copy(update={"zh": "很长" * 30})),
        ("length", lambda s: s.model_copy(update={"en": "long " * 30})),
        ("languages", lambda s: s.model_copy(update={"en": "我不懂"})),
        ("languages", lambda s: s.model_copy(update={"zh": "no Chinese here"})),
        ("word_ages", lambda s: s.model_copy(update={"ages": (5, 5), "emotions": (Emotion.INSECURE,)})),
    ],
)
def test_a_bad_scene_is_found(rule: str, change: Callable[[Scene], Scene]) -> None:
    assert rule in _rules(_with_scenes(change))


@pytest.mark.parametrize(
    ("rule", "update"),
    [
        ("coverage", {"domains": BANK.domains[:3]}),
        ("bands", {"domains": tuple(d.model_copy(update={"scenes": d.scenes[:4]}) for d in BANK.domains)}),
        ("emotions", {"emotions": BANK.emotions[1:]}),
        ("acts", {"acts": BANK.acts[1:]}),
        ("safety", {"scenarios": BANK.scenarios[:4]}),
        ("people", {"styles": BANK.styles[:2]}),
        ("people", {"people": BANK.people.model_copy(update={"outcomes": BANK.people.outcomes[:2]})}),
        ("emotions", {"emotions": (BANK.emotions[0].model_copy(update={"family": "fear"}), *BANK.emotions[1:])}),
        ("unique", {"names": BANK.names.model_copy(update={"zh": BANK.names.zh + BANK.names.zh[:1]})}),
    ],
)
def test_a_gap_is_found(rule: str, update: dict[str, object]) -> None:
    assert rule in _rules(BANK.model_copy(update=update))


class TestTypos:
    """A typo in a file names the file, the key and the nearest right one."""

    def test_unknown_key(self) -> None:
        table = {**read_table("topics/friends.toml")}
        table["scene"] = [{**table["scene"][0], "emotoins": ["sad"]}]
        with pytest.raises(
            DataError, match=r"topics/friends\.toml: unknown key 'scene\.0\.emotoins'; did you mean 'emotions'\?"
        ):
            parse_table(Domain, table, "topics/friends.toml")

    @pytest.mark.parametrize(
        ("key", "value"), [("ages", [12, 7]), ("ages", [2, 4]), ("emotions", ["melancholy"]), ("risk", "bulling"), ("zh", "")]
    )
    def test_bad_value(self, key: str, value: object) -> None:
        table = {**read_table("topics/friends.toml")}
        table["scene"] = [{**table["scene"][0], key: value}]
        with pytest.raises(DataError, match=rf"topics/friends\.toml: scene\.0\.{key}"):
            parse_table(Domain, table, "topics/friends.toml")

    def test_a_missing_section(self) -> None:
        table = {**read_table("people.toml")}
        del table["outcome"]
        with pytest.raises(DataError, match=r"people\.toml: outcome"):
            parse_table(People, table, "people.toml")
