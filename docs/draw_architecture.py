"""Draw docs/architecture.svg from the imports that are really in the code: `python docs/draw_architecture.py`.

Rows are the layers of the import contract in pyproject.toml; an arrow means "imports". Arrows that follow from others are
left out (the transitive reduction), the full list of imports stands in each box. Same code, same picture, byte for byte.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "architecture.svg"
PACKAGE = "qiaoban"

_BOX, _LANE, _GAP, _DROP, _LINE, _PAD = 276, 18, 26, 46, 15, 10  # widths, gaps and line height, in pixels
_CHARACTERS = 44  # in one line of a box


@dataclass
class _Spot:
    """A place in a row: the box of a room, or (with `room` empty) a lane that a long arrow passes through."""

    room: str
    row: int
    lines: list[tuple[str, str]] = field(default_factory=list)  # css class, text
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> int:
        return _BOX if self.room else _LANE

    @property
    def height(self) -> int:
        return _LINE * len(self.lines) + 2 * _PAD if self.room else 0

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def room_imports() -> dict[str, set[str]]:
    """For each room (package or module right under `qiaoban`) the rooms that it imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = {name for row in layers() for name in row}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            here, there = _room(module), _room(imported)
            if here in rooms and there in rooms and here != there:
                found[here].add(there)
    return found


def layers() -> list[list[str]]:
    """The rows of the import contract, top first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    return [[name.strip().removeprefix(f"{PACKAGE}.") for name in row.split("|")] for row in contract["layers"]]


def render() -> str:
    """The whole SVG as text."""
    imports = room_imports()
    rows = [[_Spot(room, number, _text(room, imports[room])) for room in row] for number, row in enumerate(layers())]
    arrows = _route(rows, _reduced(imports))
    _order(rows, arrows)
    width, height = _place(rows)
    parts = [_HEAD.format(width=width, height=height)]
    parts += [_arrow(path) for path in arrows]
    parts += [_box(spot) for row in rows for spot in row if spot.room]
    return "\n".join([*parts, "</svg>", ""])


def _room(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def _reduced(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way implies."""

    def reach(room: str) -> set[str]:
        return imports[room].union(*(reach(next_room) for next_room in imports[room]))

    return [
        (room, target)
        for room in sorted(imports)
        for target in sorted(imports[room])
        if not any(target in reach(other) for other in imports[room] - {target})
    ]


def _text(room: str, imports: set[str]) -> list[tuple[str, str]]:
    folder = ROOT / "src" / PACKAGE / room
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    words = " ".join((ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").split()).replace("`", "")
    role = words.partition(". ")[0].rstrip(".")
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__") if folder.is_dir() else []
    return [
        ("name", room),
        *(("role", line) for line in textwrap.wrap(role, _CHARACTERS)),
        *(("mods", line) for line in textwrap.wrap(" · ".join(modules), _CHARACTERS)),
        *(("uses", line) for line in textwrap.wrap("imports " + (", ".join(sorted(imports)) or "nothing"), _CHARACTERS)),
    ]


def _route(rows: list[list[_Spot]], arrows: list[tuple[str, str]]) -> list[list[_Spot]]:
    """Each arrow as the spots it runs through; a lane is added in every row that it passes."""
    box = {spot.room: spot for row in rows for spot in row}
    paths = []
    for start, end in arrows:
        lanes = [_Spot("", row) for row in range(box[start].row + 1, box[end].row)]
        for lane in lanes:
            rows[lane.row].append(lane)
        paths.append([box[start], *lanes, box[end]])
    return paths


def _order(rows: list[list[_Spot]], arrows: list[list[_Spot]]) -> None:
    """Sort each row by where its neighbours stand (barycentre method), a few times down and up, to avoid crossings."""
    links = [pair for path in arrows for pair in pairwise(path)]
    for sweep in range(8):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            for place, spot in enumerate(row):
                spot.x = place - (len(row) - 1) / 2
            wanted = [_pull(spot, links, down=down) for spot in row]
            row[:] = [spot for _, spot in sorted(zip(wanted, row, strict=True), key=itemgetter(0))]
            for place, spot in enumerate(row):
                spot.x = place - (len(row) - 1) / 2


def _pull(spot: _Spot, links: list[tuple[_Spot, _Spot]], *, down: bool) -> float:
    """The mean place of the spots that this one hangs on: those above it on the way down, those below on the way up."""
    places = [above.x if down else below.x for above, below in links if (below if down else above) is spot]
    return sum(places) / len(places) if places else spot.x


def _place(rows: list[list[_Spot]]) -> tuple[int, int]:
    """Give every spot its coordinates; returns the size of the picture."""
    widths = [sum(spot.width for spot in row) + _GAP * (len(row) - 1) for row in rows]
    width, y = max(widths) + 2 * _GAP, _GAP
    for row, own in zip(rows, widths, strict=True):
        x, tallest = (width - own) / 2, max(spot.height for spot in row)
        for spot in row:
            spot.x, spot.y = x, y
            x += spot.width + _GAP
            if not spot.room:
                spot.lines = [("", "")] * round((tallest - 2 * _PAD) / _LINE)
        y += tallest + _DROP
    return width, y - _DROP + _GAP


def _arrow(path: list[_Spot]) -> str:
    x, y = path[0].middle, path[0].y + path[0].height
    steps = [f"M{x:.0f} {y:.0f}"]
    for spot in path[1:]:
        bend = (y + spot.y) / 2
        steps.append(f"C{x:.0f} {bend:.0f} {spot.middle:.0f} {bend:.0f} {spot.middle:.0f} {spot.y:.0f}")
        x, y = spot.middle, spot.y
        if not spot.room:
            y = spot.y + _LINE * len(spot.lines) + 2 * _PAD
            steps.append(f"L{x:.0f} {y:.0f}")
    return f'<path class="arrow" d="{" ".join(steps)}" marker-end="url(#tip)"/>'


def _box(spot: _Spot) -> str:
    lines = [
        f'<text class="{kind}" x="{spot.middle:.0f}" y="{spot.y + _PAD + _LINE * number + 11:.0f}">{escape(text)}</text>'
        for number, (kind, text) in enumerate(spot.lines)
    ]
    frame = f'<rect class="box" x="{spot.x:.0f}" y="{spot.y:.0f}" width="{spot.width}" height="{spot.height}" rx="7"/>'
    return "\n".join([frame, *lines])


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>Rooms of the package qiaoban and what each imports</title>
<style>
text {{ font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 11px; text-anchor: middle; fill: #333 }}
.name {{ font-size: 14px; font-weight: 700; fill: #1d3557 }} .mods {{ fill: #2a6f6b }} .uses {{ fill: #777; font-size: 10px }}
.box {{ fill: #fdfaf3; stroke: #1d3557; stroke-width: 1.2 }} .arrow {{ fill: none; stroke: #c1666b; stroke-width: 1.4 }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#c1666b"/></marker></defs>
<rect width="100%" height="100%" fill="#fff"/>"""


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
