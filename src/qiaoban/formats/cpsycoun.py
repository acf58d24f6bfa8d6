"""CPsyCounD: one text file a talk, `来访者：…` and `心理咨询师：…` with blank lines between, in a folder or a .tar.gz.

What stands before a label belongs to the turn before it. A third person who speaks (a mother, a daughter) is on the side of
the client: the name stays in the text, and `notes` counts it.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qiaoban.conversation import Conversation, Role, Turn, open_bytes
from qiaoban.errors import DataError, UsageError
from qiaoban.files import write_atomically
from qiaoban.formats.flat import split_system
from qiaoban.formats.record import EDGES, LONGEST, SYSTEM, CannotHoldError, Format, Notes, OnBad, Record
from qiaoban.formats.store import raise_bad
from qiaoban.formats.words import speaker

CLIENT, COUNSELLOR = speaker("cpsycoun", "client"), speaker("cpsycoun", "counsellor")
_ROLES: dict[str, Role] = {CLIENT: "user", COUNSELLOR: "assistant"}
# A speaker at the start of a line; an unknown one only where a paragraph starts.
_SPEAKER = re.compile(
    rf"^(?P<known>{CLIENT}|{COUNSELLOR})(?P<which>[0-9]|（[^）\n]{{1,12}}）)?[：:]"
    r"|(?:\A|(?<=\n\n))(?P<other>[^\s：:，。！？、；,.!?（）()\d]{1,8})[：:]",
    re.MULTILINE,
)
_SAFE = re.compile(r"(?!\._)[\w.-]{1,80}")
ARCHIVES = (".tar.gz", ".tgz")


def looks_like_talk(text: str) -> bool:
    """Whether a text has a line of the client or of the counsellor."""
    return any(mark["known"] for mark in _SPEAKER.finditer(_unix(text)))


def text_records(path: Path, limit: int = LONGEST, on_bad: OnBad = raise_bad) -> Iterator[Record]:
    """The texts of an archive in its order, of a folder by name, or of one file. Nothing is unpacked to disk."""
    for name, raw in _texts(path, limit, on_bad):
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            hint = "convert the files to UTF-8, for instance with `iconv -f GB18030 -t UTF-8`"
            on_bad(DataError(f"{name}: byte {error.start} is not UTF-8 (0x{raw[error.start]:02x})", path=path, hint=hint))
            continue
        if text.strip():
            yield Record(path=path, part=name, text=text)


def _texts(path: Path, limit: int, on_bad: OnBad) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for each in sorted(path.rglob("*.txt")):
            with open_bytes(each) as file:
                raw = file.read(limit + 1)
            if _fits(path, each.name, len(raw), limit, on_bad):
                yield each.name, raw
        return
    with open_bytes(path) as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            raw = file.read(limit + 1)
            if _fits(path, path.name, len(raw), limit, on_bad):
                yield path.name, raw
            return
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) as packed:
                with tarfile.open(fileobj=packed, mode="r|") as archive:
                    for member in archive:
                        name = Path(member.name).name
                        inner = archive.extractfile(member) if name.endswith(".txt") and not name.startswith("._") else None
                        if inner is not None and _fits(path, name, member.size, limit, on_bad):
                            yield name, inner.read()
                while packed.read(limit):  # what is cut shows at the end only, where tarfile does not look
                    pass
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise DataError(f"the archive cannot be read: {error}", path=path, hint="fetch it again") from None


def _fits(path: Path, name: str, size: int, limit: int, on_bad: OnBad) -> bool:
    if size > limit:
        on_bad(DataError(f"{name}: the text is longer than {limit / 2**20:.3g} MB", path=path, hint="raise the limit"))
    return size <= limit


def _read(record: Record, notes: Notes) -> Conversation:
    text = _unix(record.words(record.text, "text"))
    marks = list(_SPEAKER.finditer(text))
    if not marks:
        raise record.error(f"nobody speaks in it: a line starts with {CLIENT}： or {COUNSELLOR}：")
    if text[: marks[0].start()].strip():
        notes["text before the first speaker"] += 1
    turns = []
    for mark, end in zip(marks, [*(each.start() for each in marks[1:]), len(text)], strict=True):
        said, name = text[mark.end() : end].strip(), mark["other"] or (mark["which"] or "").strip("（）")
        if name:
            said = f"{name}：{said}"
            notes["named speakers, read as the client" if mark["other"] else "clients told apart by name"] += 1
        turns.append(Turn(role=_ROLES.get(mark["known"] or "", "user"), content=said))
    stem = record.part.removesuffix(".txt")
    return Conversation(id=record.name(stem, turns), turns=tuple(turns))


def _write(talk: Conversation, lost: Counter[str]) -> list[Any]:
    _, turns = split_system(talk, lost)
    lost[SYSTEM] += talk.turns[0].role == "system"
    labels = {role: label for label, role in _ROLES.items()}
    texts = [_unix(turn.content).strip() for turn in turns]
    if any(_SPEAKER.search(tail) for tail in _tails(texts)):
        raise CannotHoldError("a turn holds a speaker's mark")
    lost[EDGES] += sum(turn.content != text for turn, text in zip(turns, texts, strict=True))
    if not _SAFE.fullmatch(talk.id):
        lost["id"] += 1
    body = "\n\n".join(f"{labels[turn.role]}：{text}" for turn, text in zip(turns, texts, strict=True))
    return [(talk.id if _SAFE.fullmatch(talk.id) else "", body + "\n")]


def _unix(text: str) -> str:
    return re.sub("\r+\n", "\n", text)


def _tails(texts: Iterable[str]) -> Iterator[str]:
    """Of every text what stands after its first line, with the break: only there can a mark be mistaken for a speaker."""
    return (text[text.index("\n") :] for text in texts if "\n" in text)


def _save(path: Path, rows: Iterable[Any]) -> None:
    """An archive with one text a talk; equal talks give equal bytes."""
    if not path.name.endswith(ARCHIVES):
        raise UsageError(f"cpsycoun is an archive of texts, and {path.name} is none", hint="let the name end in .tar.gz")
    with (
        write_atomically(path) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for number, (name, text) in enumerate(rows):
            data = text.encode()
            member = tarfile.TarInfo(f"Data/{name or f'case_{number}'}.txt")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


CPSYCOUN = Format(
    name="cpsycoun",
    about=f"a folder or a .tar.gz of text files, {CLIENT}：… and {COUNSELLOR}：…",
    looks=lambda row: False,
    decode=_read,
    encode=_write,
    save=_save,
    keeps=frozenset(["id"]),
)
