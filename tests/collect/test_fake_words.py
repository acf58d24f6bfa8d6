"""What the fake teacher says, and in which form."""

from __future__ import annotations

import json

import pytest

from qiaoban.conversation import Act
from tests.collect.ask_fake import (
    CHILD_EN,
    CHILD_ZH,
    LINES_EN,
    LINES_ZH,
    OUTLINE_ZH,
    SCRIPT_EN,
    SCRIPT_ZH,
    TAGGED_EN,
    TAGGED_ZH,
    ask,
    teacher,
    text,
)


@pytest.mark.parametrize("prompt", [SCRIPT_ZH, SCRIPT_EN])
async def test_a_script_alternates_and_has_valid_acts(prompt: str) -> None:
    lengths = set()
    async with teacher() as client:
        for n in range(30):
            turns = json.loads(await text(client, f"{prompt} ({n})"))["turns"]
            lengths.add(len(turns))
            assert [turn["s"] for turn in turns] == ["child", "companion"] * (len(turns) // 2)
            assert all(0 <= turn["d"] <= 4 for turn in turns[::2])
            assert all(turn["a"] and all(Act(act) for act in turn["a"]) for turn in turns[1::2])
            assert len({turn["t"] for turn in turns}) == len(turns)
    assert lengths == {4, 6, 8}


async def test_an_outline_has_every_key() -> None:
    async with teacher() as client:
        outlines = json.loads(await text(client, OUTLINE_ZH))["outlines"]
    assert len({outline["incident"] for outline in outlines}) == 5
    assert sum(outline["p"] for outline in outlines) <= 1
    for outline in outlines:
        assert set(outline) == {"p", "incident", "hides", "beats", "worse", "detail"}
        assert 3 <= len(outline["beats"]) <= 5


@pytest.mark.parametrize(("prompt", "chinese"), [(TAGGED_ZH, True), (TAGGED_EN, False)])
async def test_a_companions_turn_is_tagged(prompt: str, chinese: bool) -> None:
    async with teacher() as client:
        line = await text(client, prompt)
    acts, _, words = line.removeprefix("[").partition("] ")
    assert all(Act(act) for act in acts.split(", "))
    assert words
    assert words.isascii() != chinese


@pytest.mark.parametrize(
    ("prompt", "first", "second"), [(LINES_ZH, "孩子：", "智能助手："), (LINES_EN, "Child: ", "Assistant: ")]
)
async def test_a_plain_script_names_its_speakers(prompt: str, first: str, second: str) -> None:
    async with teacher() as client:
        lines = (await text(client, prompt)).splitlines()
    assert all(line.startswith(first) for line in lines[::2])
    assert all(line.startswith(second) for line in lines[1::2])
    assert len(lines) % 2 == 0


async def test_a_child_speaks_plainly_and_does_not_repeat_itself() -> None:
    async with teacher() as client:
        for prompt in (CHILD_ZH, CHILD_EN):
            said: list[str] = []
            talk: list[dict[str, str]] = [{"role": "system", "content": prompt}]
            for _ in range(8):
                answer = await client.chat.completions.create(model="m", messages=talk)  # type: ignore[arg-type]
                said.append(answer.choices[0].message.content or "")
                talk.append({"role": "assistant", "content": said[-1]})
            assert len(set(said)) == 8
            assert all(line.isascii() == (prompt == CHILD_EN) and "\n" not in line for line in said)


async def test_the_last_messages_choose_the_language() -> None:
    async with teacher() as client:
        answer = await client.chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": "You are a child. " * 20},
                {"role": "assistant", "content": "我今天不太高兴。"},
                {"role": "user", "content": [{"type": "text", "text": "怎么了，可以说说吗？"}]},
            ],
        )
    assert not (answer.choices[0].message.content or "").isascii()


async def test_a_json_schema_names_the_form() -> None:
    schema = {"type": "object", "properties": {"turns": {"type": "array"}}}
    async with teacher() as client:
        answer = await ask(
            client,
            "写一段对话。",
            response_format={"type": "json_schema", "json_schema": {"name": "script", "schema": schema}},
        )
    assert "turns" in json.loads(answer.choices[0].message.content or "")


async def test_the_same_messages_get_the_same_words_from_any_teacher() -> None:
    prompts = [f"{SCRIPT_ZH} {n}" for n in range(20)]
    async with teacher(seed=1) as client:
        forwards = [await text(client, prompt) for prompt in prompts]
    async with teacher(seed=2) as client:
        backwards = [await text(client, prompt) for prompt in reversed(prompts)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 20


async def test_usage_grows_with_the_prompt() -> None:
    async with teacher() as client:
        short, long = (await ask(client, CHILD_ZH)).usage, (await ask(client, CHILD_ZH * 50)).usage
    assert short is not None
    assert long is not None
    assert 5 < short.prompt_tokens < 40
    assert 30 * short.prompt_tokens < long.prompt_tokens < 60 * short.prompt_tokens
    assert short.completion_tokens > 0
    assert short.total_tokens == short.prompt_tokens + short.completion_tokens
