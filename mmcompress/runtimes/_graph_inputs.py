"""Inputs for a graph that comes without any: drawn numbers of the types and shapes that it declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import Feeds

Declared = Mapping[str, tuple[str, Sequence[int | str | None]]]
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_WHOLE = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_OTHER_AXES = 16


def drawn_feeds(inputs: Declared, graph: Path, batch: int, seed: int) -> Feeds:
    """Feeds of ``batch`` examples: the first axis that varies is the batch, others that vary have 16 places.

    Numbers are normal, whole numbers 0 or 1 (valid as a token and as a mask): enough for a time, which in a graph without
    branches does not depend on them, and no ground for anything else.

    Raises:
        InputError: an input of a type that cannot be drawn.
    """
    random = np.random.default_rng(seed)
    feeds: dict[str, NDArray[np.generic]] = {}
    for name, (kind, shape) in inputs.items():
        sizes = [
            axis if isinstance(axis, int) and axis > 0 else batch if place == 0 else _OTHER_AXES
            for place, axis in enumerate(shape)
        ]
        if kind in _FLOATS:
            feeds[name] = random.standard_normal(sizes).astype(_FLOATS[kind])
        elif kind in _WHOLE:
            feeds[name] = random.integers(0, 2, sizes).astype(_WHOLE[kind])
        else:
            raise InputError(
                f"{graph}: the input {name!r} is a {kind}, which cannot be drawn\n  Gate the package in its place."
            )
    return feeds
