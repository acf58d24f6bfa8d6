"""Where model files lie, and how they get there: fetched, checked, and only then given their name.

<home>/models/<id>/<filename>      the file, whole and checked
<home>/models/<id>/digest.json     its sha256, size, source, time and trust
<home>/partial/<id>/               what an unfinished pull has, one file per source
<home>/partial/<id>.lock           held while a process pulls
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from qiaoban.errors import DataError, EngineError
from qiaoban.files import sync_folder, write_atomically
from qiaoban.models.gguf import read_metadata
from qiaoban.models.partial import FreeBytes, Partial, Progress, Silent, SourceError, free_disk_bytes
from qiaoban.models.registry import ModelSpec, Source, find_spec, load_registry
from qiaoban.settings import Settings

if TYPE_CHECKING:
    from qiaoban.models.sources import Access, Expected

# What vouches for the digest: the registry, the hub's own statement, or nothing but the first download.
Trust: TypeAlias = Literal["pinned", "hub", "first use"]

_CHUNK: Final = 2**20
_SILENT: Final = Silent()


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A model file in the store. `size` is in bytes, `pulled_at` ISO 8601 in UTC. `problem` is "" if all is well."""

    id: str
    path: Path
    size: int
    sha256: str
    source: str
    pulled_at: str
    trust: Trust
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """`digest.json`. `damaged` is set when a check found other bytes, and stays until a pull or a check mends it."""

    sha256: str
    size: int
    source: str
    pulled_at: str
    trust: Trust
    damaged: bool = False


