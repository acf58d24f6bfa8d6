"""What an engine is: messages in, text deltas out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from qiaoban.conversation import Turn
from qiaoban.models.registry import Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one reply is to be generated.

    `talk` names the conversation: engines with a prefix cache keep the turns of one talk together.
    `max_tokens` 0 reads the prompt and says nothing, which fills the cache.
    """

    talk: str = ""
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one call: the whole prompt, the part of it that came from the cache, and the reply."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Delta:
    """A piece of the reply, always whole characters; the text may be empty.

    One carries `finish`, and no text comes after it. `usage` comes where it is known, with the finish or after it, and with an
    engine that can tell also as soon as the prompt has been read, so that a reply which is stopped early is counted too.
    """

    text: str
    finish: Finish | None = None
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine runs: for logs, prompts and `qiaoban doctor`.

    `prefix_slots` is how many talks keep their prompt in memory between turns; 0 where there is nothing to warm.
    """

    engine: str
    model: str
    context_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    prefix_slots: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """A model that talks. Implementations: llamacpp, openai, transformers, scripted."""

    @property
    def info(self) -> EngineInfo:
        """What is running."""

    def count(self, messages: Sequence[Turn]) -> int:
        """Tokens that `messages` take as a prompt; an estimate on the high side where the tokenizer is unknown."""

    def stream(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        """Generate a reply to `messages`.

        Closing the generator or cancelling its task stops decoding within one token. Raises `EngineError`.
        """

    async def close(self) -> None:
        """Give back memory and connections; safe to call twice."""
