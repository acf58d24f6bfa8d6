"""The embedded engine on real weights: exact ids, whole characters, one slot a talk, quick to stop, closed to the network."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from qiaoban import settings
from qiaoban.conversation import Turn
from qiaoban.engine.llamacpp import LlamaCppConfig, LlamaCppEngine, _params, available_cores
from qiaoban.engine.protocol import Delta, Options, Usage
from qiaoban.errors import DataError, EngineError, QiaobanError, UsageError
from qiaoban.models.registry import DEFAULT_MODEL, Sampling
from qiaoban.models.store import ModelStore
from qiaoban.render import EstimatingTokenizer, Renderer, load_gguf_renderer
from tests.gguf_file import byte_level_pairs, write_gguf

GREEDY = Sampling(temperature=0.0, repeat_penalty=1.0)
CONTEXT = 2048
KEY = "known-in-this-test-only"


@pytest.fixture(scope="session")
def weights() -> Path:
    """The default model, if it has been pulled."""
    here = settings.load()
    try:
        return ModelStore(here.home, settings=here).path(DEFAULT_MODEL)
    except QiaobanError as error:
        pytest.skip(f"no real weights on this machine: {error.message}; {error.hint}")


@pytest.fixture(scope="session")
def renderer(weights: Path) -> Renderer:
    return load_gguf_renderer(weights)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(weights: Path) -> AsyncGenerator[LlamaCppEngine]:
    """One engine for all tests, since it takes seconds to load. Each test has talks of its own."""
    loaded = await LlamaCppEngine.load(LlamaCppConfig(path=weights, model=DEFAULT_MODEL, context_tokens=CONTEXT, slots=2))
    yield loaded
    await loaded.close()


def child(text: str) -> Turn:
    return Turn(role="user", content=text)


def says(text: str) -> Turn:
    return Turn(role="assistant", content=text)


def brief(text: str) -> Turn:
    return Turn(role="system", content=text)


async def reply(engine: LlamaCppEngine, turns: list[Turn], talk: str, **options: Any) -> tuple[list[Delta], Usage]:
    """All deltas of a reply, greedy unless said otherwise, and what it cost."""
    given: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 16, **options}
    async with aclosing(engine.stream(turns, Options(talk=talk, **given))) as stream:
        deltas = [delta async for delta in stream]
    usage = deltas[-1].usage
    assert usage is not None
    return deltas, usage


def joined(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


# -- ids ------------------------------------------------------------------------------------------------------------------

STRINGS = [
    "", " ", "  ", "\n", "\n\n\n", "a", "a ", " a", "a  b", "a\n b", "\t\tx\t", "\r\n", "a \n", "你好", "你好 ",
    "我今天很难过，因为没人跟我玩。", "“真的吗？”他说：『好！』……", "妈妈买了 3.5 斤苹果，花了 12,345.60 元",
    "1234567890", "２０２６年", "10:30", "Hello, world!", "I'm sad. You're HE'LL they'd", "don’t", "e.g. this",
    "https://example.org/a?b=c&d", "😀", "👩‍👩‍👧‍👦👍🏽🏴󠁧󠁢󠁥󠁮󠁧󠁿1️⃣❤️", "😀你a1\n", "e\u0301 é ﬁ Å", "こんにちは、世界",
    "안녕하세요", "Привет", "مرحبا", "नमस्ते", "𠮷野家", "\u200b\u3000\u00a0x", "\x00\x07\x1b[31m", "<|im_end|>",
    "<|im_start|>system\nbad", "<|endoftext|></s>[INST]", "<tool_call>{}</tool_call>", "<|fim_prefix|>x", "< |im_end|>",
    "def f(x):\n    return x  # ok\n", "a" * 300, "哈" * 120, "!!!???。。。", "_-*/=+#@$%^&~`|\\", "\ufeffbom", "ĠĊ",
]  # fmt: skip


@pytest.fixture
def tokenizing_server(weights: Path) -> Iterator[str]:
    """llama.cpp with a key that is known here, to ask for its own tokenisation. Gives its URL."""
    import xllamacpp

    params = _params(xllamacpp, LlamaCppConfig(path=weights, context_tokens=256, slots=1))
    params.api_keys = [KEY]
    server = xllamacpp.Server(params)
    yield str(server.listening_address)
    del server


def http(url: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body; POST where there is a body to send."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.slow
def test_our_ids_are_llama_cpps_own(renderer: Renderer, tokenizing_server: str) -> None:
    assert renderer.tokenizer.exact

    def theirs(text: str) -> list[int]:
        asked = {"content": text, "add_special": False, "parse_special": True}
        status, answer = http(f"{tokenizing_server}/tokenize", asked, Authorization=f"Bearer {KEY}")
        assert status == 200, answer
        return [int(i) for i in json.loads(answer)["tokens"]]

    for text in STRINGS:
        turns = [brief("你是小乔。"), child(text), says(text), child("嗯")]
        assert renderer.ids(turns) == theirs(renderer.text(turns)), repr(text)
        if "</s>" not in text:  # a plain token of this vocabulary, which llama.cpp takes for control
            assert renderer.tokenizer.encode(text) == theirs(text), repr(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["我今天很难过，因为没有人跟我玩。", "I went to the park and saw a dog.", "妈妈说 it is OK 哦！", "“真的吗？”"]
)
def test_the_estimate_is_high_for_ordinary_talk(renderer: Renderer, text: str) -> None:
    assert len(EstimatingTokenizer().encode(text)) >= len(renderer.tokenizer.encode(text))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["1234567890", "😀🎉🦄🐼🌈", "👩‍👩‍👧‍👦👩‍👩‍👧‍👦", "안녕하세요 오늘 뭐 했어?", "haha lol u r gr8 omg", "𠮷𠮷𠮷"]
)
def test_the_estimate_is_high_for_what_a_child_types(renderer: Renderer, text: str) -> None:
    assert len(EstimatingTokenizer().encode(text)) >= len(renderer.tokenizer.encode(text))


# -- text -----------------------------------------------------------------------------------------------------------------

ECHO = [brief("You repeat what you are told."), child("Repeat exactly: 👩‍👩‍👧‍👦😀🎉🦄🐼🌈👍🏽")]


@pytest.mark.slow
async def test_emoji_come_whole(engine: LlamaCppEngine) -> None:
    deltas, usage = await reply(engine, ECHO, "emoji", max_tokens=24)
    text = joined(deltas)
    assert sum(emoji in text for emoji in "👩👧👦😀🎉🦄🐼🌈") >= 3, text
    assert usage.completion_tokens > len(text)  # some characters took more than one token, so this has tried it
    assert "\ufffd" not in text
    for delta in deltas:
        delta.text.encode()  # no half of a surrogate pair
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


@pytest.mark.slow
async def test_a_limit_in_mid_character_leaves_no_half_of_it(engine: LlamaCppEngine) -> None:
    texts = []
    for limit in range(1, 6):
        deltas, usage = await reply(engine, ECHO, "emoji", max_tokens=limit)
        assert deltas[-1].finish == "length"
        assert usage.completion_tokens == limit
        texts.append(joined(deltas))
    assert "\ufffd" not in "".join(texts)
    assert any(one == two for one, two in pairwise(texts)), texts  # a token that was no character by itself


@pytest.mark.slow
async def test_a_reply_ends_by_itself(engine: LlamaCppEngine) -> None:
    asked = [child("Say only the word: hello")]
    deltas, usage = await reply(engine, asked, "ends", max_tokens=64)
    assert deltas[-1].finish == "stop"
    assert "<|im_end|>" not in joined(deltas)
    assert 0 < usage.completion_tokens < 64


@pytest.mark.slow
async def test_a_seed_repeats_a_reply(engine: LlamaCppEngine) -> None:
    hot, asked = Sampling(temperature=1.2), [child("Name a random animal and a random colour.")]
    await reply(engine, asked, "seed", max_tokens=0)
    texts = [joined((await reply(engine, asked, "seed", sampling=hot, seed=seed, max_tokens=6))[0]) for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.slow
async def test_two_replies_at_once(engine: LlamaCppEngine) -> None:
    one, two = await asyncio.gather(
        reply(engine, [child("Count: 1 2 3")], "one", max_tokens=8), reply(engine, [child("数数：一二三")], "two", max_tokens=8)
    )
    assert joined(one[0])
    assert joined(two[0])


# -- the cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_second_turn_reads_only_what_is_new(engine: LlamaCppEngine) -> None:
    """Two talks interleaved, three turns each."""
    talks = {
        "left": [brief("你是小乔，孩子的好朋友。说话短一点。"), child("我今天考试没考好。")],
        "right": [brief("You are a kind friend of a child. Be brief."), child("My cat ran away today.")],
    }
    known = dict.fromkeys(talks, 0)
    for turn in range(3):
        for name, turns in talks.items():
            needed = engine.count(turns)
            deltas, usage = await reply(engine, turns, name)
            assert usage.prompt_tokens == needed
            read = usage.prompt_tokens - usage.cached_tokens
            if turn > 0:
                assert abs(read - (needed - known[name])) <= 2, (name, turn, usage)
                assert read < 30
            known[name] = usage.prompt_tokens + usage.completion_tokens
            turns += [says(joined(deltas)), child("嗯，然后呢？")]


@pytest.mark.slow
async def test_no_tokens_warms_the_cache(engine: LlamaCppEngine) -> None:
    turns = [brief("You like numbers: " + " ".join(str(n) for n in range(40))), child("Hi")]
    _, usage = await reply(engine, turns, "warm", max_tokens=0)
    assert usage.cached_tokens < 10
    _, usage = await reply(engine, turns, "warm", max_tokens=2)
    assert usage.prompt_tokens - usage.cached_tokens <= 2


@pytest.mark.slow
async def test_no_tokens_say_nothing(engine: LlamaCppEngine) -> None:
    deltas, usage = await reply(engine, [child("Say only the word: hello")], "warm", max_tokens=0)
    assert joined(deltas) == ""
    assert usage.completion_tokens == 0


@pytest.mark.slow
async def test_a_third_talk_takes_the_slot_that_was_silent_longest(engine: LlamaCppEngine) -> None:
    prompts = {name: [brief(f"{name} " * 20), child("Hi")] for name in ("alpha", "beta", "gamma")}
    for name in ("alpha", "beta", "alpha", "gamma"):
        await reply(engine, prompts[name], name, max_tokens=0)
    _, kept = await reply(engine, prompts["alpha"], "alpha", max_tokens=0)
    _, lost = await reply(engine, prompts["beta"], "beta", max_tokens=0)
    assert kept.prompt_tokens - kept.cached_tokens <= 2
    assert lost.cached_tokens < 10


# -- leaving --------------------------------------------------------------------------------------------------------------

COUNTING = [child("Count from 1 to 500, one number on each line.")]


@pytest.mark.slow
async def test_closing_the_stream_stops_decoding(engine: LlamaCppEngine) -> None:
    stream = engine.stream(COUNTING, Options(talk="leave", max_tokens=400, sampling=GREEDY))
    await anext(stream)
    begun = time.monotonic()
    for _ in range(3):
        assert (await anext(stream)).finish is None
    left = time.monotonic()
    await stream.aclose()  # returns when llama.cpp has let go
    assert time.monotonic() - left < max(1.0, left - begun)  # three tokens' time, should the machine be very busy


@pytest.mark.slow
async def test_cancelling_the_task_stops_decoding(engine: LlamaCppEngine) -> None:
    heard: asyncio.Queue[float] = asyncio.Queue()

    async def listen() -> None:
        async with aclosing(engine.stream(COUNTING, Options(talk="leave", max_tokens=400, sampling=GREEDY))) as stream:
            async for _ in stream:
                heard.put_nowait(time.monotonic())

    task = asyncio.create_task(listen())
    times = [await asyncio.wait_for(heard.get(), 60) for _ in range(4)]
    left = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - left < max(1.0, times[-1] - times[0])


@pytest.mark.slow
async def test_leaving_while_the_prompt_is_read_stops_within_a_batch(engine: LlamaCppEngine) -> None:
    batch = LlamaCppConfig.prefill_batch
    begun = time.monotonic()
    _, usage = await reply(engine, [child("一二三四五六七八九十" * 6)], "pace", max_tokens=0)
    pace = (time.monotonic() - begun) * batch / (usage.prompt_tokens - usage.cached_tokens)

    turns = [child("今天在学校发生了很多事情。I went to the park and saw a dog. " * 90)]
    assert engine.count(turns) > 1_500  # 24 batches
    task = asyncio.create_task(reply(engine, turns, "long", max_tokens=1))
    await asyncio.sleep(pace * 1.5)
    left = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    took = time.monotonic() - left
    assert took < max(3.0, 3 * pace)
    # What had been read is still in the slot. Half of the same prompt shows how much of it that was.
    half = [child(turns[0].content[: len(turns[0].content) // 2])]
    _, usage = await reply(engine, half, "long", max_tokens=0)
    assert 0 < usage.cached_tokens <= 6 * batch


# -- the door -------------------------------------------------------------------------------------------------------------

ROUTES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 1}),
    ("/completions", {"prompt": "hi", "n_predict": 1}),
    ("/completion", {"prompt": "hi", "n_predict": 1}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ("/v1/embeddings", {"input": "hi"}),
    ("/tokenize", {"content": "hi"}),
    ("/detokenize", {"tokens": [1]}),
    ("/apply-template", {"messages": []}),
    ("/lora-adapters", []),
    ("/props", {}),
    ("/slots/0?action=save", {"filename": "x"}),
    ("/props", None),
    ("/slots", None),
    ("/metrics", None),
    ("/v1/models", None),
    ("/models", None),
    ("/lora-adapters", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin", [None, "null", "http://localhost", "http://127.0.0.1:8080", "https://evil.example", "file://"]
)
def test_the_engines_own_port_answers_nobody(engine: LlamaCppEngine, origin: str | None) -> None:
    headers = {"Origin": origin} if origin else {}
    for route, body in ROUTES:
        status, answer = http(engine.listening_address + route, body, **headers)  # type: ignore[arg-type]
        assert status == 401, (route, status, answer)
        assert b"authentication_error" in answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["", "Bearer", "Bearer ", "Bearer none", "Bearer sk-no-key-required", f"Bearer {KEY}", "Basic Og=="]
)
def test_a_guessed_key_does_not_open_it(engine: LlamaCppEngine, key: str) -> None:
    for more in ({"Authorization": key}, {"X-Api-Key": key.removeprefix("Bearer ")}):
        assert http(f"{engine.listening_address}/completion", {"prompt": "hi", "n_predict": 1}, **more)[0] == 401


@pytest.mark.slow
def test_the_port_is_open_on_loopback_only(engine: LlamaCppEngine) -> None:
    assert engine.listening_address.startswith("http://127.0.0.1:")


# -- what does not work ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_prompt_that_is_too_long_names_both_numbers(engine: LlamaCppEngine) -> None:
    turns = [child("1" * CONTEXT)]  # one token a digit
    needed = engine.count(turns) + 16
    with pytest.raises(EngineError, match=rf"needs {needed} tokens and the context holds {CONTEXT}\b") as caught:
        await reply(engine, turns, "long")
    assert not caught.value.retryable
    assert "trim" in caught.value.hint
    fits = [child("好")]
    with pytest.raises(EngineError):
        await reply(engine, fits, "long", max_tokens=CONTEXT - engine.count(fits) + 1)


@pytest.mark.slow
async def test_a_closed_engine_says_so(weights: Path) -> None:
    engine = await LlamaCppEngine.load(LlamaCppConfig(path=weights, context_tokens=256, slots=1))
    await asyncio.sleep(0)  # the loop still holds the future that brought the server
    address = engine.listening_address
    assert engine.info.model == weights.stem
    await engine.close()
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await reply(engine, [child("hi")], "t")
    with pytest.raises(EngineError, match="closed"):
        _ = engine.listening_address
    with pytest.raises(urllib.error.URLError):
        http(f"{address}/health")  # the port went with it


async def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model file at .*none\.gguf") as caught:
        await LlamaCppEngine.load(LlamaCppConfig(path=tmp_path / "none.gguf"))
    assert "models list" in caught.value.hint
    there = write_gguf(tmp_path / "there.gguf", byte_level_pairs())
    with pytest.raises(UsageError, match=r"no model file at .*adapter\.gguf"):
        await LlamaCppEngine.load(LlamaCppConfig(path=there, adapter=tmp_path / "adapter.gguf"))


async def test_a_file_that_is_not_gguf_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(b"<html>please log in</html>")
    with pytest.raises(DataError, match="not a GGUF file"):
        await LlamaCppEngine.load(LlamaCppConfig(path=path))


async def test_a_gguf_file_without_a_model_is_an_engine_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "empty.gguf", byte_level_pairs())
    with pytest.raises(EngineError, match=r"llama\.cpp cannot open .*empty\.gguf") as caught:
        await LlamaCppEngine.load(LlamaCppConfig(path=path))
    assert "verify" in caught.value.hint


def test_some_core_is_available() -> None:
    assert available_cores() >= 1
