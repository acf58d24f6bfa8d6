"""An engine that gives back the end of what the child said, as a valley does."""

from collections.abc import AsyncGenerator, Sequence

from qiaoban.conversation import Turn
from qiaoban.engine.choose import EngineChoice
from qiaoban.engine.protocol import Delta, EngineInfo, Options, Usage
from qiaoban.settings import Settings


class EchoEngine:
    """Says the last five characters of the child's message, one at a time."""

    def __init__(self, choice: EngineChoice) -> None:
        self.info = EngineInfo(engine="echo", model="echo", context_tokens=choice.context_tokens or 4096)

    def count(self, messages: Sequence[Turn]) -> int:
        """One token a character: an echo has no tokenizer, and too many is safer than too few."""
        return sum(len(message.content) for message in messages)

    async def stream(self, messages: Sequence[Turn], options: Options) -> AsyncGenerator[Delta]:
        """The echo; nothing where `max_tokens` is 0, which only asks to read the prompt."""
        heard = next((m.content for m in reversed(messages) if m.role == "user"), "")
        said = heard[-5:][: options.max_tokens]
        for character in said:
            yield Delta(character)
        usage = Usage(prompt_tokens=self.count(messages), cached_tokens=0, completion_tokens=len(said))
        yield Delta("", "stop", usage)

    async def close(self) -> None:
        """Nothing to give back."""


async def open_engine(choice: EngineChoice, settings: Settings) -> EchoEngine:
    """The entry point `engine.echo`."""
    return EchoEngine(choice)
