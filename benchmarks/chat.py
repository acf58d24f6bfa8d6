"""Our whole talking path against bare xllamacpp: same GGUF, same messages, same greedy decoding, in turns, in one run.

    python benchmarks/chat.py                  all parts, about ten minutes on two cores
    python benchmarks/chat.py --pairs 2 --talks 4   the short form that the tests run

Each side lives in a process of its own, so that memory is its own; requests alternate, so that a noisy minute hits both.
Bare means `xllamacpp.Server` with its defaults, but for the context, slots and threads that ours uses too.
Results: a table on standard output, and `--out FILE` as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qiaoban.companion.events import EndEvent, TextEvent
from qiaoban.companion.prompt import load_prompt_book
from qiaoban.companion.session import REPLY_TOKENS, Companion, Session
from qiaoban.conversation import AgeBand, Turn
from qiaoban.engine.llamacpp import LlamaCppConfig, LlamaCppEngine, available_cores
from qiaoban.engine.protocol import Options
from qiaoban.models.registry import DEFAULT_MODEL, Sampling
from qiaoban.models.store import ModelStore
from qiaoban.safety.sentences import SentenceSplitter
from qiaoban.settings import load

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=1, min_p=0.0, repeat_penalty=1.0)
FIRST = ["我今天画了一只恐龙", "数学课好难啊", "我家的猫生了四只小猫", "我在练习跳绳", "今天春游去了动物园", "我想学骑自行车"]
SECOND = ["嗯，画了好久", "我还是不太会", "它们好小好小", "现在能跳五十个了", "我最喜欢长颈鹿", "可是我怕摔跤"]
DECODED = 96  # tokens


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One measured request. Times in ms; `fresh` are prompt tokens that were not in the cache."""

    first_token: float
    first_sentence: float
    fresh: int
    tokens_per_second: float
    rss_mb: float


# ---- the two sides, each in a process of its own ------------------------------------------------------------------------


def bare(path: str) -> Callable[[dict[str, Any]], Shot]:
    """xllamacpp as its README shows it: chat completions, streaming."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = LlamaCppConfig.slots
    params.n_ctx = LlamaCppConfig.context_tokens * LlamaCppConfig.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = available_cores()
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def answer(request: dict[str, Any]) -> Shot:
        watch = _Watch()
        body = {"messages": request["messages"], "stream": True, "max_tokens": request["max_tokens"], "temperature": 0.0}
        body |= {"top_k": 1, "repeat_penalty": 1.0}

        def receive(chunks: Any) -> bool:
            for chunk in chunks if isinstance(chunks, list) else [chunks]:
                choice = (chunk.get("choices") or [{}])[0]
                watch.saw(choice.get("delta", {}).get("content") or "")
                watch.timings = chunk.get("timings") or watch.timings
            return False

        server.handle_chat_completions(body, receive)
        return watch.shot()

    return answer


def ours(path: str) -> Callable[[dict[str, Any]], Shot]:
    """The companion: guard, prompt, engine, guard. For decoding speed the engine alone, which the guard does not shorten."""
    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(LlamaCppEngine.load(LlamaCppConfig(path=Path(path), sampling=GREEDY)))
    companion = Companion(engine)
    sessions: dict[str, Session] = {}

    loop.run_until_complete(companion.warm(Session(lang="zh")))

    async def decode(request: dict[str, Any]) -> Shot:
        watch = _Watch()
        messages = [Turn(**m) for m in request["messages"]]
        options = Options(talk="decode", max_tokens=request["max_tokens"], sampling=GREEDY)
        async with aclosing(engine.stream(messages, options)) as deltas:
            async for delta in deltas:
                watch.saw(delta.text)
        return watch.shot()

    async def talk(request: dict[str, Any]) -> Shot:
        session = sessions.setdefault(request["talk"], Session(id=request["talk"], lang="zh", introduced=True))
        end, start, released = EndEvent(), time.perf_counter(), 0.0
        async with aclosing(companion.reply(session, request["child"])) as events:
            async for event in events:
                if isinstance(event, TextEvent) and not released:
                    released = (time.perf_counter() - start) * 1000
                if isinstance(event, EndEvent):
                    end = event
        usage = end.usage
        fresh = usage.prompt_tokens - usage.cached_tokens if usage else -1
        return Shot(
            first_token=end.first_token_ms or -1, first_sentence=released, fresh=fresh, tokens_per_second=0, rss_mb=_rss()
        )

    return lambda request: loop.run_until_complete(decode(request) if "messages" in request else talk(request))


class _Watch:
    """Times of one request, from its start."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        self._start = time.perf_counter()
        self._splitter = SentenceSplitter()
        self._first = self._sentence = self._last = 0.0
        self._pieces = 0

    def saw(self, text: str) -> None:
        """A piece of the reply is here."""
        if not text:
            return
        now = (time.perf_counter() - self._start) * 1000
        self._first = self._first or now
        self._last = now
        self._pieces += 1
        if self._splitter.feed(text) and not self._sentence:
            self._sentence = now

    def shot(self) -> Shot:
        """The measurements. Decoding speed is pieces after the first over their time: what a listener sees."""
        spent = (self._last - self._first) / 1000
        return Shot(
            first_token=self._first,
            first_sentence=self._sentence or self._last,
            fresh=int(self.timings.get("prompt_n", -1)),
            tokens_per_second=(self._pieces - 1) / spent if spent else 0.0,
            rss_mb=_rss(),
        )