class ModelStore:
    """The models under one home folder. Safe to use from several processes at once; a read-only home can be read."""

    def __init__(
        self,
        home: Path,
        *,
        settings: Settings,
        registry: Mapping[str, ModelSpec] | None = None,
        access: Access | None = None,
        free_bytes: FreeBytes = free_disk_bytes,
    ) -> None:
        """`registry` defaults to the one that ships, `access` (timeouts, the Python that runs pip) to `settings`."""
        self._home = home
        self._settings = settings
        self._registry = load_registry() if registry is None else registry
        self._access = access
        self._free_bytes = free_bytes

    def path(self, model_id: str) -> Path:
        """Where the model's file is, ready for use; its size is checked here and its digest by `verify`.

        Raises UsageError for an unknown id, EngineError if it was not pulled, DataError if it is known to be damaged.
        """
        spec = find_spec(model_id, self._registry)
        file, hint = self._file(spec), _pull_hint(spec)
        if not file.is_file():
            raise EngineError(f"the model {spec.id} is not in the store ({file.parent})", hint=hint)
        record = self._record(spec)
        if record is None:
            raise EngineError(f"{file} was put there by hand and is not checked yet", hint=hint)
        if problem := _problem(spec, record, file):
            raise DataError(problem, path=file, hint=hint)
        return file

    def installed(self) -> list[Installed]:
        """The known models whose file is here, in the registry's order; a damaged one has its `problem` set."""
        return [self._installed(spec) for spec in self._registry.values() if self._file(spec).is_file()]

    def pull(self, model_id: str, *, progress: Progress = _SILENT) -> Path:
        """Bring the model here and return its path. With the file here already, no work is done and no network asked.

        Sources are tried in order. Size and sha256 are checked before the file gets its name. A pull that was cut
        short, however it ended, goes on where it stopped. Raises UsageError for an unknown id, DiskFullError, and
        EngineError with one line per source if none gave the file.
        """
        spec = find_spec(model_id, self._registry)
        if self._is_whole(spec):
            return self._file(spec)
        try:
            with self._locked(spec, progress):
                if not self._is_whole(spec) and not self._adopt(spec, progress):
                    self._fetch(spec, progress)
                shutil.rmtree(self._partial_folder(spec), ignore_errors=True)
        except OSError as error:
            raise EngineError(
                f"the model {spec.id} cannot be stored: {error}", hint="check QIAOBAN_HOME and its permissions"
            ) from error
        finally:
            progress.done()
        return self._file(spec)

    def verify(self, model_id: str, *, progress: Progress = _SILENT) -> Installed:
        """Read the file again and compare its sha256. Raises DataError naming the file and both digests if they differ.

        A file found damaged is remembered as such: `path` refuses it and the next `pull` replaces it.
        """
        spec = find_spec(model_id, self._registry)
        record, file = self._record(spec), self._file(spec)
        if record is None or not file.is_file():
            raise EngineError(f"the model {spec.id} is not in the store ({file.parent})", hint=_pull_hint(spec))
        try:
            actual = _sha256(file, progress)
        finally:
            progress.done()
        wanted = spec.sha256 or record.sha256
        if record.damaged != (actual != wanted):
            with suppress(OSError):  # a read-only store is still checked; it just cannot remember
                self._write_record(spec, replace(record, damaged=actual != wanted))
        if actual != wanted:
            raise DataError(f"its sha256 is {actual}, expected {wanted}", path=file, hint=_pull_hint(spec))
        return self._installed(spec)

    # ---- what is on the disk -----------------------------------------------------------------------------------------

    def _file(self, spec: ModelSpec) -> Path:
        return self._home / "models" / spec.id / spec.filename

    def _partial_folder(self, spec: ModelSpec) -> Path:
        return self._home / "partial" / spec.id

    def _record(self, spec: ModelSpec) -> _Record | None:
        path = self._file(spec).with_name("digest.json")
        try:
            record = _parse_record(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        if record is None:
            raise DataError("not a digest record", path=path, hint=f"delete it, then {_pull_hint(spec)}")
        return record

    def _write_record(self, spec: ModelSpec, record: _Record) -> None:
        """Write it beside the partial files first: even a killed process leaves nothing half-done under models/."""
        draft = self._partial_folder(spec) / "digest.json"
        with write_atomically(draft) as file:
            file.write(json.dumps(asdict(record), indent=2).encode() + b"\n")
        _place(draft, self._file(spec).with_name("digest.json"))

    def _is_whole(self, spec: ModelSpec) -> bool:
        file, record = self._file(spec), self._record(spec)
        return record is not None and file.is_file() and not _problem(spec, record, file)

    def _installed(self, spec: ModelSpec) -> Installed:
        file = self._file(spec)
        try:
            record = self._record(spec)
            problem = "not checked yet; pull it" if record is None else _problem(spec, record, file)
        except DataError as error:
            record, problem = None, error.message
        known = record or _Record(sha256="", size=file.stat().st_size, source="", pulled_at="", trust="first use")
        return Installed(
            id=spec.id,
            path=file,
            size=known.size,
            sha256=known.sha256,
            source=known.source,
            pulled_at=known.pulled_at,
            trust=known.trust,
            problem=problem,
        )

    @contextmanager
    def _locked(self, spec: ModelSpec, progress: Progress) -> Iterator[None]:
        import filelock  # 0.2 s to import, which `path` need not pay

        folder = self._partial_folder(spec).parent
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{spec.id}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            progress.note(f"waiting: another process is pulling {spec.id}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # ---- pulling -----------------------------------------------------------------------------------------------------

    def _adopt(self, spec: ModelSpec, progress: Progress) -> bool:
        """Take a file that lies in place without a good record (copied by hand, mended), if its bytes are right."""
        file, record = self._file(spec), self._record(spec)
        if not file.is_file() or spec.size not in (None, file.stat().st_size):
            return False
        progress.note(f"checking the file that is already there: {file}")
        sha256, wanted = _sha256(file, progress), spec.sha256 or (record and record.sha256)
        if wanted and sha256 != wanted:
            progress.note(f"its sha256 is {sha256}, expected {wanted}; it will be replaced")
            return False
        if not wanted:
            read_metadata(file)
        trust: Trust = "pinned" if spec.sha256 else record.trust if record else "first use"
        source = record.source if record else "found in the store"
        self._settle(spec, sha256, source, trust, progress)
        return True

    def _fetch(self, spec: ModelSpec, progress: Progress) -> None:
        from qiaoban.models import sources  # httpx2 takes 0.5 s to import, which `path` need not pay

        access = self._access or sources.Access(settings=self._settings)
        record = self._record(spec)
        expected = sources.Expected(
            size=spec.size or (record.size if record else None),
            sha256=spec.sha256 or (record.sha256 if record else None),
        )
        failures, folder = [], self._partial_folder(spec)
        for source in spec.sources:
            progress.note(f"pulling {spec.id} from {source.label}")
            name = _partial_name(source)
            partial = Partial(folder, name, progress=progress, free_bytes=self._free_bytes)
            try:
                sources.fetch(source, expected, partial, access)
                return self._accept(spec, source, expected, partial)
            except SourceError as failure:
                failures.append(f"{source.label}: {failure.message}")
                progress.note(failures[-1])
        raise EngineError(
            "\n  ".join([f"no source gave the model {spec.id}:", *failures]),
            hint=f"without a network, copy {self._file(spec).parent} from a machine that has pulled it; "
            "HF_ENDPOINT, MODELSCOPE_ENDPOINT or pip's index settings can name a mirror",
            retryable=True,
        )

    def _accept(self, spec: ModelSpec, source: Source, expected: Expected, partial: Partial) -> None:
        """Check the fetched bytes and give them their name. Raises SourceError, and deletes the partial if wrong."""
        total = expected.size or partial.marks.total
        if total is not None and partial.size < total:
            raise SourceError(f"it ended after {partial.size:,} of {total:,} bytes", retryable=True)
        partial.progress.note("checking the sha256")
        partial.sync()
        sha256 = _sha256(partial.path, _SILENT)
        stated = partial.marks.claimed
        wanted = expected.sha256 or stated
        if wanted and sha256 != wanted:
            partial.discard()
            raise SourceError(f"the bytes have sha256 {sha256}, expected {wanted}; deleted")
        if expected.sha256 is None:
            try:
                read_metadata(partial.path)
            except DataError as error:
                partial.discard()
                raise SourceError(f"what it sent is not a model file: {error.message}") from error
        earlier = self._record(spec)
        trust: Trust = "pinned" if spec.sha256 else earlier.trust if earlier else "hub" if stated else "first use"
        self._settle(spec, sha256, source.label, trust, partial.progress, fetched=partial.path)

    def _settle(
        self,
        spec: ModelSpec,
        sha256: str,
        source: str,
        trust: Trust,
        progress: Progress,
        *,
        fetched: Path | None = None,
    ) -> None:
        """Record the digest, then give the file its name: dying in between leaves a record and a resumable partial."""
        file = self._file(spec)
        size = (fetched or file).stat().st_size
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if trust != "pinned":
            who = "the hub states the same one" if trust == "hub" else "nothing else vouches for it"
            progress.note(f"the registry pins no digest for {spec.id}: {sha256} is kept to from now on; {who}")
        self._write_record(spec, _Record(sha256=sha256, size=size, source=source, pulled_at=now, trust=trust))
        if fetched:
            _place(fetched, file)


def _place(draft: Path, final: Path) -> None:
    """Give a finished, fsynced file its name, durably."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(final)
    sync_folder(final.parent)


def _pull_hint(spec: ModelSpec) -> str:
    return f"run `qiaoban models pull {spec.id}`"


def _partial_name(source: Source) -> str:
    """Tied to the whole source, so that bytes of an older registry's revision or wheels are never continued."""
    return f"{source.kind}-{hashlib.sha256(repr(source).encode()).hexdigest()[:12]}"


def _problem(spec: ModelSpec, record: _Record, file: Path) -> str:
    """Why the file may not be used, from what can be told without reading it; "" if nothing speaks against it."""
    if record.damaged:
        return f"damaged: its sha256 is not {spec.sha256 or record.sha256}"
    if (size := file.stat().st_size) != record.size:
        return f"damaged: it has {size:,} bytes, not {record.size:,}"
    if spec.sha256 not in (None, record.sha256):
        return f"outdated: the registry now wants sha256 {spec.sha256}, it has {record.sha256}"
    return ""


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        progress.start(path.stat().st_size)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def _parse_record(raw: bytes) -> _Record | None:
    try:
        values = json.loads(raw)
    except ValueError:
        return None
    match values:
        case {"sha256": str(), "size": int(), "source": str(), "pulled_at": str(), "trust": trust, "damaged": bool()}:
            if trust in get_args(Trust) and set(values) == set(_Record.__dataclass_fields__):
                return _Record(**values)
    return None
