"""Drawings as SVG without a library: scales, marks and labels. All are 400 units wide, so that text stays readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmcompress.page._html import Html, escape, join, tag

WIDTH = 400.0
SHAPES = {"teacher": "square", "baseline": "triangle", "student": "diamond", "package": "circle"}
"""By role, so that models differ by more than colour."""
COLOURS = 8


@dataclass(frozen=True)
class Scale:
    """From values to units of the drawing; values beyond its ends are drawn at them."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        value = min(max(value, self.low), self.high)
        low, high, at = (math.log(x) for x in (self.low, self.high, value)) if self.logarithmic else self._plain(value)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _plain(self, value: float) -> tuple[float, float, float]:
        return self.low, self.high, value

    def ticks(self, count: int = 4) -> list[float]:
        """Round values to mark, about ``count``."""
        if self.logarithmic:
            found = [
                m * 10.0**e
                for e in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                for m in (1, 2, 5)
            ]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) > 2 * count:
                found = [value for value in found if abs(math.log10(value) - round(math.log10(value))) < 1e-9]
            return found[:: math.ceil(len(found) / (2 * count)) or 1] if len(found) > 1 else [self.low, self.high]
        width = self.high - self.low
        if not width > 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(width / count))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= width / count * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def covering(values: Iterable[float], start: float, end: float, *, logarithmic: bool = False) -> Scale:
    """A scale that holds all values with some room around them."""
    found = list(values)
    low, high = min(found), max(found)
    if logarithmic:
        return Scale(low / 1.15, high * 1.15, start, end, logarithmic=True)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Scale(low - room, high + room, start, end)


def drawing(height: float, description: str, parts: Iterable[str], width: float = WIDTH) -> Html:
    """A drawing with its text alternative."""
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", join(parts), viewBox=box, role="img", aria_label=description)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return Html(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{class_}"/>')


def rect(x: float, y: float, width: float, height: float, class_: str, title: str = "") -> Html:
    """A rectangle, at least a line wide; ``title`` shows under a pointer."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    size = f'width="{max(width, 1):.1f}" height="{height:.1f}" rx="2"'
    return Html(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{class_}">{inner}</rect>')


def text(x: float, y: float, words: object, class_: str = "") -> Html:
    """A label; class ``e`` ends at x, ``m`` is centred there, ``s`` is small and soft."""
    return Html(f'<text x="{x:.1f}" y="{y:.1f}" class="{class_}">{escape(words)}</text>')


def path(points: Sequence[tuple[float, float]], class_: str) -> Html:
    """Lines from point to point."""
    where = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Html(f'<path d="M{where}" class="{class_}"/>')


def mark(shape: str, x: float, y: float, colour: int, title: str = "", size: float = 5.0) -> Html:
    """A point of a model; ``title`` shows under a pointer."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    class_ = f"m{colour % COLOURS}"
    fill = "hollow" if shape == "hollow" else "f"
    if shape == "circle":
        return Html(
            f'<g class="{class_}"><circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" class="{fill}">{inner}</circle></g>'
        )
    corners = {
        "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    }.get(shape, [(-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95)])
    where = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in corners)
    return Html(f'<g class="{class_}"><polygon points="{where}" class="{fill}">{inner}</polygon></g>')


def whisker(x1: float, y1: float, x2: float, y2: float, colour: int) -> Html:
    """An interval."""
    return Html(f'<g class="m{colour % COLOURS}">{line(x1, y1, x2, y2, "i")}</g>')


def text_width(words: str, size: float = 12.0) -> float:
    """About how wide a label is."""
    return len(words) * size * 0.56


def shortened(words: str, width: float, size: float = 12.0) -> str:
    """A label that fits a width."""
    room = int(width / (size * 0.56))
    return words if len(words) <= room else words[: max(room - 1, 1)].rstrip() + "…"
