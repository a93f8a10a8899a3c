"""The drawings of the report's page: points with a front, values side by side, gains and losses, distributions, shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmcompress.page._html import Html
from mmcompress.page._svg import (
    COLOURS,
    WIDTH,
    Scale,
    covering,
    drawing,
    line,
    mark,
    path,
    rect,
    shortened,
    text,
    text_width,
    whisker,
)

Text = Callable[[float], str]
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Point:
    """A model by two quantities."""

    label: str
    x: float
    y: float
    colour: int
    shape: str
    x_interval: Interval = None
    y_interval: Interval = None


@dataclass(frozen=True)
class Dot:
    """A value of a model in a row of :func:`dots`."""

    value: float
    colour: int
    shape: str
    interval: Interval = None
    title: str = ""


@dataclass(frozen=True)
class Step:
    """A bar of :func:`waterfall`: from where the model before it was to its own value."""

    label: str
    start: float | None
    """None for the first, whose bar begins at the axis."""
    value: float
    value_text: str
    change: str
    better: bool | None
    """None where nothing changed."""
    interval: Interval = None


@dataclass(frozen=True)
class Spread:
    """The distribution of one model in :func:`ridges`."""

    label: str
    density: Sequence[float]
    """Of equal steps along the axis; the largest is 1."""
    p50: float
    p90: float
    colour: int
    remark: str


@dataclass(frozen=True)
class Share:
    """A bar of :func:`shares`: how much of a whole."""

    label: str
    share: float
    remark: str
    colour: int = 1


def pareto(points: Sequence[Point], *, higher_is_better: bool) -> list[Point]:
    """The points that no other beats in y without being larger in x, by rising x."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def scatter(
    points: Sequence[Point],
    axes: tuple[str, str],
    texts: tuple[Text, Text],
    *,
    higher_is_better: bool,
    description: str,
) -> Html:
    """Points by cost (logarithmic) and quality, better ones up and to the left, with the Pareto front as steps."""
    height, top, left, bottom = 310.0, 26.0, 58.0, 262.0
    wide = max(p.x for p in points) > 1.6 * min(p.x for p in points)
    x = covering([p.x for p in points], left + 6, WIDTH - 12, logarithmic=wide)
    y = _quality_scale(points, bottom, top, higher_is_better)
    parts = [text(2, 12, axes[1], "s"), text(WIDTH, height - 8, axes[0], "s e")]
    for value in y.ticks(5):
        parts += [line(left, y(value), WIDTH, y(value), "grid"), text(left - 6, y(value) + 4, texts[1](value), "s e")]
    for value in x.ticks(3):
        parts += [
            line(x(value), bottom, x(value), bottom + 5, "axis"),
            text(x(value), bottom + 18, texts[0](value), "s m"),
        ]
    parts.append(line(left, bottom, WIDTH, bottom, "axis"))
    parts.append(path(_stairs(pareto(points, higher_is_better=higher_is_better), x, y), "front"))
    for p in points:
        if p.x_interval:
            parts.append(whisker(x(p.x_interval[0]), y(p.y), x(p.x_interval[1]), y(p.y), p.colour))
        if p.y_interval:
            parts.append(whisker(x(p.x), y(p.y_interval[0]), x(p.x), y(p.y_interval[1]), p.colour))
    parts += [
        mark(p.shape, x(p.x), y(p.y), p.colour, f"{p.label}: {texts[0](p.x)}, {texts[1](p.y)}", 5.5) for p in points
    ]
    parts += _labels(points, x, y, (left, top, bottom))
    return drawing(height, description, parts)


def _quality_scale(points: Sequence[Point], bottom: float, top: float, higher_is_better: bool) -> Scale:
    """Holds the intervals too, as far as they are no wider than three times what lies between the points."""
    values = [p.y for p in points]
    spread = (max(values) - min(values)) or abs(values[0]) * 0.05 or 0.05
    ends = [end for p in points if p.y_interval for end in p.y_interval]
    kept = [min(max(end, min(values) - 3 * spread), max(values) + 3 * spread) for end in ends]
    start, end = (bottom, top) if higher_is_better else (top, bottom)
    return covering([*values, *kept], start, end)


