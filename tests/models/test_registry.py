"""The registry that ships is sound, and a wrong one is refused with the place and the nearest key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qiaoban.errors import DataError, UsageError
from qiaoban.models.registry import DEFAULT_MODEL, ModelSpec, find_spec, load_registry, read_registry

GOOD = """\
[[model]]
id = "toy"
title = "Toy"
filename = "toy.gguf"
size = 10
sha256 = "{digest}"
licence = "CC0-1.0"
languages = ["zh"]
context_tokens = 32
sampling = {{ temperature = 0.7, top_p = 0.8, top_k = 20, min_p = 0, repeat_penalty = 1.0 }}

[[model.sources]]
kind = "huggingface"
repo = "org/toy"

[[model.sources]]
kind = "pypi"
member = "*/data/part*.bin"
packages = ["toy-part1==1.0"]
""".format(digest="0" * 64)


def read(tmp_path: Path, text: str) -> dict[str, ModelSpec]:
    path = tmp_path / "registry.toml"
    path.write_text(text)
    return read_registry(path)


def test_the_shipped_registry_is_read_once() -> None:
    assert load_registry() is load_registry()
    assert next(iter(load_registry())) == DEFAULT_MODEL


@pytest.mark.parametrize("model_id", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2-135m"])
def test_models_that_need_no_hub_are_pinned_and_have_wheels(model_id: str) -> None:
    spec = load_registry()[model_id]
    assert spec.size
    assert spec.sha256
    assert spec.sources[-1].kind == "pypi"
    assert len(set(spec.sources[-1].packages)) == len(spec.sources[-1].packages)


def test_wheels_of_a_split_file_are_in_order() -> None:
    for spec in load_registry().values():
        for source in spec.sources:
            if len(source.packages) > 1:
                numbers = [int(re.search(r"part(\d+)==", package)[1]) for package in source.packages]  # type: ignore[index]
                assert numbers == list(range(1, len(numbers) + 1))


def test_unpinned_models_say_so() -> None:
    unpinned = [spec for spec in load_registry().values() if spec.sha256 is None]
    assert unpinned
    assert all("not verified" in spec.note and "no digest is pinned" in spec.note for spec in unpinned)


def test_hub_sources_default_to_the_model_file_and_the_hub_branch(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "huggingface"', 'kind = "modelscope"')
    assert read(tmp_path, GOOD)["toy"].sources[0].revision == "main"
    assert read(tmp_path, text)["toy"].sources[0].revision == "master"
    assert read(tmp_path, text)["toy"].sources[0].file == "toy.gguf"


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("sha256 =", "sha265 =", r"registry.toml:6: model toy: unknown key 'sha265'; did you mean 'sha256'\?"),
        ("top_k", "topk", r":10: model toy: sampling: unknown key 'topk'; did you mean 'top_k'\?"),
        ("repo =", "rep =", r":14: model toy: sources 1: unknown key 'rep'; did you mean 'repo'\?"),
        ("member =", "members =", r":18: model toy: sources 2: unknown key 'members'; did you mean 'member'\?"),
        ('"huggingface"', '"hugingface"', r":13: .*'kind' is 'hugingface'; did you mean huggingface\?"),
        ("[[model]]", "[[modle]]", r"registry: unknown key 'modle'; did you mean 'model'\?"),
        ("size = 10\n", "", r"'sha256' needs its 'size'"),
        ("size = 10", "size = -10", r":5: .*'size' must be a whole number of at least 1, not -10"),
        ("size = 10", "size = true", r"'size' must be a whole number"),
        ("top_p = 0.8", 'top_p = "much"', r"'top_p' must be a number"),
        ('"toy.gguf"', '"../toy.gguf"', r":4: .*'filename' is '../toy.gguf'"),
        ('id = "toy"', 'id = ".."', r":2: .*'id' is '..'"),
        ('"0000', '"zz00', r"'sha256' is"),
        ('title = "Toy"\n', "", r"'title' must be a text, not None"),
        ('["zh"]', "[]", r"'languages' must be a list of texts"),
        ("toy-part1==1.0", "toy-part1", r"'packages' holds 'toy-part1'"),
        ("toy-part1==1.0", "--index-url=x", r"'packages' holds"),
        ("[[model]]", "[[model]", r"not TOML"),
    ],
)
def test_a_wrong_registry_is_refused_with_its_place(tmp_path: Path, good: str, bad: str, says: str) -> None:
    assert good in GOOD
    with pytest.raises(DataError, match=says):
        read(tmp_path, GOOD.replace(good, bad, 1))


def test_an_id_may_not_appear_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'toy' appears twice"):
        read(tmp_path, GOOD + GOOD)


def test_a_model_needs_a_source_and_sampling(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one 'sources' table is needed"):
        read(tmp_path, GOOD[: GOOD.index("[[model.sources]]")])
    with pytest.raises(DataError, match="the table 'sampling' is missing"):
        read(tmp_path, re.sub(r"sampling = .*\n", "", GOOD))


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no model is called 'qwen2\.5-coder-05b'") as caught:
        find_spec("qwen2.5-coder-05b", load_registry())
    assert caught.value.hint == "did you mean qwen2.5-coder-0.5b?"


def test_a_far_off_model_gets_the_whole_list() -> None:
    with pytest.raises(UsageError) as caught:
        find_spec("zzz", load_registry())
    assert DEFAULT_MODEL in caught.value.hint
