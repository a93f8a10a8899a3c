"""Views of training pictures: pure functions of a few numbers per example, without mirror images (left stays left)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SHIFT = 1 / 8
"""Farthest shift, as a share of the side."""
SMALLEST_AREA = 0.6
"""Smallest share of the picture that a crop keeps."""
COLOUR = 0.1
"""Farthest change of light and contrast, as a share."""
REVISION = 1
"""Raised where the same draws give other pictures."""


def augment_pictures(
    pictures: NDArray[np.uint8],
    augment: Literal["shift", "crop"] | str,
    draws: Mapping[str, NDArray[np.float64]],
    sizes: NDArray[np.int32] | None = None,
) -> NDArray[np.uint8]:
    """Altered pictures of the same shape.

    Args:
        pictures: uint8 [b, h, w, 3].
        augment: ``shift``: moved, the edge repeated; ``crop``: a part, resized. Both change light and contrast a little.
        draws: ``x``, ``y``, ``area``, ``light``, ``gap``: a number in [0, 1) per picture, [b] each.
        sizes: the sides [b, 2] of the part that each picture fills, from the upper left: nothing else is altered. All of
            it where None.
    """
    if sizes is not None:
        result = pictures.copy()
        for height, width in np.unique(sizes, axis=0).tolist():
            members = np.flatnonzero((sizes == (height, width)).all(axis=1))
            own = {stream: draw[members] for stream, draw in draws.items()}
            result[members, :height, :width] = augment_pictures(pictures[members, :height, :width], augment, own)
        return result
    moved = _crop(pictures, draws) if augment == "crop" else _shift(pictures, draws)
    return _colour(moved, draws)


def _shift(pictures: NDArray[np.uint8], draws: Mapping[str, NDArray[np.float64]]) -> NDArray[np.uint8]:
    _, height, width, _ = pictures.shape
    rows = _moved(draws["y"], height)
    columns = _moved(draws["x"], width)
    each = np.arange(len(pictures))[:, None, None]
    moved: NDArray[np.uint8] = pictures[each, rows[:, :, None], columns[:, None, :]]
    return moved


def _moved(draw: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Where each row (or column) of the result is read, [b, side]; the edge is repeated."""
    reach = round(side * SHIFT)
    by = np.floor(draw * (2 * reach + 1)).astype(np.int64) - reach
    read: NDArray[np.int64] = np.clip(np.arange(side)[None] + by[:, None], 0, side - 1)
    return read


def _crop(pictures: NDArray[np.uint8], draws: Mapping[str, NDArray[np.float64]]) -> NDArray[np.uint8]:
    from PIL import Image

    _, height, width, _ = pictures.shape
    side = np.sqrt(SMALLEST_AREA + (1 - SMALLEST_AREA) * draws["area"])
    left, top = draws["x"] * (1 - side) * width, draws["y"] * (1 - side) * height
    result = np.empty_like(pictures)
    for i, picture in enumerate(pictures):
        box = (left[i], top[i], left[i] + side[i] * width, top[i] + side[i] * height)
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box)
        result[i] = np.asarray(resized)
    return result


def _colour(pictures: NDArray[np.uint8], draws: Mapping[str, NDArray[np.float64]]) -> NDArray[np.uint8]:
    """Contrast about mid-grey, then light, by a table of 256 values per picture."""
    contrast = 1 + COLOUR * (2 * draws["gap"] - 1)
    light = 1 + COLOUR * (2 * draws["light"] - 1)
    values = np.arange(256)[None]
    table = ((values - 128) * contrast[:, None] + 128) * light[:, None]
    tables = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.stack([np.take(one, picture) for one, picture in zip(tables, pictures, strict=True)])
