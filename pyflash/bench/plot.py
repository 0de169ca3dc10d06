"""An SVG of speed over context: a panel for prefill, a panel for decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from pyflash.bench.measure import Speed
from pyflash.bench.output import Setting, rate

_WIDTH, _HEIGHT = 920, 450
_TOP, _BOTTOM, _LEFT, _GAP = 92, 84, 66, 84
_PANEL = ((_WIDTH - 2 * _LEFT - _GAP + 30) / 2, _HEIGHT - _TOP - _BOTTOM)
_COLOURS = ("#1f5fa8", "#c2571a", "#2f7d3b", "#7a4fa0", "#8a6d1d")
_LIMIT_COLOUR = "#777777"
_FONT = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""
_ZERO_GAP = 1.0  # how far left of the first depth 0 stands, in doublings: a logarithm has no place for it


@dataclass(frozen=True)
class _Point:
    depth: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Line:
    label: str
    points: tuple[_Point, ...]
    colour: str
    is_limit: bool = False


@dataclass
class _Drawing:
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, size: int = 12, anchor: str = "middle", colour: str = "#333333",
             weight: str = "normal") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
                          f'font-weight="{weight}">{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
                          f'stroke-width="{width:g}"/>')

    def path(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> None:
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{shown}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')


def depth_label(depth: int) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if depth >= size and depth % size == 0:
            return f"{depth // size}{unit}"
    return str(depth)


def _ticks(highest: float) -> list[float]:
    """From 0 to at least highest, in steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0, 1]
    rough = highest / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


def _tick_label(value: float) -> str:
    return f"{value:g}"


class _Panel:
    def __init__(self, drawing: _Drawing, left: float, title: str, lines: Sequence[_Line]) -> None:
        self.drawing, self.left, self.title, self.lines = drawing, left, title, lines
        self.width, self.height = _PANEL
        self.depths = sorted({point.depth for line in lines for point in line.points})
        logs = [math.log2(depth) for depth in self.depths if depth]
        self.first = (logs[0] - (_ZERO_GAP if self.depths[0] == 0 else 0)) if logs else 0.0
        self.span = (logs[-1] - self.first) if logs else 0.0
        self.ticks = _ticks(max(point.high for line in lines for point in line.points) * 1.04)

    def x(self, depth: int) -> float:
        if self.span == 0:
            return self.left + self.width / 2
        place = math.log2(depth) if depth else self.first
        margin = 22
        return self.left + margin + (place - self.first) / self.span * (self.width - 2 * margin)

    def y(self, value: float) -> float:
        return _TOP + self.height - value / self.ticks[-1] * self.height

    def draw(self) -> None:
        self._axes()
        for line in self.lines:
            self._line(line)
        self._labels()

    def _axes(self) -> None:
        draw, bottom = self.drawing, _TOP + self.height
        draw.text(self.left, _TOP - 14, self.title, 14, "start", "#111111", "600")
        for tick in self.ticks:
            draw.line(self.left, self.y(tick), self.left + self.width, self.y(tick), "#e3e3e3")
            draw.text(self.left - 8, self.y(tick) + 4, _tick_label(tick), 12, "end")
        draw.line(self.left, bottom, self.left + self.width, bottom, "#333333")
        last = -math.inf
        for depth in self.depths:
            draw.line(self.x(depth), bottom, self.x(depth), bottom + 5, "#333333")
            if self.x(depth) - last >= 34:
                draw.text(self.x(depth), bottom + 20, depth_label(depth))
                last = self.x(depth)
        if self.depths[0] == 0 and len(self.depths) > 1:  # the axis is broken between 0 and the first power of two
            middle = (self.x(0) + self.x(self.depths[1])) / 2
            for shift in (-3, 3):
                draw.line(middle + shift - 3, bottom + 5, middle + shift + 3, bottom - 5, "#333333")
        draw.text(self.left + self.width / 2, bottom + 42, "tokens in the context")

    def _line(self, line: _Line) -> None:
        draw = self.drawing
        places = [(self.x(point.depth), self.y(point.value)) for point in line.points]
        if line.is_limit and len(places) == 1:  # a single depth: a stretch of the limit, so that it shows
            places = [(places[0][0] - 40, places[0][1]), (places[0][0] + 40, places[0][1])]
        if len(places) > 1:
            draw.path(places, line.colour, "6 4" if line.is_limit else "")
        if line.is_limit:
            return
        for point, (x, y) in zip(line.points, places, strict=True):
            if point.high > point.low:
                draw.line(x, self.y(point.low), x, self.y(point.high), line.colour, 1.2)
                for value in (point.low, point.high):
                    draw.line(x - 4, self.y(value), x + 4, self.y(value), line.colour, 1.2)
            draw.dot(x, y, line.colour)

    def _labels(self) -> None:
        """The legend under the axis, and values at the points when there is only one line of them."""
        draw, x, y = self.drawing, self.left, _TOP + self.height + 68
        for line in self.lines:
            if line.is_limit:
                draw.path([(x, y - 4), (x + 24, y - 4)], line.colour, "6 4")
            else:
                draw.line(x, y - 4, x + 24, y - 4, line.colour, 2)
                draw.dot(x + 12, y - 4, line.colour)
            draw.text(x + 30, y, line.label, 12, "start")
            x += 30 + 7 * len(line.label) + 16
        measured = [line for line in self.lines if not line.is_limit]
        for point in measured[0].points if len(measured) == 1 else ():
            draw.text(self.x(point.depth), self.y(point.high) - 8, rate(point.value), 11, "middle", measured[0].colour)


def _points(speeds: Sequence[Speed], value: Callable[[Speed], tuple[float, float, float]]) -> tuple[_Point, ...]:
    return tuple(_Point(speed.depth, *value(speed)) for speed in sorted(speeds, key=lambda each: each.depth))


def _measured(speed: Speed) -> tuple[float, float, float]:
    return speed.tok_s, min(speed.rates), max(speed.rates)


def _allowed(speed: Speed) -> tuple[float, float, float]:
    """What the bandwidth allows: the measured speed over the share that it is."""
    limit = speed.tok_s / (speed.bandwidth_share or 1.0)
    return limit, limit, limit


def svg_text(setting: Setting, speeds: Sequence[Speed]) -> str:
    """speeds must not be empty."""
    lines: dict[str, list[_Line]] = {}
    for test, n_tokens in dict.fromkeys((speed.test, speed.n_tokens) for speed in speeds):
        chosen = [speed for speed in speeds if (speed.test, speed.n_tokens) == (test, n_tokens)]
        found = lines.setdefault(test, [])
        found.append(_Line(f"{n_tokens} tokens", _points(chosen, _measured), _COLOURS[len(found) % len(_COLOURS)]))
        if test == "decode":
            found.append(_Line("what memory allows", _points(chosen, _allowed), _LIMIT_COLOUR, is_limit=True))
    drawing = _Drawing()
    drawing.text(_LEFT, 30, setting.title, 17, "start", "#111111", "600")
    place = f"{setting.place}; kernels {setting.kernels}, cache {setting.cache}"
    drawing.text(_LEFT, 51, place, 12, "start", "#555555")
    titles = {"prefill": "Prefill, tokens/s", "decode": "Decode, tokens/s"}
    for index, test in enumerate(test for test in titles if test in lines):
        _Panel(drawing, _LEFT + index * (_PANEL[0] + _GAP - 12), titles[test], lines[test]).draw()
    body = "\n".join(drawing.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'{_FONT}>\n<title>{escape(setting.title)}: speed over context</title>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
