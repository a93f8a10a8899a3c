"""How long the axes of a graph that vary may be: kept inside the ONNX file, for runtimes that build for a range."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

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


_METADATA_FIELD = 14
"""``metadata_props`` of ``ModelProto`` in onnx.proto3; in an entry of it 1 is the key and 2 the value."""


def read_file_bounds(path: Path) -> Bounds:
    """The bounds in an ONNX file, without the onnx library, which a device may not have, and without reading weights."""
    with path.open("rb") as file:
        for number, content in _fields(file, path.stat().st_size, _METADATA_FIELD):
            if number == _METADATA_FIELD:
                entry = dict(_entry(content))
                if entry.get(1) == KEY.encode():
                    found = json.loads(entry[2])
                    return {axis: (int(low), int(high)) for axis, (low, high) in found.items()}
    return {}


def _fields(file: IO[bytes], size: int, wanted: int) -> Iterator[tuple[int, bytes]]:
    """Fields of a protobuf message, the content of ``wanted`` alone: the others are skipped."""
    while file.tell() < size:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _varint(file)
        elif wire == 2:
            length = _varint(file)
            if number == wanted:
                yield number, file.read(length)
            else:
                file.seek(length, 1)
        elif wire in (1, 5):
            file.seek(8 if wire == 1 else 4, 1)
        else:
            return  # no protobuf: what opens the file next says so


def _entry(content: bytes) -> Iterator[tuple[int, bytes]]:
    for wanted in (1, 2):
        yield from _fields(BytesIO(content), len(content), wanted)


def _varint(file: IO[bytes]) -> int:
    value, shift = 0, 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
        shift += 7
    return value