def _stairs(front: Sequence[Point], x: Scale, y: Scale) -> list[tuple[float, float]]:
    corners = [(x(front[0].x), y(front[0].y))]
    for p in front[1:]:
        corners += [(x(p.x), corners[-1][1]), (x(p.x), y(p.y))]
    return [*corners, (WIDTH, corners[-1][1])]


def _labels(points: Sequence[Point], x: Scale, y: Scale, frame: tuple[float, float, float]) -> list[Html]:
    """Names beside their points where nothing else lies; a name that finds no room is in the legend alone."""
    left, top, bottom = frame
    taken = [(x(p.x) - 6, y(p.y) - 6, x(p.x) + 6, y(p.y) + 6) for p in points]
    parts = []
    for p in points:
        words = shortened(p.label, 190, 11)
        width = text_width(words, 11)
        for dx, dy in (
            (9, 4),
            (-9 - width, 4),
            (-width / 2, -11),
            (-width / 2, 20),
            (9, -8),
            (9, 17),
            (-9 - width, -8),
        ):
            at_x, at_y = x(p.x) + dx, y(p.y) + dy
            box = (at_x, at_y - 10, at_x + width, at_y + 2)
            inside = box[0] >= left and box[2] <= WIDTH and box[1] >= top - 10 and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(Html(f'<g class="m{p.colour % COLOURS}">{text(at_x, at_y, words, "halo s")}</g>'))
                break
    return parts


Box = tuple[float, float, float, float]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def dots(rows: Sequence[tuple[str, Sequence[Dot]]], axis: Text, description: str) -> Html:
    """Values of several models in each of several rows, with intervals: one line per row, its name above it."""
    pitch, bottom = 34.0, 24.0
    shown = [dot for _, some in rows for dot in some]
    ends = [end for dot in shown for end in (dot.interval or ())]
    x = covering([*(dot.value for dot in shown), *ends], 8, WIDTH - 8)
    height = pitch * len(rows) + bottom
    parts = []
    for value in x.ticks(4):
        parts += [line(x(value), 4, x(value), height - bottom, "grid"), text(x(value), height - 6, axis(value), "s m")]
    for index, (name, some) in enumerate(rows):
        y = pitch * index + 25
        parts.append(text(2, y - 11, shortened(name, WIDTH - 8), "halo"))
        if some:
            values = [x(dot.value) for dot in some]
            parts.append(line(min(values), y, max(values), y, "axis"))
        for place, dot in enumerate(some):
            at = y + (place - (len(some) - 1) / 2) * 2.5
            if dot.interval:
                parts.append(whisker(x(dot.interval[0]), at, x(dot.interval[1]), at, dot.colour))
        parts += [mark(dot.shape, x(dot.value), y, dot.colour, dot.title, 4.6) for dot in some]
    return drawing(height, description, parts)


def waterfall(steps: Sequence[Step], axis: Text, description: str, *, from_zero: bool) -> Html:
    """What each step gained or lost: a bar from the value before to its own, its name and its value above."""
    pitch, bottom = 38.0, 24.0
    values = [v for step in steps for v in (step.value, step.start, *(step.interval or ())) if v is not None]
    # Bars of lengths that compare begin at zero; where little changes the axis begins near it, and says so by its marks.
    x = Scale(0, max(values) * 1.02 or 1, 4, WIDTH - 8) if from_zero else covering(values, 4, WIDTH - 8)
    height = pitch * len(steps) + bottom
    parts = []
    for value in x.ticks(4):
        anchor = "s" if x(value) < 14 else "s e" if x(value) > WIDTH - 22 else "s m"
        parts += [line(x(value), 2, x(value), height - bottom, "grid"), text(x(value), height - 6, axis(value), anchor)]
    for index, step in enumerate(steps):
        y = pitch * index + 20
        begin = x(step.start) if step.start is not None else x.start
        end = x(step.value)
        kind = "same" if step.better is None else "up" if step.better else "down"
        told = f"{step.value_text}  {step.change}".rstrip()
        parts.append(text(2, y - 5, shortened(step.label, WIDTH - text_width(told) - 14), "halo"))
        parts.append(text(WIDTH - 2, y - 5, told, "halo s e"))
        parts.append(rect(min(begin, end), y, abs(end - begin), 11, kind, f"{step.label}: {told}"))
        parts.append(line(end, y - 2, end, y + 13, "goal"))
        if step.interval:
            parts.append(line(x(step.interval[0]), y + 5.5, x(step.interval[1]), y + 5.5, "axis"))
        if index + 1 < len(steps) and steps[index + 1].start == step.value:
            parts.append(line(end, y + 13, end, y + pitch, "axis dash"))
    return drawing(height, description, parts)


