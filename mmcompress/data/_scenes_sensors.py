"""What else is measured of a generated scene: columns of a table that tell it in part, and a range sensor's sweep."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from mmcompress.data._scenes_paint import AROUND, INNER, OUTLINES, RADII
from mmcompress.data._scenes_world import COLOURS, SHAPES, Scene

TABLE_COLUMNS = ("objects", "inside", "big_row", "big_column", "big_corners", "big_warmth")
"""Number of objects; 1 where one lies inside another; and of the big object its row and column (0 to 2), its corners,
and how warm its colour is (-1 to 1, with an error of 0.1), which two colours at a time nearly share."""
_CORNERS = {"circle": 0, "ring": 0, "heart": 1, "triangle": 3, "square": 4, "diamond": 4, "star": 10, "cross": 12}
_WARMTH = {
    **{"red": 1.0, "orange": 0.9, "yellow": 0.4, "brown": 0.5},
    **{"pink": 0.1, "purple": -0.3, "green": -0.4, "blue": -1.0},
}
_BEAM_ERROR = 0.01
"""Standard error of the range sensor, in sides of the picture."""


def table_of(scene: Scene, rng: random.Random) -> NDArray[np.float32]:
    """The columns :data:`TABLE_COLUMNS` of a scene, float32 [6]: place and number in full, shape and colour in part."""
    big = scene.things[scene.main]
    warmth = _WARMTH[COLOURS[big.colour]] + 0.1 * _normal(rng)
    values = (len(scene.things), scene.inner is not None, big.row, big.column, _CORNERS[SHAPES[big.shape]], warmth)
    return np.asarray(values, dtype=np.float32)


def sweep(scene: Scene, steps: int, rng: random.Random) -> NDArray[np.float32]:
    """A range sensor that looks up from the lower edge and goes from left to right: float32 [steps, 1].

    Each reading is the distance to the lowest object above, in sides of the picture (1 where there is none), at the
    middle of its cell and unturned, with an error of 0.01.
    """
    across = (np.arange(steps) + 0.5) / steps
    reading = np.ones(steps)
    for index, thing in enumerate(scene.things):
        holds = scene.inner is not None and index == scene.main
        radius = INNER if index == scene.inner else AROUND if holds else RADII[thing.size]
        x, y = (thing.column + 0.5) / 3, (thing.row + 0.5) / 3
        lowest = y + radius * _underside(SHAPES[thing.shape], (across - x) / radius)
        reading = np.minimum(reading, np.where(np.isnan(lowest), 1.0, 1.0 - lowest))
    error = np.asarray([_normal(rng) for _ in range(steps)])
    return np.asarray(np.clip(reading + _BEAM_ERROR * error, 0.0, None), dtype=np.float32)[:, None]


def _underside(shape: str, across: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a shape of radius 1 reaches down at each place, NaN beside it."""
    if shape in ("circle", "ring"):
        square = 0.95**2 - across**2
        return np.where(square > 0, np.sqrt(np.maximum(square, 0.0)), np.nan)
    lowest = np.full(across.shape, np.nan)
    corners = OUTLINES[shape]
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if math.isclose(x0, x1):
            continue
        share = (across - x0) / (x1 - x0)
        lowest = np.where((share >= 0) & (share <= 1), np.fmax(lowest, y0 + share * (y1 - y0)), lowest)
    return lowest


def _normal(rng: random.Random) -> float:
    """A standard normal number by Box and Muller, from ``random()`` alone, which never changes."""
    return math.sqrt(-2.0 * math.log(1.0 - rng.random())) * math.cos(2.0 * math.pi * rng.random())
