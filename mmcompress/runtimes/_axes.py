"""How long the axes of a graph that vary may be: kept inside the ONNX file, for runtimes that build for a range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from mmcompress.families import Graph

KEY = "mmcompress.axes"
Bounds = dict[str, tuple[int, int]]
"""Shortest and longest, by the name of the axis."""


def bounds_of(graph: Graph) -> Bounds:
    """What the exported graph is checked with: the extremes over sample inputs and variants, but for the batch."""
    found: dict[str, list[int]] = {}
    for inputs in (graph.inputs, *graph.variants):
        for name, axes in graph.dynamic.items():
            for number, axis in axes.items():
                if number > 0:
                    found.setdefault(axis, []).append(int(inputs[name].shape[number]))
    return {axis: (min(lengths), max(lengths)) for axis, lengths in found.items()}


def write_bounds(model: onnx.ModelProto, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Replace a graph's metadata by the bounds of its axes."""
    del model.metadata_props[:]
    if bounds:
        model.metadata_props.add(key=KEY, value=json.dumps(bounds, sort_keys=True))


def read_bounds(model: onnx.ModelProto) -> Bounds:
    """The bounds that a graph carries; empty where it carries none."""
    for entry in model.metadata_props:
        if entry.key == KEY:
            return {axis: (int(low), int(high)) for axis, (low, high) in json.loads(entry.value).items()}
    return {}
