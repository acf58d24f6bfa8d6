"""How fast curation is: beside datasketch, Python's `re` and Data-Juicer in one run, stage by stage, and over many dialogues.

    python benchmarks/curate.py [--talks 10000] [--rounds 3] [--datasketch] [--data-juicer]
    python benchmarks/curate.py --scale 10000 100000 1000000 [--plot curate-scale.svg]      (whole runs, instead)

Peers are installed into environments of their own, in Qiaoban's cache folder, when they are asked for. Ratios are medians over
paired rounds: one side, then the other, in the same minute; beside datasketch and `re` they are of processor time, of all
threads. Rates and seconds are of this machine as busy as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import curate_peers as peers
import polars as pl
from curate_plot import plot
from curate_talks import Planted, held_out, planted

from qiaoban.conversation import Conversation, Turn, read_conversations, write_conversations
from qiaoban.curate.decontaminate import HeldOut, decontaminate
from qiaoban.curate.dedup import FoldedTalk, Level, Levels, dedup
from qiaoban.curate.lint import lint
from qiaoban.curate.near import BLOCK, Folded, NearIndex, grams, jaccard
from qiaoban.curate.pii import without_pii
from qiaoban.curate.rules import load_rules
from qiaoban.curate.rules_corpus import CORPUS_RULES
from qiaoban.curate.rules_echo import parrots, repeats_itself
from qiaoban.curate.rules_shape import SHAPES, shape_hits
from qiaoban.curate.rules_talk import talk_hits, talk_rows
from qiaoban.curate.rules_words import LANGS, ROLE_OF, Words, word_hits, word_rules
from qiaoban.curate.table import GENERAL, turns_table

_NOTE = "seconds and rates of a machine that others use too; only ratios are to be compared"
_LEVEL = Levels().dialogue
_RULES = frozenset(rule.id for rule in load_rules())
_SHAPE_LIKE = ("companion_too_long", "child_too_long", "control_characters", "repeats_itself")  # Data-Juicer's filters


def timed(work: Callable[[], Any], clock: Callable[[], float] = perf_counter) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    began = clock()
    result = work()
    return clock() - began, result


def exhaust(items: Iterable[Any]) -> int:
    """How many there are."""
    return sum(1 for _ in items)


# ── near-duplicates ──


def near_places(texts: Sequence[Folded]) -> set[int]:
    """The places of texts that are near to one that stays, as `dedup` finds them at one level."""
    index = NearIndex(_LEVEL.threshold, _LEVEL.sizes)
    found = set()
    for first in range(0, len(texts), BLOCK):
        block = texts[first : first + BLOCK]
        index.open(block)
        for place in range(len(block)):
            if index.match(place):
                found.add(first + place)
            else:
                index.keep(place, str(first + place))
    return found


def _near_to_their_original(drawn: Sequence[Planted], texts: Sequence[Folded]) -> set[int]:
    """The places of planted texts that are as near as the threshold says, by all their n-grams."""
    places = {each.talk.id: place for place, each in enumerate(drawn)}
    pairs = [(place, places[each.like]) for place, each in enumerate(drawn) if each.like]
    size = _LEVEL.sizes
    pieces = {place: grams(texts[place], size[texts[place].lang]) for pair in pairs for place in pair}
    return {one for one, other in pairs if jaccard(pieces[one], pieces[other]) >= _LEVEL.threshold}


def beside_datasketch(count: int, rounds: int) -> dict[str, Any]:
    """Both over the same folded texts: the same n-grams, threshold and permutations."""
    programs = peers.environment("datasketch", peers.DATASKETCH)
    usual, fast, recalls, rates = [], [], [], []
    for seed in range(rounds):
        drawn = list(planted(count, seed))
        texts = [FoldedTalk(each.talk).dialogue for each in drawn]
        again = _near_to_their_original(drawn, texts)
        ours, found = timed(partial(near_places, texts), process_time)
        theirs = peers.datasketch(programs, texts, _LEVEL.threshold)
        usual.append(theirs["usual"] / ours)
        fast.append(theirs["fast"] / ours)
        recalls.append((len(found & again) / len(again), len(set(theirs["near"]) & again) / len(again)))
        rates.append(count / ours)
    return {
        "times_datasketch": _median(usual),
        "times_datasketch_at_its_fastest": _median(fast),
        "recall_of_planted": round(min(ours for ours, _ in recalls), 4),
        "recall_of_datasketch": round(min(theirs for _, theirs in recalls), 4),
        "dialogues_per_second": round(statistics.median(rates)),
    }


# ── word rules ──


def by_python(turns: pl.DataFrame, rules: Sequence[tuple[Words, list[re.Pattern[str]], re.Pattern[str] | None]]) -> set[Any]:
    """The hits of the word rules by `re`: every turn once, every rule in turn."""
    hits = set()
    for row in turns.iter_rows(named=True):
        for words, patterns, free in rules:
            if words.lang != row["lang"] or ROLE_OF.get(words.speaker, row["role"]) != row["role"] or not _applies(words, row):
                continue
            text = row[words.column]
            if not any(pattern.search(text) for pattern in patterns):
                continue
            if free:
                text = free.sub("□", text)
            match = next((match for pattern in patterns if (match := pattern.search(text))), None)
            if match:
                hits.add((row["row"], words.rule, match[0]))
    return hits


def _applies(words: Words, row: dict[str, Any]) -> bool:
    if (words.bands and row["band"] not in words.bands) or (words.except_general and row["domain"] == GENERAL):
        return False
    if not words.after:
        return True
    asked = row["before"] is not None and any(_python(each).search(row["before"]) for each in words.after)
    return asked and row["before_role"] != row["role"]


def _python(pattern: str) -> re.Pattern[str]:
    """As the rules search: a word boundary knows ASCII only."""
    return re.compile(pattern.replace(r"\b", r"(?a:\b)"))


def beside_re(count: int, rounds: int) -> dict[str, Any]:
    """The word rules over the same table of turns; `re` has its patterns compiled beforehand, and the hits must be equal."""
    every = [words for lang in LANGS for words in word_rules(lang)]
    rules = [(words, [*map(_python, words.hits)], _python(words.free) if words.free else None) for words in every]
    ratios, rates, hits = [], [], 0
    for seed in range(rounds):
        turns = turns_table([each.talk for each in planted(count, seed)])
        ours, found = timed(partial(word_hits, turns, _RULES), process_time)
        theirs, expected = timed(partial(by_python, turns, rules), process_time)
        if set(found.iter_rows()) != expected:
            raise SystemExit(f"the hits differ: {sorted(set(found.iter_rows()) ^ expected)[:5]}")
        ratios.append(theirs / ours)
        rates.append(count / ours)
        hits += found.height
    return {"times_re": _median(ratios), "equal_hits": hits, "dialogues_per_second": round(statistics.median(rates))}


# ── Data-Juicer ──


def _dialogues_only() -> Levels:
    off = Level(_LEVEL.threshold, _LEVEL.sizes, dict.fromkeys(LANGS, 0))
    return Levels(opening=off, turn=off)


def ours_like_data_juicer(talks: Sequence[Conversation]) -> dict[str, float]:
    """Seconds for each group of operators that both have."""
    return {
        "duplicates": timed(lambda: exhaust(dedup(talks, levels=_dialogues_only())))[0],
        "personal data": timed(lambda: exhaust(without_pii(talks, redacting=True)))[0],
        "length, repetition, odd characters": timed(lambda: exhaust(lint(talks, rules=_SHAPE_LIKE)))[0],
    }


def beside_data_juicer(count: int, rounds: int) -> dict[str, Any]:
    """The operators that both have, each side as its users run it: Data-Juicer by its command line with two processes."""
    programs = peers.environment("data-juicer", peers.DATA_JUICER)
    peers.data_juicer(programs, [each.talk for each in planted(200)])  # it installs more when an operator is first used
    whole = ("all of them", "all of them, with the start", "all of them, with the start, processor time")
    ratios: dict[str, list[float]] = {name: [] for name in [*peers.GROUPS, *whole]}
    for seed in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "talks.jsonl"
            write_conversations(path, (each.talk for each in planted(count, seed)))
            own = peers.spent([sys.executable, __file__, "--ours", str(path)])
            ours = json.loads(own.said)
            theirs, run = peers.data_juicer(programs, read_conversations(path))
        for name, operators in peers.GROUPS.items():
            ratios[name].append(sum(theirs[each] for each in operators) / ours[name])
        for name, ratio in zip(
            whole,
            (sum(theirs.values()) / sum(ours.values()), run.seconds / own.seconds, run.processor / own.processor),
            strict=True,
        ):
            ratios[name].append(ratio)
    return {"times_data_juicer": {name: _median(each) for name, each in ratios.items()}, "operators": peers.GROUPS}


# ── our own stages ──


def stages(count: int) -> dict[str, Any]:
    """Dialogues a second of every stage, and of the rules by kind; each for itself, after one round to warm up."""
    talks = [each.talk for each in planted(count)]
    turns = turns_table(talks)
    tests = [HeldOut("bench", [text for some in held_out().values() for text in some])]
    work: dict[str, Callable[[], Any]] = {
        "table of turns": partial(turns_table, talks),
        "rules: shape": lambda: shape_hits(turns, frozenset([*SHAPES, "alternation", "first_turn", "last_turn"])),
        "rules: words": partial(word_hits, turns, _RULES),
        "rules: echo": lambda: (repeats_itself(turns), parrots(turns)),
        "rules: talk": lambda: (talk_rows(turns, frozenset(["advice_before_acceptance"])), talk_hits(talks, turns, _RULES)),
        "rules: corpus": lambda: exhaust(lint(talks, rules=CORPUS_RULES)),
        "rules: all": lambda: exhaust(lint(talks)),
        "duplicates": lambda: exhaust(dedup(talks)),
        "held-out texts": lambda: exhaust(decontaminate(talks, against=tests)),
        "personal data": lambda: exhaust(without_pii(talks)),
    }
    rates = {}
    for name, each in work.items():
        each()
        rates[name] = round(count / timed(each)[0])
    return {"dialogues": count, "dialogues_per_second": rates}


# ── scale ──


def _drawn(count: int) -> Iterator[Conversation]:
    return (each.talk for each in planted(count))


def whole_run(count: int) -> dict[str, Any]:
    """`qiaoban curate` over so many dialogues in a process of its own: seconds by stage, and peak resident memory."""
    with tempfile.TemporaryDirectory(prefix="qiaoban-bench-") as name:
        folder = Path(name)
        write_conversations(folder / "talks.jsonl", _drawn(count))
        tests = (text for some in held_out().values() for text in some)
        told = (Conversation(id=f"h{n}", turns=(Turn(role="user", content=text),)) for n, text in enumerate(tests))
        write_conversations(folder / "tests.jsonl", told)
        command = [sys.executable, "-m", "qiaoban", "curate", str(folder / "talks.jsonl"), str(folder / "out"), "--json"]
        began = perf_counter()
        with (folder / "counts").open("w+") as counts:
            run = subprocess.Popen([*command, "--against", str(folder / "tests.jsonl")], stdout=counts)
            _, status, used = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
            whole = perf_counter() - began
            counts.seek(0)
            rows = [json.loads(line) for line in counts]
        if run.returncode:
            raise SystemExit(f"the run over {count} dialogues ended with {run.returncode}")
        by_stage = {row["stage"]: row["seconds"] for row in rows}
        return {
            "dialogues": count,
            "seconds": round(whole, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_mb": round(used.ru_maxrss / 1024),
            "by_stage": by_stage | {"start and report": round(whole - sum(by_stage.values()), 1)},
            "kept": rows[-1]["kept"],
        }


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1)


def _show(name: str, measure: Callable[[], dict[str, Any]]) -> None:
    try:
        print(json.dumps({"measured": name, **measure()}, ensure_ascii=False), flush=True)
    except peers.MissingError as error:
        print(json.dumps({"measured": name, "skipped": str(error)}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datasketch", action="store_true", help="install and measure datasketch")
    parser.add_argument("--data-juicer", action="store_true", help="install (some 7 GB) and measure Data-Juicer")
    parser.add_argument("--scale", type=int, nargs="+", metavar="TALKS")
    parser.add_argument("--plot", type=Path, help="where --scale draws its picture")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ours:
        print(json.dumps(ours_like_data_juicer(list(read_conversations(options.ours)))))
        return
    print(json.dumps({"note": _NOTE, "cores": os.cpu_count()}), flush=True)
    if options.scale:
        runs = []
        for count in options.scale:
            runs.append(whole_run(count))
            print(json.dumps({"measured": "whole runs", **runs[-1]}), flush=True)
        if options.plot:
            plot(options.plot, runs)
        return
    count, rounds = options.talks, options.rounds
    _show("stages", partial(stages, count))
    _show("word rules", partial(beside_re, count, rounds))
    _show(
        "near-duplicates",
        partial(beside_datasketch, count, rounds) if options.datasketch else partial(_skipped, "--datasketch"),
    )
    _show(
        "operators", partial(beside_data_juicer, count, rounds) if options.data_juicer else partial(_skipped, "--data-juicer")
    )


def _skipped(option: str) -> dict[str, Any]:
    raise peers.MissingError(f"not asked for: {option}")


if __name__ == "__main__":
    main()
