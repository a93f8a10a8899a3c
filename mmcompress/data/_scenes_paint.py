"""Drawing a generated scene with Pillow, at three times the size, on a background with clutter."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmcompress.data._scenes_world import COLOURS, SHAPES, Scene, Thing, pick

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.Image import Image

_OVERSAMPLE = 3
_RGB = {
    "red": (222, 30, 38),
    "orange": (250, 138, 20),
    "yellow": (246, 222, 40),
    "green": (40, 160, 60),
    "blue": (40, 84, 226),
    "purple": (138, 48, 190),
    "pink": (250, 130, 190),
    "brown": (136, 84, 40),
}
RADII = (0.085, 0.125, 0.175)
"""By size, as a share of the picture's side; a cell of the grid is a third of it."""
INNER = 0.088
AROUND = 0.195
"""Radii of an object inside another and of the one around it."""

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def paint(
    scene: Scene, size: int, clutter: float, rng: random.Random, shift: Mapping[int, tuple[float, float]] | None = None
) -> Image:
    """Draw a scene as an RGB picture of ``size`` by ``size`` pixels; place, colour and shape vary a little.

    ``shift`` moves objects, by index, that many cells to the right and down.
    """
    from PIL import Image, ImageDraw

    side = size * _OVERSAMPLE
    dark = rng.random() < 0.25
    level = 14 + 26 * rng.random() if dark else 188 + 62 * rng.random()
    background = _rgb(level + (rng.random() - 0.5) * 24 for _ in range(3))
    picture = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(picture)
    _clutter(draw, side, clutter, rng)
    # The object inside another comes last; otherwise the order says nothing.
    order = sorted(range(len(scene.things)), key=lambda i: (i == scene.inner, rng.random()))
    anchor: dict[int, tuple[float, float]] = {}
    for i in order:
        thing = scene.things[i]
        held, holds = i == scene.inner, scene.inner is not None and i == scene.main
        jitter = 0.015 if held else 0.06
        right, down = (shift or {}).get(i, (0.0, 0.0))
        x, y = anchor[scene.main] if held else ((thing.column + 0.5 + right) / 3, (thing.row + 0.5 + down) / 3)
        x, y = (centre + (rng.random() - 0.5) * jitter for centre in (x, y))
        radius = (INNER if held else AROUND if holds else RADII[thing.size]) * (0.94 + 0.12 * rng.random())
        x, y = (min(max(centre, radius * 0.9), 1 - radius * 0.9) for centre in (x, y))
        anchor[i] = (x, y)
        _object(draw, thing, (x * side, y * side), radius * side, rng)
    return _expose(picture.reduce(_OVERSAMPLE), clutter, rng)


def _rgb(channels: Iterable[float]) -> Colour:
    r, g, b = (max(0, min(255, round(channel))) for channel in channels)
    return r, g, b


def _clutter(draw: ImageDraw.ImageDraw, side: int, clutter: float, rng: random.Random) -> None:
    """Thin lines and dots, far smaller than any object, in any colour."""
    for _ in range(int(rng.random() * (1 + 6 * clutter))):
        ends = [rng.random() * side for _ in range(4)]
        draw.line(ends, fill=_any_colour(rng), width=1 + int(rng.random() * side / 90))
    for _ in range(int(rng.random() * (1 + 14 * clutter))):
        x, y, radius = rng.random() * side, rng.random() * side, (0.006 + 0.016 * rng.random()) * side
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_any_colour(rng))


def _any_colour(rng: random.Random) -> Colour:
    if rng.random() < 0.5:
        return _rgb(rng.random() * 255 for _ in range(3))
    return _RGB[pick(rng, COLOURS)]


def _expose(picture: Image, clutter: float, rng: random.Random) -> Image:
    """A slope of brightness over the picture, and noise."""
    from PIL import Image

    pixels = np.asarray(picture, dtype=np.float32)
    ramp = np.linspace(-1.0, 1.0, pixels.shape[0], dtype=np.float32)
    angle, slope = rng.random() * 2 * math.pi, 0.12 * clutter * rng.random()
    light = 1.0 + slope * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])
    light = light * (1.0 + 0.16 * clutter * (rng.random() - 0.5))
    noise = np.random.default_rng(int(rng.random() * 2**53)).standard_normal(pixels.shape, dtype=np.float32)
    pixels = pixels * light[:, :, None] + noise * (10.0 * clutter * rng.random())
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


# --- shapes ----------------------------------------------------------------------------------------------------------


def _object(
    draw: ImageDraw.ImageDraw,
    thing: Thing,
    centre: tuple[float, float],
    radius: float,
    rng: random.Random,
) -> None:
    shade = 0.9 + 0.16 * rng.random()
    colour = _rgb(channel * shade + (rng.random() - 0.5) * 20 for channel in _RGB[COLOURS[thing.colour]])
    turn = (rng.random() - 0.5) * math.radians(24)
    name, (x, y) = SHAPES[thing.shape], centre
    if name in ("circle", "ring"):
        box = (x - radius * 0.95, y - radius * 0.95, x + radius * 0.95, y + radius * 0.95)
        if name == "circle":
            draw.ellipse(box, fill=colour)
        else:
            draw.ellipse(box, outline=colour, width=round(radius * 0.36))
        return
    cos, sin = math.cos(turn), math.sin(turn)
    draw.polygon(
        [(x + radius * (px * cos - py * sin), y + radius * (px * sin + py * cos)) for px, py in OUTLINES[name]],
        fill=colour,
    )


def _star() -> Points:
    return [
        (
            (1.1 if k % 2 == 0 else 0.45) * math.sin(k * math.pi / 5),
            -(1.1 if k % 2 == 0 else 0.45) * math.cos(k * math.pi / 5),
        )
        for k in range(10)
    ]


def _heart() -> Points:
    points = []
    for k in range(28):
        t = 2 * math.pi * k / 28
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y + 2.5) / 15))
    return points


def _cross() -> Points:
    a, b = 1.0, 0.32
    return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]


OUTLINES: dict[str, Points] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "diamond": [(0.0, -1.1), (0.78, 0.0), (0.0, 1.1), (-0.78, 0.0)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
}
