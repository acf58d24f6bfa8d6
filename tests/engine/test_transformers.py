"""The transformers engine on a random two-layer model that is made on the spot: the text is the model's, and it can be left."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qiaoban.conversation import Turn
from qiaoban.engine.protocol import Delta, Options
from qiaoban.engine.transformers import TransformersConfig, TransformersEngine
from qiaoban.errors import EngineError, UsageError
from qiaoban.models.registry import Sampling
from qiaoban.render import CHATML

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `train`)")

GREEDY = Sampling(temperature=0.0, repeat_penalty=1.0)
HOT = Sampling(temperature=1.5, top_p=1.0, top_k=0, min_p=0.0, repeat_penalty=1.0)
TALK = [Turn(role="system", content="你是小乔。"), Turn(role="user", content="我好难过 😀")]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = [
    "你好，我今天很难过。没人跟我玩。",
    "I went to the park and saw a dog. It was a good day.",
    "好的，我们一起想一想。\n",
] * 20


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and tokenizer of a model that talks nonsense."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    )
    size = tokenizer.get_vocab_size()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = CHATML
    fast.save_pretrained(path)
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,  # wide, or every token would be followed by the same one
        max_position_embeddings=4096,
        eos_token_id=fast.eos_token_id,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    return path


async def opened(path: Path, **changes: Any) -> TransformersEngine:
    return await TransformersEngine.load(TransformersConfig(path=path, device="cpu", dtype="float32", **changes))


async def reply(engine: TransformersEngine, turns: list[Turn] = TALK, **options: Any) -> list[Delta]:
    given: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 24, **options}
    async with aclosing(engine.stream(turns, Options(**given))) as stream:
        return [delta async for delta in stream]


def joined(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def greedy_ids(path: Path, count: int) -> tuple[list[int], list[int], Any]:
    """What the model itself makes of the talk, without our engine: prompt, new ids, tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    out = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            out.append(int(model(torch.tensor([out])).logits[0, -1].argmax()))
    return prompt, out[len(prompt) :], tokenizer


@pytest.mark.parametrize("limit", [1, 2, 7, 24])
async def test_the_stream_is_what_the_model_says(folder: Path, limit: int) -> None:
    prompt, new, tokenizer = greedy_ids(folder, limit)
    assert tokenizer.eos_token_id not in new  # else this seed would be of no use here
    engine = await opened(folder)
    deltas = await reply(engine, max_tokens=limit)
    assert joined(deltas) == tokenizer.decode(new, skip_special_tokens=True)
    assert deltas[-1].finish == "length"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.prompt_tokens == len(prompt) == engine.count(TALK)
    assert deltas[-1].usage.completion_tokens == limit
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


async def test_the_end_token_ends_it(folder: Path, tmp_path: Path) -> None:
    _, new, _tokenizer = greedy_ids(folder, 12)
    ends = shutil.copytree(folder, tmp_path / "ends")
    where = ends / "generation_config.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"eos_token_id": new[5]}))
    deltas = await reply(await opened(ends), max_tokens=12)
    assert deltas[-1].finish == "stop"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == new.index(new[5]) + 1


async def test_a_seed_repeats_a_reply(folder: Path) -> None:
    engine = await opened(folder)
    texts = [joined(await reply(engine, sampling=HOT, seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


async def test_no_tokens_no_text(folder: Path) -> None:
    assert await reply(await opened(folder), max_tokens=0) == [Delta("", "length")]


async def test_too_long_a_talk_is_an_engine_error(folder: Path) -> None:
    engine = await opened(folder, context_tokens=64)
    room = 64 - engine.count(TALK)
    assert joined(await reply(engine, max_tokens=room))
    with pytest.raises(EngineError, match="does not fit 64 tokens") as caught:
        await reply(engine, max_tokens=room + 1)
    assert not caught.value.retryable


@pytest.fixture(scope="session")
def endless(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without an end token: only its limit, or whoever listens, ends a reply."""
    path = shutil.copytree(folder, tmp_path_factory.mktemp("endless") / "tiny")
    for name in ("generation_config.json", "config.json"):
        where = path / name
        where.write_text(json.dumps(json.loads(where.read_text()) | {"eos_token_id": None}))
    return path


async def some_time(engine: TransformersEngine) -> float:
    """Seconds that 300 tokens take here and now, a twelfth of what is cut short below."""
    begun = time.monotonic()
    assert (await reply(engine, max_tokens=300))[-1].finish == "length"
    return time.monotonic() - begun


async def test_leaving_stops_the_work(endless: Path) -> None:
    engine = await opened(endless)
    bound = await some_time(engine)
    stream = engine.stream(TALK, Options(max_tokens=3_600, sampling=GREEDY))
    await anext(stream)
    left = time.monotonic()
    await stream.aclose()  # returns when the thread has ended
    assert time.monotonic() - left < bound
    assert joined(await reply(engine, max_tokens=4))  # and the next one has its turn


async def test_cancelling_the_task_stops_the_work(endless: Path) -> None:
    engine = await opened(endless)
    bound = await some_time(engine)
    task = asyncio.create_task(reply(engine, max_tokens=3_600))
    await asyncio.sleep(bound / 3)
    assert not task.done()
    left = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - left < bound


async def test_two_replies_at_once_do_not_mix(folder: Path) -> None:
    engine = await opened(folder)
    alone = joined(await reply(engine))
    together = await asyncio.gather(reply(engine), reply(engine, [Turn(role="user", content="hi")]), reply(engine))
    assert joined(together[0]) == joined(together[2]) == alone


async def test_control_strings_of_a_child_are_text(folder: Path) -> None:
    engine = await opened(folder)
    plain = engine.count([Turn(role="user", content="x")])
    assert engine.count([Turn(role="user", content="<|im_end|>")]) > plain + 3  # letters, not one control token


async def test_what_cannot_be_opened(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model at"):
        await opened(tmp_path / "none")
    with pytest.raises(EngineError, match="transformers cannot open"):
        await opened(tmp_path)  # an empty folder
    engine = await opened(folder)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await reply(engine)
