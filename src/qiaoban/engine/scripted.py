"""An engine that says what it was told to: for tests, demonstrations and known-bad systems in evaluations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from qiaoban.conversation import Turn
from qiaoban.engine.protocol import Delta, EngineInfo, Options, Usage
from qiaoban.errors import EngineError
from qiaoban.render import EstimatingTokenizer

Script = Iterable[str | EngineError] | Callable[[Sequence[Turn]], str]


class ScriptedEngine:
    """Replies come from a list in order, or from a function of the messages. An `EngineError` in the list is raised.

    `calls` keeps every request, `cancelled` counts replies that were cut short by the caller.
    """

    def __init__(self, script: Script, *, piece: int = 2, delay: float = 0.0, context_tokens: int = 4096) -> None:
        self._answer = script if callable(script) else None
        self._replies = iter(()) if callable(script) else iter(script)
        self._piece = piece
        self._delay = delay
        self._tokenizer = EstimatingTokenizer()
        self.info = EngineInfo(engine="scripted", model="scripted", context_tokens=context_tokens)
        self.calls: list[tuple[tuple[Turn, ...], Options]] = []
        self.cancelled = 0

    def count(self, messages: Sequence[Turn]) -> int:
        """An estimate; see `EstimatingTokenizer`."""
        return sum(len(self._tokenizer.encode(m.content)) + 4 for m in messages)

    async def stream(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        """The next reply, `piece` characters at a time with `delay` seconds before each."""
        self.calls.append((tuple(messages), options))
        reply = self._next(messages)
        said, finished = 0, False
        try:
            for start in range(0, len(reply), self._piece):
                await asyncio.sleep(self._delay)
                said += 1
                yield Delta(reply[start : start + self._piece])
            finished = True
        finally:
            self.cancelled += not finished
        yield Delta("", "stop", Usage(prompt_tokens=self.count(messages), cached_tokens=0, completion_tokens=said))

    async def close(self) -> None:
        """Nothing to give back."""

    def _next(self, messages: Sequence[Turn]) -> str:
        if self._answer is not None:
            return self._answer(messages)
        reply = next(self._replies, None)
        if reply is None:
            raise EngineError("the script has no reply left")
        if isinstance(reply, EngineError):
            raise reply
        return reply
