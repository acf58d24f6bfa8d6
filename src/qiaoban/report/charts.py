"""Charts as SVG that the page carries in itself: no script, no font, no other file.

Each is drawn 320 units wide, the narrowest screen that must do, and grows with the page. The same numbers stand in a table
beside it. What a file brought, such as the name of a domain, is escaped and cannot become markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH = 320
_ROW, _BAR, _FONT = 34, 9, 12
_LONGEST = 34  # characters of a label
_COLUMNS = 40  # bars of a histogram; what is longer goes into the last
_CELL = 22


def bars(title: str, rows: Sequence[tuple[str, int]]) -> Markup:
    """Horizontal bars, a label and its number above each."""
    most = max((count for _, count in rows), default=0)
    parts = []
    for place, (label, count) in enumerate(rows):
        y = place * _ROW
        parts += [
            _text(0, y + _FONT, _short(label)),
            _text(WIDTH, y + _FONT, f"{count:,}", anchor="end"),
            _rect(0, y + 18, WIDTH, _BAR, css="track"),
            _rect(0, y + 18, _share(count, most) * WIDTH, _BAR),
        ]
    return _svg(title, len(rows) * _ROW, parts)


def histogram(title: str, counts: Mapping[int, int]) -> Markup:
    """Upright bars for whole numbers, from the least to the greatest."""
    if not counts:
        return _svg(title, 0, [])
    low, high = min(counts), max(counts)
    last = min(high, low + _COLUMNS - 1)
    heights = [counts.get(value, 0) for value in range(low, last)]
    heights.append(sum(count for value, count in counts.items() if value >= last))
    step, most, floor = WIDTH / len(heights), max(heights), 120
    parts = []
    for place, count in enumerate(heights):
        height = _share(count, most) * (floor - 16)
        parts.append(_rect(place * step + step * 0.1, floor - height, step * 0.8, height))
    end = f"{last} and more" if high > last else str(high)
    parts += [_text(0, floor + 16, str(low)), _text(WIDTH, floor + 16, end, anchor="end"), _text(0, _FONT, f"most: {most:,}")]
    return _svg(title, floor + 20, parts)


def ranges(title: str, rows: Sequence[tuple[str, int, int]]) -> Markup:
    """For each label a line from the median to the 95th percentile: a dot at the median, a tick at the end."""
    most = max((high for _, _, high in rows), default=0)
    parts = []
    for place, (label, low, high) in enumerate(rows):
        y = place * _ROW
        start, end = _share(low, most) * (WIDTH - 12) + 6, _share(high, most) * (WIDTH - 12) + 6
        parts += [
            _text(0, y + _FONT, _short(label)),
            _text(WIDTH, y + _FONT, f"{low} – {high}", anchor="end"),
            _rect(0, y + 21, WIDTH, 2, css="track"),
            _rect(start, y + 21, max(end - start, 0), 2),
            Markup('<circle cx="{}" cy="{}" r="5"/>').format(_number(start), y + 22),
            _rect(end - 1, y + 17, 2, 10),
        ]
    return _svg(title, len(rows) * _ROW, parts)


def heat(title: str, rows: Sequence[str], columns: Sequence[str], counts: Mapping[tuple[str, str], int]) -> Markup:
    """A grid of counts: the more, the stronger the colour; the number stands in its cell."""
    most = max(counts.values(), default=0)
    left = 104
    width = (WIDTH - left) / max(len(columns), 1)
    parts = [_text(left + (n + 0.5) * width, _FONT, column, anchor="middle") for n, column in enumerate(columns)]
    for place, row in enumerate(rows):
        y = 18 + place * _CELL
        parts.append(_text(0, y + 15, _short(row, 15)))
        for n, column in enumerate(columns):
            if count := counts.get((row, column), 0):
                x = left + n * width
                cell = '<rect x="{}" y="{}" width="{}" height="{}" class="cell" fill-opacity="{}"/>'
                strength = _number(0.15 + 0.6 * _share(count, most))
                parts.append(Markup(cell).format(_number(x + 1), y, _number(width - 2), _CELL - 2, strength))  # noqa: S704 - ours
                parts.append(_text(x + width / 2, y + 15, f"{count:,}", anchor="middle"))
    return _svg(title, 18 + len(rows) * _CELL, parts)


def _svg(title: str, height: int, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, max(height, 1), title)
    return Markup("").join([head, *parts, Markup("</svg>")])


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_number(x), _number(y), anchor, escape(text))


def _rect(x: float, y: float, width: float, height: float, *, css: str = "bar") -> Markup:
    numbers = [_number(each) for each in (x, y, width, height)]
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(*numbers, css)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _share(count: int, most: int) -> float:
    return count / most if most else 0.0


def _short(label: str, limit: int = _LONGEST) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"
