"""A model on this machine as the teacher, through the same engines that serve a child."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from qiaoban.conversation import Turn
from qiaoban.engine.protocol import Engine, Options
from qiaoban.engine.protocol import Usage as EngineUsage
from qiaoban.errors import EngineError
from qiaoban.models.registry import Sampling
from qiaoban.teacher.client import CallError, Fault, Reply
from qiaoban.teacher.ledger import Usage


class EngineClient:
    """Answers chat completions from an `Engine`.

    Calls that share their first message are one talk to the engine: so both agents of a role-play keep their cached prefix.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ask(self, body: Mapping[str, Any], key: str) -> Reply:
        """As `Client.ask`; the body that is stored has the form of a chat completion."""
        messages = [Turn(role=message["role"], content=message["content"]) for message in body["messages"]]
        sampling = Sampling(
            temperature=body.get("temperature", self._engine.info.sampling.temperature), top_p=self._engine.info.sampling.top_p
        )
        options = Options(talk=messages[0].content, max_tokens=self._room(messages, body["max_tokens"]), sampling=sampling)
        text, finish, usage = "", "stop", EngineUsage(prompt_tokens=0, cached_tokens=0, completion_tokens=0)
        try:
            async with aclosing(self._engine.stream(messages, options)) as deltas:
                async for delta in deltas:
                    text += delta.text
                    finish, usage = delta.finish or finish, delta.usage or usage
        except EngineError as error:
            fault = Fault.BUSY if error.retryable else Fault.REQUEST
            raise CallError(fault, error.message, hint=error.hint) from None
        message = {"role": "assistant", "content": text}
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        raw = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": counts}
        return Reply(
            json.dumps(raw, ensure_ascii=False), Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        )

    async def close(self) -> None:
        """Close the engine."""
        await self._engine.close()

    def _room(self, messages: list[Turn], wanted: int) -> int:
        room = self._engine.info.context_tokens - self._engine.count(messages)
        if room < 1:
            raise CallError(Fault.REQUEST, "the prompt is longer than the model's context", hint="give a larger --context")
        return min(wanted, room)
