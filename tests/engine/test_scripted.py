"""The scripted engine says what it was told to, notes what it was asked, and is cancelled like a real one."""

from __future__ import annotations

import asyncio

import pytest

from qiaoban.conversation import Turn
from qiaoban.engine.protocol import Delta, Engine, Options
from qiaoban.engine.scripted import ScriptedEngine
from qiaoban.errors import EngineError

ASKED = [Turn(role="user", content="你好吗")]


async def reply(engine: Engine, turns: list[Turn] = ASKED) -> list[Delta]:
    return [delta async for delta in engine.stream(turns, Options(talk="t"))]


async def test_replies_come_in_order_and_in_pieces() -> None:
    engine = ScriptedEngine(["一二三四五", "ok"], piece=2)
    first = await reply(engine)
    assert [delta.text for delta in first] == ["一二", "三四", "五", ""]
    assert first[-1].finish == "stop"
    assert first[-1].usage is not None
    assert first[-1].usage.prompt_tokens == engine.count(ASKED)
    assert "".join(delta.text for delta in await reply(engine)) == "ok"
    assert [(turns, options.talk) for turns, options in engine.calls] == [(tuple(ASKED), "t")] * 2
    assert engine.cancelled == 0


async def test_a_function_answers_what_it_is_asked() -> None:
    engine = ScriptedEngine(lambda turns: turns[-1].content[::-1])
    assert "".join(delta.text for delta in await reply(engine)) == "吗好你"


async def test_errors_are_raised_and_an_empty_script_is_one() -> None:
    broken = EngineError("broken", retryable=True)
    engine = ScriptedEngine([broken])
    with pytest.raises(EngineError) as caught:
        await reply(engine)
    assert caught.value is broken
    with pytest.raises(EngineError, match="no reply left"):
        await reply(engine)


async def test_leaving_early_is_counted() -> None:
    engine = ScriptedEngine(["一二三四", "五六七八"], piece=1, delay=0.001)
    stream = engine.stream(ASKED, Options())
    assert (await anext(stream)).text == "一"
    await stream.aclose()
    assert engine.cancelled == 1
    slow = asyncio.create_task(reply(ScriptedEngine(["一二三四"], delay=30)))
    await asyncio.sleep(0)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await engine.close()
    await engine.close()