def _rss() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def serve(side: str, path: str) -> None:
    """Answer requests, one JSON object a line, until input ends."""
    answer = {"bare": bare, "ours": ours}[side](path)
    print(json.dumps({"ready": _rss()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(answer(json.loads(line)))), flush=True)


class Side:
    """The other process."""

    def __init__(self, name: str, path: Path) -> None:
        command = [sys.executable, __file__, "--serve", name, "--model", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def ask(self, request: dict[str, Any]) -> Shot:
        """Measure one request there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Shot(**self._read())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a benchmark process ended with code {self._process.wait()}")
        row: dict[str, Any] = json.loads(line)
        return row


# ---- the parts ------------------------------------------------------------------------------------------------------------


def messages_for(history: Sequence[str]) -> list[dict[str, str]]:
    """The prompt that our companion sends for a first message."""
    opening = [{"role": t.role, "content": t.content} for t in load_prompt_book("zh").opening(AgeBand.B9_11)]
    return [*opening, *({"role": "user", "content": text} for text in history)]


def latency(ours: Side, bare: Side, pairs: int) -> dict[str, Any]:
    """First token and first sentence of first turns, warm prefix, in pairs."""
    rows: list[tuple[Shot, Shot]] = []
    for i in range(pairs + 1):
        child = FIRST[i % len(FIRST)] + "！" * (i // len(FIRST))
        asks = (
            (ours, {"talk": f"latency-{i}", "child": child}),
            (bare, {"messages": messages_for([child]), "max_tokens": REPLY_TOKENS}),
        )
        shots = {which: asks[which][0].ask(asks[which][1]) for which in ((0, 1) if i % 2 else (1, 0))}
        if i:  # the first pair fills the caches
            rows.append((shots[0], shots[1]))
    return {
        "first_token_ratio": interval([a.first_token / b.first_token for a, b in rows]),
        "first_sentence_extra_ms": interval([a.first_sentence - b.first_sentence for a, b in rows]),
        "ours_first_token_ms": statistics.median(a.first_token for a, _ in rows),
        "bare_first_token_ms": statistics.median(b.first_token for _, b in rows),
    }


def decoding(ours: Side, bare: Side, pairs: int) -> dict[str, Any]:
    """Tokens a second over a long answer, in pairs."""
    ratios, speeds = [], []
    for i in range(pairs):
        request = {"messages": messages_for([f"讲一个关于小狐狸和月亮的长故事，第{i}次"]), "max_tokens": DECODED}
        first, second = (ours, bare) if i % 2 else (bare, ours)
        shots = {id(side): side.ask(request) for side in (first, second)}
        speeds.append(shots[id(ours)].tokens_per_second)
        ratios.append(shots[id(ours)].tokens_per_second / shots[id(bare)].tokens_per_second)
    return {"decode_ratio": interval(ratios), "ours_tokens_per_second": statistics.median(speeds)}


def prefix(ours: Side) -> dict[str, Any]:
    """Prompt tokens that a second turn reads anew, with one talk and with two interleaved."""
    ours.ask({"talk": "one", "child": FIRST[0]})
    alone = ours.ask({"talk": "one", "child": SECOND[0]}).fresh
    for talk, child in (("a", FIRST[1]), ("b", FIRST[2])):
        ours.ask({"talk": talk, "child": child})
    mixed = [ours.ask({"talk": talk, "child": child}).fresh for talk, child in (("a", SECOND[1]), ("b", SECOND[2]))]
    return {"second_turn_fresh_tokens": alone, "interleaved_fresh_tokens": mixed}


def memory(ours: Side, bare: Side | None, talks: int) -> dict[str, Any]:
    """Resident memory of both after the same talks, and how ours grows over many."""
    sizes = []
    for i in range(talks):
        for part in (FIRST, SECOND):
            shot = ours.ask({"talk": f"memory-{i}", "child": part[i % len(part)]})
            if bare is not None and i < talks // 4:
                bare.ask({"messages": messages_for([part[i % len(part)] + str(i)]), "max_tokens": 24})
        sizes.append(shot.rss_mb)
    result: dict[str, Any] = {
        "ours_rss_mb": sizes[-1],
        "growth_over_talks": sizes[-1] / sizes[len(sizes) // 10],
        "talks": talks,
    }
    if bare is not None:
        other = bare.ask({"messages": messages_for(["你好"]), "max_tokens": 8}).rss_mb
        result |= {"bare_rss_mb": other, "rss_ratio": sizes[-1] / other}
    return result


def cancel(path: Path) -> dict[str, float]:
    """Worst time from leaving a reply to the engine being free, in ms: while decoding, and while a long prompt is read."""

    async def measure() -> dict[str, float]:
        engine = await LlamaCppEngine.load(LlamaCppConfig(path=path, sampling=GREEDY))
        worst = {"decode": 0.0, "prefill": 0.0}
        for i in range(5):
            long = [Turn(role="user", content=f"第{i}遍：" + "小兔子去森林里采蘑菇，遇到一只迷路的小鹿。" * 60)]
            for phase, messages in (("decode", [Turn(role="user", content="讲一个长故事")]), ("prefill", long)):
                reply = engine.stream(messages, Options(talk=phase, max_tokens=200, sampling=GREEDY))
                waiting = asyncio.ensure_future(anext(reply))
                if phase == "decode":
                    await waiting
                else:
                    await asyncio.sleep(0.7)
                start = time.perf_counter()
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                await reply.aclose()
                worst[phase] = max(worst[phase], (time.perf_counter() - start) * 1000)
        await engine.close()
        return {f"cancel_{phase}_ms": value for phase, value in worst.items()}

    return asyncio.run(measure())


def interval(values: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """Median with a 95 % bootstrap interval."""
    dice = random.Random(7)
    medians = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(draws))
    return {"median": statistics.median(values), "low": medians[int(draws * 0.025)], "high": medians[int(draws * 0.975)]}


def report(result: dict[str, Any]) -> None:
    """The table."""
    limits = {
        "first_token_ratio": "≤ 1.10",
        "first_sentence_extra_ms": "≤ 150",
        "decode_ratio": "≥ 0.95",
        "rss_ratio": "≤ 1.15",
        "growth_over_talks": "≤ 1.03",
    }
    for key, value in result.items():
        if isinstance(value, dict) and "median" in value:
            shown = f"{value['median']:.3g}  [{value['low']:.3g}, {value['high']:.3g}]"
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{key:28} {shown:32} {limits.get(key, '')}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="an id of the registry, or a GGUF file")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--talks", type=int, default=100)
    parser.add_argument("--only", choices=["memory"], help="one part alone")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--serve", choices=["ours", "bare"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.model)
        return
    settings = load()
    path = Path(given.model) if Path(given.model).is_file() else ModelStore(settings.home, settings=settings).path(given.model)
    result: dict[str, Any] = {"model": path.name, "machine": f"{platform.machine()}, {available_cores()} cores"}
    result["load_average"] = os.getloadavg()[0]
    mine = Side("ours", path)
    other = None if given.only else Side("bare", path)
    if other is not None:
        result |= latency(mine, other, given.pairs) | decoding(mine, other, given.pairs) | prefix(mine)
    result |= memory(mine, other, given.talks)
    for side in filter(None, (mine, other)):
        side.close()
    if not given.only:
        result |= cancel(path)
    report(result)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