def ridges(spreads: Sequence[Spread], low: float, high: float, axis: Text, description: str) -> Html:
    """Distributions over a logarithmic axis, one model below the other, with their p50 (line) and p90 (dashed)."""
    pitch, bottom, tall = 52.0, 24.0, 28.0
    x = Scale(low, high, 4, WIDTH - 8, logarithmic=True)
    height = pitch * len(spreads) + bottom
    parts = []
    for value in x.ticks(3):
        parts += [line(x(value), 2, x(value), height - bottom, "grid"), text(x(value), height - 6, axis(value), "s m")]
    for index, spread in enumerate(spreads):
        base = pitch * index + 48
        step = (x.end - x.start) / len(spread.density)
        heights = [base - share * tall for share in spread.density]
        outline = "".join(f"V{top:.1f}H{x.start + (place + 1) * step:.1f}" for place, top in enumerate(heights))
        parts += [
            Html(f'<g class="m{spread.colour % COLOURS}">'),
            Html(f'<path d="M{x.start:g} {base:g}{outline}V{base:g}Z" class="f area"/>'),
            line(x(spread.p50), base, x(spread.p50), base - tall - 2, "k2"),
            line(x(spread.p90), base, x(spread.p90), base - tall - 2, "k dash"),
            Html("</g>"),
            line(x.start, base, x.end, base, "axis"),
            text(2, base - tall - 6, shortened(spread.label, WIDTH - text_width(spread.remark, 11) - 12), "halo"),
            text(WIDTH - 2, base - tall - 6, spread.remark, "halo s e"),
        ]
    return drawing(height, description, parts)


def shares(rows: Sequence[Share], description: str, *, compact: bool = False) -> Html:
    """How much of a whole each bar is: the whole is drawn in grey."""
    pitch = 27.0 if compact else 34.0
    parts = []
    for index, row in enumerate(rows):
        y = pitch * index + 15
        parts.append(text(2, y - 3, shortened(row.label, WIDTH - text_width(row.remark, 11) - 12), "halo"))
        parts.append(text(WIDTH - 2, y - 3, row.remark, "halo s e"))
        parts.append(rect(2, y + 1, WIDTH - 4, 7, "track"))
        inner = rect(2, y + 1, (WIDTH - 4) * min(max(row.share, 0.0), 1.0), 7, "f", f"{row.label}: {row.remark}")
        parts.append(Html(f'<g class="m{row.colour % COLOURS}">{inner}</g>'))
    return drawing(pitch * len(rows) + 2, description, parts)


def bullet(value: float, bounds: Interval, goal: float, description: str, kind: str) -> Html:
    """A measurement with its bounds against a goal (the upright line)."""
    x = covering([value, goal, *(bounds or ())], 4, 176)
    parts = [line(4, 9, 176, 9, "grid"), line(x(goal), 1, x(goal), 17, "goal")]
    body = [rect(x(bounds[0]), 6, x(bounds[1]) - x(bounds[0]), 6, f"{kind} area")] if bounds else []
    body.append(Html(f'<circle cx="{x(value):.1f}" cy="9" r="4.5" class="{kind}"/>'))
    return drawing(18, description, [*parts, *body], width=180)
