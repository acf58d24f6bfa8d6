"""Mixtures: shares by tokens, caps, splits that nothing crosses, the same bytes every time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiaoban.cli.main import run as qiaoban
from qiaoban.conversation import Conversation, Meta, Provenance, Turn, read_conversations, write_conversations
from qiaoban.errors import DataError, UsageError
from qiaoban.mix import PRESETS, Kind, MixOptions, MixSource, mix


def talk(name: str, *, words: int = 20, topic: str | None = None, **more: Any) -> Conversation:
    turns = (Turn(role="user", content="我" * words), Turn(role="assistant", content="嗯" * words))
    return Conversation(id=name, turns=turns, meta=Meta(topic=topic), **more)


def count(turns: Sequence[Turn]) -> int:
    return sum(len(turn.content) for turn in turns)


def source(folder: Path, kind: Kind, talks: list[Conversation], **more: Any) -> MixSource:
    path = folder / f"{kind}-{len(list(folder.iterdir()))}.jsonl"
    write_conversations(path, talks)
    return MixSource(name=path.stem, kind=kind, path=path, **more)


def three(folder: Path, *, companion: int = 60, general: int = 60, instruction: int = 60) -> tuple[MixSource, ...]:
    return (
        source(folder, "companion", [talk(f"c{n}", words=30, topic=f"scene.{n % 20}") for n in range(companion)]),
        source(folder, "general", [talk(f"g{n}", words=10) for n in range(general)]),
        source(folder, "instruction", [talk(f"i{n}", words=5) for n in range(instruction)]),
    )


def run(folder: Path, options: MixOptions, name: str = "out") -> dict[str, Any]:
    return mix(options, read_conversations, count, folder / name)


@pytest.mark.parametrize("preset", PRESETS)
def test_shares_are_of_tokens(tmp_path: Path, preset: str) -> None:
    sources = three(tmp_path, companion=100, general=200, instruction=400)
    train = run(tmp_path, MixOptions(sources=sources, shares=PRESETS[preset]))["splits"]["train"]
    for kind, share in PRESETS[preset].items():
        assert train["shares"][kind] == pytest.approx(share, abs=0.02)


def test_the_same_options_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    sources = three(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path, MixOptions(sources=sources, seed=seed), name)
    files = ["train.jsonl", "valid.jsonl", "test.jsonl", "mix.json"]
    read = {name: [(tmp_path / name / file).read_bytes() for file in files] for name in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_nothing_crosses_the_splits(tmp_path: Path) -> None:
    card = Provenance(card_sha="s" * 64)
    tied = [talk("x1", topic="a", provenance=card), talk("x2", topic="b", provenance=card), talk("x3", topic="b")]
    pairs = [talk("x3-branch", provenance=Provenance(source="x3"))]
    sources = (*three(tmp_path), source(tmp_path, "companion", tied), source(tmp_path, "companion", pairs))
    run(tmp_path, MixOptions(sources=sources))
    where: dict[str, set[str]] = {}
    for split in ("train", "valid", "test"):
        for each in read_conversations(tmp_path / "out" / f"{split}.jsonl"):
            assert each.split == split
            key = "tied" if each.id.startswith("x") else each.meta.topic or each.id.partition("#")[0]
            where.setdefault(key, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())


def test_only_train_repeats_and_never_beyond_the_cap(tmp_path: Path) -> None:
    sources = (
        source(tmp_path, "companion", [talk(f"c{n}", words=5) for n in range(30)], max_repeats=2),
        source(tmp_path, "general", [talk(f"g{n}", words=50) for n in range(100)]),
        source(tmp_path, "instruction", [talk(f"i{n}", words=50) for n in range(100)]),
    )
    manifest = run(tmp_path, MixOptions(sources=sources))
    ids = [each.id for each in read_conversations(tmp_path / "out" / "train.jsonl")]
    assert len(ids) == len(set(ids)), "a copy has a name of its own"
    copies = Counter(name.partition("#")[0] for name in ids)
    assert max(copies.values()) == 2
    assert all(manifest["splits"][split]["sources"]["companion-0"]["copies"] == 0 for split in ("valid", "test"))


def test_tokens_that_cannot_be_had_are_refused_with_what_can(tmp_path: Path) -> None:
    sources = three(tmp_path, companion=4)
    with pytest.raises(UsageError, match="companion would need") as error:
        run(tmp_path, MixOptions(sources=sources, tokens=1_000_000))
    assert "at most" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_number_of_tokens_is_met(tmp_path: Path) -> None:
    train = run(tmp_path, MixOptions(sources=three(tmp_path), tokens=1500))["splits"]["train"]
    assert train["tokens"] == pytest.approx(1500, rel=0.06)


def test_a_split_that_talks_bring_along_is_kept(tmp_path: Path) -> None:
    mine = [talk(f"c{n}", topic=f"t{n}", split="test" if n < 5 else None) for n in range(50)]
    sources = (source(tmp_path, "companion", mine), *three(tmp_path, general=200, instruction=400)[1:])
    run(tmp_path, MixOptions(sources=sources))
    found = {each.id for each in read_conversations(tmp_path / "out" / "test.jsonl")}
    others = {each.id for name in ("train", "valid") for each in read_conversations(tmp_path / "out" / f"{name}.jsonl")}
    assert not {f"c{n}" for n in range(5)} & others
    assert {f"c{n}" for n in range(5)} & found


def test_splits_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    mine = [talk("a", topic="t", split="test"), talk("b", topic="t", split="train")]
    with pytest.raises(DataError, match="several splits"):
        run(tmp_path, MixOptions(sources=(source(tmp_path, "companion", mine), *three(tmp_path)[1:])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shares": {"companion": 0.5, "general": 0.2}}, "sum to 1"),
        ({"splits": {"train": 0.5, "valid": 0.1, "test": 0.1}}, "splits"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(tmp_path, MixOptions(sources=three(tmp_path), **change))


def test_a_kind_without_a_source_and_an_empty_source_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no source is of kind 'instruction'"):
        run(tmp_path, MixOptions(sources=three(tmp_path)[:2]))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match="no talk"):
        run(tmp_path, MixOptions(sources=(*three(tmp_path), MixSource(name="e", kind="general", path=empty))))


def test_the_command_gives_the_part_of_a_missing_kind_to_the_other(tmp_path: Path) -> None:
    companion, general, _ = three(tmp_path)
    given = ["--companion", str(companion.path), "--general", str(general.path), "--preset", "companion-30"]
    assert qiaoban(["mix", str(tmp_path / "out"), *given]) == 0
    manifest = json.loads((tmp_path / "out" / "mix.json").read_text("utf-8"))
    assert manifest["shares"] == {"companion": 0.3, "general": 0.7, "instruction": 0.0}
    assert qiaoban(["mix", str(tmp_path / "none"), "--companion", str(companion.path)]) == 2


def test_the_manifest_says_what_went_in(tmp_path: Path) -> None:
    sources = three(tmp_path)
    manifest = run(tmp_path, MixOptions(sources=sources))
    assert json.loads((tmp_path / "out" / "mix.json").read_text("utf-8")) == manifest
    assert [(one["kind"], one["talks"]) for one in manifest["sources"]] == [
        ("companion", 60),
        ("general", 60),
        ("instruction", 60),
    ]
    assert all(len(one["sha256"]) == 64 for one in manifest["sources"])
    for split in ("train", "valid", "test"):
        lines = (tmp_path / "out" / f"{split}.jsonl").read_bytes().splitlines()
        assert len(lines) == manifest["splits"][split]["talks"]


def test_temperature_evens_out_the_sources_of_a_kind(tmp_path: Path) -> None:
    large = source(tmp_path, "companion", [talk(f"a{n}") for n in range(300)])
    small = source(tmp_path, "companion", [talk(f"b{n}") for n in range(30)])
    rest = three(tmp_path)[1:]

    def part(temperature: float) -> float:
        options = MixOptions(sources=(large, small, *rest), tokens=1000, temperature=temperature)
        found = run(tmp_path, options)["splits"]["train"]["sources"]
        return float(found[small.name]["tokens"] / (found[small.name]["tokens"] + found[large.name]["tokens"]))

    assert part(1.0) < 0.2 < part(5.0) < 0.5


@given(st.lists(st.integers(1, 40), min_size=3, max_size=30), st.integers(0, 5), st.sampled_from(list(PRESETS)))
@settings(max_examples=25, deadline=None)
def test_whatever_the_sizes_no_talk_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, preset: str
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    sources = tuple(
        source(folder, kind, [talk(f"{kind}{n}", words=size) for n, size in enumerate(sizes)]) for kind in PRESETS[preset]
    )
    run(folder, MixOptions(sources=sources, seed=seed, shares=PRESETS[preset]))
    found = [
        {each.id.partition("#")[0] for each in read_conversations(folder / "out" / f"{split}.jsonl")}
        for split in ("train", "valid", "test")
    ]
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]
