"""A data file by its name on a hub: `hf:OWNER/NAME/FILE` on Hugging Face, `ms:OWNER/NAME/FILE` on ModelScope.

`@REVISION` may follow OWNER/NAME. The file is fetched once, with resume, into the cache folder; a branch is kept as it was
first fetched, so that a mixture stays what it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from qiaoban.errors import UsageError
from qiaoban.models.partial import Partial, Progress, Silent
from qiaoban.models.registry import Source, SourceKind
from qiaoban.models.sources import Access, Expected, fetch
from qiaoban.settings import Settings

_NAME = re.compile(r"(?P<hub>hf|ms):(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>[\w./ -]+)")
_KIND: dict[str, SourceKind] = {"hf": "huggingface", "ms": "modelscope"}
_BRANCH = {"hf": "main", "ms": "master"}


def local_file(name: str, settings: Settings, *, progress: Progress | None = None) -> Path:
    """The path of a file that is named by a path or by its place on a hub. `UsageError` for neither, `EngineError` offline."""
    if not name.startswith(("hf:", "ms:")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no file {name!r}", hint="give a path, or hf:OWNER/NAME/FILE")
        return path
    found = _NAME.fullmatch(name)
    if found is None or ".." in found["file"]:
        raise UsageError(f"{name!r} is not a file on a hub", hint="write hf:OWNER/NAME/FILE")
    hub, revision = found["hub"], found["revision"] or _BRANCH[found["hub"]]
    folder = settings.home / "data" / hub / found["repo"].replace("/", "--") / revision
    path = folder / found["file"].replace("/", "--")
    if not path.exists():
        source = Source(kind=_KIND[hub], repo=f"datasets/{found['repo']}", revision=revision, file=found["file"])
        partial = Partial(folder, path.name, progress=progress or Silent())
        fetch(source, Expected(size=None, sha256=None), partial, Access(settings=settings))
        partial.sync()
        partial.path.replace(path)
        partial.discard()
    return path
