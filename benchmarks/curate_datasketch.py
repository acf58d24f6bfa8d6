"""The datasketch side of `curate.py`, run by a Python that has it: texts in, processor seconds and near-duplicates out.

    python benchmarks/curate_datasketch.py TEXTS.jsonl THRESHOLD PERMUTATIONS

`MinHash` in its bulk path and `MinHashLSH` that is asked before each insertion: once as they come (SHA-1), and once in the
fastest way that they offer (CRC-32 and the 32-bit scheme).
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from time import process_time
from typing import Any

from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found,unused-ignore]


def shingles(text: str, lang: str) -> list[bytes]:
    """The n-grams that `qiaoban.curate.near` compares: five characters in Chinese, three words in English."""
    if lang == "zh":
        return [gram.encode() for gram in {text[at : at + 5] for at in range(max(1, len(text) - 4))}]
    words = text.split()
    return [gram.encode() for gram in {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}]


def near(sets: list[list[bytes]], threshold: float, permutations: int, **scheme: Any) -> tuple[float, list[int]]:
    """Processor seconds, and the places of the sets that are near to an earlier one."""
    began = process_time()
    index = MinHashLSH(threshold=threshold, num_perm=permutations)
    found = []
    for place, sketch in enumerate(MinHash.generator(sets, num_perm=permutations, **scheme)):
        if index.query(sketch):
            found.append(place)
        else:
            index.insert(place, sketch, check_duplication=False)
    return process_time() - began, found


def main(path: str, threshold: str, permutations: str) -> None:
    """Print one JSON object."""
    texts = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    began = process_time()
    sets = [shingles(text, lang) for text, lang in texts]
    shingled = process_time() - began
    usual, _ = near(sets, float(threshold), int(permutations))
    fast, found = near(sets, float(threshold), int(permutations), hashfunc=zlib.crc32, scheme="affine32")
    print(json.dumps({"usual": shingled + usual, "fast": shingled + fast, "near": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
