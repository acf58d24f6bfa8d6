"""Conversation → text → token ids: the only place where text becomes tokens.

A renderer joins a chat template (Jinja, as shipped inside model files) with a tokenizer. The content of a message is data:
a child who types `<|im_end|>` gets it read as letters, never as control.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from qiaoban.conversation import Turn
from qiaoban.errors import DataError
from qiaoban.models.gguf import read_metadata

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


class Tokenizer(Protocol):
    """What a renderer needs of a tokenizer."""

    @property
    def control(self) -> tuple[str, ...]:
        """The strings that stand for control tokens, such as `<|im_end|>`."""

    @property
    def exact(self) -> bool:
        """Whether the ids are the model's own, or only good for counting."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control strings become control tokens."""


# A template is a program out of a file: it can fail as Python fails.
_TEMPLATE_FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the variables that Hugging Face gives one. Rendered in a sandbox."""

    source: str = CHATML
    bos_token: str = ""
    eos_token: str = ""

    @cached_property
    def _compiled(self) -> Template:
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        env.globals["raise_exception"] = _refuse
        try:
            return env.from_string(self.source)
        except TemplateError as error:
            raise DataError(f"chat template does not compile: {error}") from None

    def render(self, messages: Sequence[dict[str, str]], *, open_reply: bool) -> str:
        """The text of the talk; with `open_reply` it ends where the assistant is about to speak, thinking switched off."""
        try:
            return self._compiled.render(
                messages=messages,
                add_generation_prompt=open_reply,
                enable_thinking=False,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
        except _TEMPLATE_FAULTS as error:
            raise DataError(f"chat template cannot render this talk: {error}") from None


@dataclass(frozen=True)
class Renderer:
    """Turns of a talk to prompt text, ids and counts."""

    template: ChatTemplate
    tokenizer: Tokenizer

    def text(self, turns: Sequence[Turn], *, open_reply: bool = True) -> str:
        """The prompt as the model reads it. Control strings inside the turns are defused first."""
        messages = [{"role": t.role, "content": defuse(t.content, self.tokenizer.control)} for t in turns]
        return self.template.render(messages, open_reply=open_reply)

    def ids(self, turns: Sequence[Turn], *, open_reply: bool = True) -> list[int]:
        """Token ids of `text`, with no token added by the tokenizer itself."""
        return self.tokenizer.encode(self.text(turns, open_reply=open_reply))

    def count(self, turns: Sequence[Turn], *, open_reply: bool = True) -> int:
        """Number of tokens of the prompt."""
        return len(self.ids(turns, open_reply=open_reply))


@dataclass(frozen=True)
class GGUFTokenizer:
    """A byte-level BPE tokenizer rebuilt from the vocabulary inside a GGUF file."""

    fast: FastTokenizer
    control: tuple[str, ...]
    exact: bool = True

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control strings become control tokens."""
        return list(self.fast.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class EstimatingTokenizer:
    """For models whose tokenizer is unknown here: one id for each CJK character, each two Latin letters, each other ASCII
    character and each byte of anything else.

    Errs on the high side, so that trimming by it does not overflow a context. Its ids have no meaning.
    """

    control: tuple[str, ...] = ()
    exact: bool = False

    def encode(self, text: str) -> list[int]:
        """As many ids as the text is likely to take at most."""
        return [0] * sum(len(rare.encode()) if rare else 1 for rare in _UNIT.findall(text))


_UNIT = re.compile(r"[\u2010-\u2027\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef]|[A-Za-z]{1,2}|[\x00-\x7f]|(.)", re.DOTALL)
_ANY_CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<(?:start|end)_of_turn>|</?think>"
)


def defuse(content: str, control: Sequence[str] = ()) -> str:
    """Put a space after the first character of every control string in `content`, which breaks it for any tokenizer."""
    content = _ANY_CONTROL.sub(lambda hit: f"{hit[0][0]} {hit[0][1:]}", content)
    for word in control:
        if len(word) > 1 and word in content:
            content = re.sub(rf"(?={re.escape(word)})(.)", r"\1 ", content, flags=re.DOTALL)
    return content


def load_gguf_renderer(path: Path) -> Renderer:
    """Read template and vocabulary out of a GGUF file.

    Where the vocabulary is of a kind that cannot be rebuilt here (only byte-level BPE can), the renderer's tokenizer
    estimates counts (`exact` is false) and the engine is to be given text.
    """
    meta = read_metadata(path)
    tokens = _strings(meta, "tokenizer.ggml.tokens", path)
    split = str(meta.get("tokenizer.ggml.pre")) if meta.get("tokenizer.ggml.model") == "gpt2" else ""
    splits, llama3 = _SPLITS.get(split), split == "llama-bpe"
    bos = splits and meta.get("tokenizer.ggml.add_bos_token", llama3)  # given text, the engine adds its own
    template = ChatTemplate(
        source=str(meta.get("tokenizer.chat_template", CHATML)),
        bos_token=_token(meta, tokens, "bos") if bos else "",
        eos_token=_token(meta, tokens, "eos"),
    )
    kinds = meta.get("tokenizer.ggml.token_type")
    typed = list(zip(tokens, kinds, strict=False)) if isinstance(kinds, list) else []
    control = tuple(token for token, kind in typed if kind == _CONTROL)
    if splits is None:
        return Renderer(template, EstimatingTokenizer(control=control))
    defined = [token for token, kind in typed if kind == _USER_DEFINED]
    merges = _strings(meta, "tokenizer.ggml.merges", path)
    fast = _byte_level_bpe(tokens, merges, splits, whole_pieces=llama3)
    fast.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    fast.add_tokens([AddedToken(t, normalized=False) for t in defined])
    return Renderer(template, GGUFTokenizer(fast, control))


# How each family splits text before merging; the names are llama.cpp's, the patterns are the models' own.
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITS: dict[str, tuple[str, ...]] = {
    "qwen2": (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_TAIL}",),
    "llama-bpe": (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_TAIL}",),
    "smollm": (r"\p{N}", _GPT2),
    "gpt-2": (_GPT2,),
}
_CONTROL, _USER_DEFINED = 3, 4  # token types of the GGUF format


def _byte_level_bpe(tokens: list[str], merges: list[str], splits: tuple[str, ...], *, whole_pieces: bool) -> FastTokenizer:
    """`whole_pieces`: a piece that is a token is taken as it is, whatever the merges say (Llama 3)."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    fast = FastTokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, ignore_merges=whole_pieces))
    cut = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits]
    fast.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    return fast


def _strings(meta: dict[str, Any], key: str, path: Path) -> list[str]:
    value = meta.get(key)
    if not isinstance(value, list):
        raise DataError(f"the model file has no {key}", path=path, hint="it may be an adapter or a damaged file")
    return value


def _token(meta: dict[str, Any], tokens: list[str], name: str) -> str:
    index = meta.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[index] if isinstance(index, int) and index < len(tokens) else ""


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
