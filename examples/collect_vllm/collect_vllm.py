"""A recipe: collect with an offline vLLM teacher on a cluster, through Ray Data, one round for each turn.

    qiaoban collect plan runs/big --count 100000
    python examples/collect_vllm/collect_vllm.py runs/big --model Qwen/Qwen3-32B --replicas 8

Every open card goes as far as its stored answers lead; all that is missing is answered together by vLLM, which is how it is
fastest; the answers are stored, and the next round begins. Stopped at any time it goes on with the round it was in. Needs GPUs
and `pip install 'ray[data,llm]'`. Ray's `ray.data.llm` is in beta: this was written for Ray 2.60.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from qiaoban.collect.rollouts.studio import open_studio
from qiaoban.collect.rounds import RoundSource, collect_in_rounds
from qiaoban.collect.run import RunFolder, open_cards, write_results
from qiaoban.teacher.client import Endpoint
from qiaoban.teacher.job import Job
from qiaoban.teacher.ledger import Call, Ledger, Usage

Rows = Iterable[Mapping[str, Any]]
AnswerAll = Callable[[list[dict[str, Any]]], Rows]


def vllm_on_ray(model: str, replicas: int, context: int) -> AnswerAll:
    """An engine on each of `replicas` GPUs; rows with key, messages and sampling in, rows with key and text out."""
    import ray  # noqa: PLC0415 - only here are a cluster and GPUs needed
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # noqa: PLC0415

    config = vLLMEngineProcessorConfig(
        model_source=model,
        concurrency=replicas,
        batch_size=256,
        should_continue_on_error=True,  # a row that fails is asked again in the next round
        engine_kwargs={"max_model_len": context, "enable_prefix_caching": True},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {"messages": row["messages"], "sampling_params": row["sampling_params"]},
        postprocess=lambda row: {
            "key": row["key"],
            "text": row.get("generated_text") or "",
            "prompt_tokens": row.get("num_input_tokens") or 0,
            "completion_tokens": row.get("num_generated_tokens") or 0,
        },
    )
    return lambda rows: processor(ray.data.from_items(rows)).iter_rows()


async def collect(folder: RunFolder, model: str, answer_all: AnswerAll) -> dict[str, int]:
    """Settle every open card of a plan in rounds; returns how many dialogues there are."""
    job = Job(endpoint=Endpoint(base_url="http://offline", model=model), json_mode="none")
    with Ledger(folder.ledger) as ledger:
        ledger.recover()
        source = RoundSource(ledger=ledger)

        async def post(calls: Mapping[str, Call]) -> None:
            for row in answer_all([request(key, call) for key, call in calls.items()]):
                store(ledger, calls[str(row["key"])], row)

        await collect_in_rounds(
            lambda: open_cards(folder.plan, ledger),
            open_studio(job, ledger, source, folder.topics),
            source,
            post,
            on_round=lambda missing: click.echo(f"{missing} answers are missing", err=True),
        )
        return write_results(folder, ledger)


def request(key: str, call: Call) -> dict[str, Any]:
    """A row for the engine."""
    sampling = {"temperature": call.body["temperature"], "top_p": 0.95, "max_tokens": call.body["max_tokens"]}
    return {"key": key, "messages": call.body["messages"], "sampling_params": sampling}


def store(ledger: Ledger, call: Call, row: Mapping[str, Any]) -> None:
    """Keep an answer in the form of a chat completion. One that fills its limit was cut off; an empty one is asked again."""
    key, finish = call.key, "length" if row["completion_tokens"] >= call.body["max_tokens"] else "stop"
    ledger.sent(call, key)
    if not row["text"]:
        ledger.unanswered(key, "no answer", doubtful=False)
        return
    message = {"role": "assistant", "content": row["text"]}
    usage = Usage(int(row["prompt_tokens"]), int(row["completion_tokens"]))
    counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
    raw = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": counts}
    ledger.answered(key, json.dumps(raw, ensure_ascii=False), usage)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--context", type=int, default=8192)
    options = parser.parse_args(arguments)
    answer_all = vllm_on_ray(options.model, options.replicas, options.context)
    click.echo(json.dumps(asyncio.run(collect(RunFolder(options.folder), options.model, answer_all))))


if __name__ == "__main__":
    main()
