"""GGUF headers for tests, written by hand from the format's description, and a small byte-level vocabulary to put in one."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

Value = str | bool | int | float | Sequence[str] | Sequence[int]

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end▁of▁turn|>", "<s>", "[INST]")
DEFINED = ("<tool_call>",)
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "ä ½", "ä½ ł", "å ¥", "å¥ ½")  # hello, " w", 你, 好


def write_gguf(path: Path, pairs: Mapping[str, Value]) -> Path:
    """A file with these key-value pairs and no tensors."""
    body = b"".join(_text(key) + _typed(value) for key, value in pairs.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body)
    return path


def byte_level_pairs(**more: Value) -> dict[str, Value]:
    """The header of a model whose vocabulary is all 256 bytes, a few merges and a few control tokens.

    `more` sets keys under `tokenizer.`, with `__` for a dot: `ggml__add_bos_token=True`.
    """
    letters = list(byte_alphabet().values())
    merged = ["".join(merge.split(" ")) for merge in MERGES]
    tokens = [*letters, *merged, *CONTROLS, *DEFINED]
    kinds = [NORMAL] * (len(letters) + len(merged)) + [CONTROL] * len(CONTROLS) + [USER_DEFINED] * len(DEFINED)
    pairs: dict[str, Value] = {
        "general.architecture": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }
    return pairs | {f"tokenizer.{key.replace('__', '.')}": value for key, value in more.items()}


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Value) -> bytes:
    """The value with its type in front: bool 7, int32 5, float 6, text 8, array 9."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    items = [_typed(item) for item in value]
    kind = items[0][:4] if items else struct.pack("<I", 8)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)
