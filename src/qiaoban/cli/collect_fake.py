"""`qiaoban collect serve-fake`: a teacher that costs nothing and misbehaves as told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from qiaoban.cli.voice import note

_SHARE = click.FloatRange(0, 1)


@click.command("serve-fake")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="A JSONL file that gets a line a request.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which requests are hit.")
@click.option("--latency", type=click.FloatRange(0), default=0.0, show_default=True, help="Seconds before an answer.")
@click.option("--jitter", type=click.FloatRange(0), default=0.0, help="Up to so many seconds more.")
@click.option("--too-many", type=_SHARE, default=0.0, help="Share answered 429.")
@click.option("--retry-after", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds that a 429 asks for.")
@click.option("--rpm", type=click.FloatRange(1), help="Requests a minute, wherever the minute begins; more are answered 429.")
@click.option("--window", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds over which --rpm counts.")
@click.option("--server-error", type=_SHARE, default=0.0, help="Share answered 500, 502 or 503.")
@click.option("--hang", type=_SHARE, default=0.0, help="Share never answered.")
@click.option("--cut", type=_SHARE, default=0.0, help="Share cut off at the longest length.")
@click.option("--bad-json", type=_SHARE, default=0.0, help="Share of JSON that is broken.")
@click.option("--fenced", type=_SHARE, default=0.0, help="Share of JSON in a Markdown fence.")
@click.option("--empty", type=_SHARE, default=0.0, help="Share without words.")
@click.option("--filtered", type=_SHARE, default=0.0, help="Share ended by a content filter.")
@click.option("--leak", type=_SHARE, default=0.0, help="Share that goes on in the other's role.")
@click.option("--html", type=_SHARE, default=0.0, help="Share answered with a page of HTML.")
@click.option("--api-key", help="Any other key is refused.")
@click.option("--model", help="Any other model is unknown.")
@click.option("--quota-after", type=click.IntRange(1), metavar="N", help="The account is empty after so many requests.")
@click.option("--batch-delay", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds that a batch takes.")
@click.option("--batch-expires", type=_SHARE, default=0.0, help="Share of a batch that expires.")
def serve_fake(host: str, port: int, log: Path | None, **faults: Any) -> None:
    """Serve a fake teacher over the OpenAI protocol, for trying out a collector without paying.

    What it says is harmless, made up and the same for the same question. It prints its base URL on standard output once it
    listens, and stops at Ctrl-C.
    """
    from qiaoban.collect.fake import Faults, build_app, serve  # loads a web server, which only this command needs

    app = build_app(Faults(**faults), log)

    def ready(url: str) -> None:
        click.echo(url)
        note("this is a fake teacher; Ctrl-C stops it")

    asyncio.run(serve(app, host, port, ready=ready))
