"""How fast collection is, side by side in one run: against a bare asyncio gather over the same SDK, and against the 2023 loop.

    python benchmarks/collect.py [--latency 0.5] [--rounds 3]
    python benchmarks/collect.py --memory 1000 20000      (peak resident memory of whole runs, instead)

The teacher is the fake one, in a process of its own, with a fixed latency. All three ask the same questions. The 2023 loop is
reproduced as behaviour (one call after another and a second of sleep after each) over a few calls and scaled up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.collect.card import Card, write_plan
from qiaoban.collect.plan import PlanOptions, plan
from qiaoban.collect.prompts import load_prompts
from qiaoban.collect.rollouts.studio import open_studio
from qiaoban.collect.run import RunFolder, count_cards, open_cards, settle
from qiaoban.teacher.client import Endpoint
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Ledger
from qiaoban.teacher.throttle import Limits
from qiaoban.teacher.work import Work

_MODEL = "fake-teacher"
_TOKENS, _TEMPERATURE = 3000, 0.9


def cards(count: int, seed: int = 0) -> list[Card]:
    """Script cards, one call each; another seed asks other questions, which the teacher has not answered before."""
    options = PlanOptions(count=count, seed=seed, modes={"script": 1.0}, lengths={"zh": (50, 60), "en": (50, 60)})
    return plan(load_catalogue(), options)


def messages(card: Card) -> list[dict[str, str]]:
    """The question that a script card asks."""
    prompts = load_prompts(card.lang)
    facts = prompts.facts(card)
    return [
        {"role": "system", "content": prompts.text("script.system", facts)},
        {"role": "user", "content": prompts.text("script.user", facts)},
    ]


async def bare(url: str, asked: list[Card], at_once: int) -> float:
    """The gather that a good engineer writes in ten lines: no ledger, no limits, no reading."""
    limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    http = openai.DefaultAsyncHttpxClient(limits=limits)
    gate = asyncio.Semaphore(at_once)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http, timeout=60) as client:

        async def one(card: Card) -> str | None:
            question: Any = messages(card)
            async with gate:
                reply = await client.chat.completions.create(
                    model=_MODEL, messages=question, max_tokens=_TOKENS, temperature=_TEMPERATURE
                )
            return reply.choices[0].message.content

        began = time.perf_counter()
        await asyncio.gather(*map(one, asked))
        return time.perf_counter() - began


async def ours(url: str, asked: list[Card], at_once: int) -> float:
    """A whole run: plan read, ledger written, answers parsed, dialogues stored."""
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path))
        write_plan(folder.plan, asked)
        job = Job(endpoint=Endpoint(base_url=url, model=_MODEL), limits=Limits(concurrency=at_once))
        with Ledger(folder.ledger) as ledger:
            client = job.client()
            source = job.live(ledger, client)
            studio = open_studio(job, ledger, source, folder.topics)
            run = Work(ledger=ledger, source=source, settle=partial(settle, studio=studio), total=count_cards(folder.plan))
            began = time.perf_counter()
            await run.run(open_cards(folder.plan, ledger), workers=at_once * 5 // 4 + 1, watch=lambda _: None)
            took = time.perf_counter() - began
            await client.close()
            if run.done != len(asked):
                raise SystemExit(f"{run.done} of {len(asked)} dialogues: {source.stopped or dict(ledger.totals().faults)}")
        return took


def seed_loop(url: str, asked: list[Card]) -> float:
    """The 2023 loop as it behaves: serial, a second of sleep after each call. Seconds for one dialogue."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    began = time.perf_counter()
    for card in asked:
        question: Any = messages(card)
        client.chat.completions.create(model=_MODEL, messages=question, max_tokens=_TOKENS)
        time.sleep(1)
    client.close()
    return (time.perf_counter() - began) / len(asked)


def measure(url: str, at_once: int, rounds: int, count: int) -> dict[str, Any]:
    """Both ways in turn, `rounds` times; throughput ratios, ours over bare."""
    ratios, rates = [], []
    for seed in range(rounds):
        asked = cards(count, seed)
        one = asyncio.run(bare(url, asked, at_once))
        two = asyncio.run(ours(url, asked, at_once))
        ratios.append(one / two)
        rates.append(count / two)
    return {
        "at_once": at_once,
        "dialogues": count,
        "ratio_to_bare": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "dialogues_per_second": round(statistics.median(rates), 1),
    }


def peak_memory(url: str, count: int) -> dict[str, Any]:
    """Peak resident memory, in MB, of `qiaoban collect run` over so many cards, in a process of its own."""
    with tempfile.TemporaryDirectory() as path:
        write_plan(RunFolder(Path(path)).plan, cards(count))
        command = [sys.executable, "-m", "qiaoban", "collect", "run", path, "--model", _MODEL, "--base-url", url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            _, status, used = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode:
            raise SystemExit(f"the run over {count} cards ended with {run.returncode}")
        return {"cards": count, "peak_mb": round(used.ru_maxrss / 1024, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--batches", type=int, default=8, help="how many times --at-once dialogues a round has")
    parser.add_argument("--memory", type=int, nargs="+", metavar="CARDS")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "qiaoban", "collect", "serve-fake", "--port", "0", "--latency", str(options.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            for count in options.memory or ():
                print(json.dumps(peak_memory(url, count)), flush=True)
            if options.memory:
                return
            serial = seed_loop(url, cards(5))
            for at_once in options.at_once:
                found = measure(url, at_once, options.rounds, at_once * options.batches)
                found["times_the_2023_loop"] = round(found["dialogues_per_second"] * serial, 1)
                print(json.dumps(found), flush=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
