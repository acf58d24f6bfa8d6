"""The picture of `curate.py --scale`: processor seconds and memory against dialogues, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from qiaoban.files import write_atomically

_WIDE, _HIGH, _LEFT, _TOP = 250, 180, 60, 40
_STYLE = (
    "text{font:12px sans-serif;fill:#444}.g{stroke:#ccc}.l{fill:none;stroke:#2a6f97;stroke-width:2}.p{fill:#2a6f97}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.g{stroke:#555}.l{stroke:#7cc4e8}.p{fill:#7cc4e8}}"
)


def plot(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write an SVG file with a panel of processor seconds and one of megabytes."""
    panels = [
        _panel(0, "processor seconds", [(run["dialogues"], run["processor_seconds"]) for run in runs]),
        _panel(_LEFT + _WIDE + 30, "peak memory, MB", [(run["dialogues"], run["peak_mb"]) for run in runs]),
    ]
    wide, high = 2 * (_LEFT + _WIDE) + 60, _TOP + _HIGH + 45
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img"><style>{_STYLE}</style>'
    with write_atomically(path) as file:
        file.write(f"{head}<title>qiaoban curate: cost against dialogues</title>{''.join(panels)}</svg>\n".encode())


def _panel(left: int, title: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve with its axes; a straight line at 45 degrees is linear growth."""
    across, up = ([log10(value) for value in values] for values in zip(*points, strict=True))
    (x0, x1), (y0, y1) = ((floor(min(values)), max(ceil(max(values)), floor(min(values)) + 1)) for values in (across, up))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + _LEFT + (x - x0) / (x1 - x0) * _WIDE, _TOP + (y1 - y) / (y1 - y0) * _HIGH

    parts = [f'<text x="{left + _LEFT}" y="20">{title}</text>']
    for power in range(x0, x1 + 1):
        x, bottom = place(power, y0)
        parts.append(f'<line class="g" x1="{x:.0f}" y1="{_TOP}" x2="{x:.0f}" y2="{bottom:.0f}"/>')
        parts.append(f'<text x="{x:.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{10**power:,}</text>')
    for power in range(y0, y1 + 1):
        x, y = place(x0, power)
        parts.append(f'<line class="g" x1="{x:.0f}" y1="{y:.0f}" x2="{x + _WIDE:.0f}" y2="{y:.0f}"/>')
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:,g}</text>')
    dots = [place(x, y) for x, y in zip(across, up, strict=True)]
    parts.append(f'<polyline class="l" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in dots)}"/>')
    for (x, y), (_, value) in zip(dots, points, strict=True):
        parts.append(f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        parts.append(f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{value:,.0f}</text>')
    return "".join(parts)
