"""The only place that reads the environment. Every value has a default that works on a laptop."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _home() -> Path:
    """`QIAOBAN_HOME`, else the platform's cache folder (`~/.cache/qiaoban` unless `XDG_CACHE_HOME` says otherwise)."""
    if chosen := os.environ.get("QIAOBAN_HOME"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "qiaoban"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where files live and which endpoints are asked. Keys and tokens are never printed (`repr=False`)."""

    home: Path
    huggingface_url: str
    huggingface_token: str | None = field(default=None, repr=False)
    modelscope_url: str
    openai_base_url: str | None = None
    openai_api_key: str | None = field(default=None, repr=False)
    threads: int | None = None


def load() -> Settings:
    """Read the environment once; call it where a command starts and pass the result on."""
    env = os.environ
    threads = env.get("QIAOBAN_THREADS", "")
    return Settings(
        home=_home(),
        huggingface_url=env.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"),
        huggingface_token=env.get("HF_TOKEN") or None,
        modelscope_url=env.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn").rstrip("/"),
        openai_base_url=env.get("OPENAI_BASE_URL") or None,
        openai_api_key=env.get("OPENAI_API_KEY") or None,
        threads=int(threads) if threads.isdecimal() and int(threads) > 0 else None,
    )
