"""The same stages under Ray Data, for sets over which one machine would take too long: the same files come out, byte for byte.

What looks at one talk at a time (the rules but for three, held-out texts, personal data) is mapped over the cluster in batches,
in order. What needs all talks stays with the driver: three rules about the corpus, and the index of duplicates, which lies on
disk. Talks stream; the driver's folder for temporary files must have room for a copy of the set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from qiaoban.cluster import Crew, ray_data
from qiaoban.conversation import Conversation, parse_conversation
from qiaoban.curate.dedup import blocks
from qiaoban.curate.lint import lint
from qiaoban.curate.pipeline import Read, Stage
from qiaoban.curate.rules import Finding, load_rules
from qiaoban.curate.rules_corpus import CORPUS_RULES
from qiaoban.curate.stage import Dropped, Outcome
from qiaoban.files import write_lines

_BATCH = 2000  # talks: enough for a compiled rule to pay, little enough to be spread
_ONE_LINE = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})  # Ray ends a line there
Rows = Mapping[str, Any]


@contextmanager
def ray_hands(crew: Crew, *, batch: int = _BATCH) -> Iterator[RayHands]:
    """`Hands` on a cluster, which hands out `batch` talks at a time. Raises as `ray_data` does."""
    with ray_data(crew, hint="run again: a stage is written whole or not at all") as data:
        data.DataContext.get_current().execution_options.preserve_order = True
        with TemporaryDirectory(prefix="qiaoban-curate-") as folder:
            yield RayHands(data, crew, Path(folder), batch)


class RayHands:
    """See `qiaoban.curate.pipeline.Hands`."""

    def __init__(self, data: Any, crew: Crew, folder: Path, batch: int) -> None:
        self._data, self._crew, self._folder, self._batch = data, crew, folder, batch
        self._spooled = 0

    def findings(self, read: Read) -> Iterator[Finding]:
        """Findings as `lint` gives them."""
        for row in self._mapped(_lint, read()):
            yield Finding(**json.loads(row["text"]))
        yield from lint(read(), rules=CORPUS_RULES)

    def each(self, stage: Stage, talks: Iterable[Conversation]) -> Iterator[Outcome]:
        """What `stage` makes of the talks, in their order."""
        for row in self._mapped(_Settle(stage), talks):
            yield parse_conversation(row["text"]) if row["kept"] else Dropped(**json.loads(row["text"]))

    def _mapped(self, work: Callable[[Iterable[Conversation]], Rows], talks: Iterable[Conversation]) -> Iterator[Rows]:
        self._spooled += 1
        folder = self._folder / str(self._spooled)
        for number, batch in enumerate(blocks(talks, self._batch)):  # a file is a block, and is read by one worker at a time
            write_lines(folder / f"{number:09}.jsonl", (talk.to_json().translate(_ONE_LINE) for talk in batch))
        if folder.exists():
            lines = self._data.read_text(f"local://{folder}")  # the driver reads: its disk may be nobody else's
            rows = lines.map_batches(
                _Worker,
                batch_size=self._batch,
                num_cpus=1,
                compute=self._data.ActorPoolStrategy(size=self._crew.workers),
                fn_constructor_args=(work,),
            )
            yield from rows.iter_rows()
            rmtree(folder)


class _Worker:
    """Lives on a worker: lines of talks in, rows out."""

    def __init__(self, work: Callable[[Iterable[Conversation]], Rows]) -> None:
        self._work = work

    def __call__(self, batch: Rows) -> Rows:
        """A batch of Ray's."""
        return self._work(parse_conversation(str(line)) for line in batch["text"])


def _lint(talks: Iterable[Conversation]) -> Rows:
    alone = [rule.id for rule in load_rules() if rule.id not in CORPUS_RULES]
    return {"text": [json.dumps(asdict(finding), ensure_ascii=False) for finding in lint(talks, rules=alone)]}


class _Settle:
    """A stage as rows: `kept`, and the talk or what was said against it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, talks: Iterable[Conversation]) -> Rows:
        """Some of the talks."""
        rows: dict[str, list[Any]] = {"kept": [], "text": []}
        for each in self._stage(talks):
            kept = not isinstance(each, Dropped)
            rows["kept"].append(kept)
            rows["text"].append(json.dumps(asdict(each), ensure_ascii=False) if isinstance(each, Dropped) else each.to_json())
        return rows
