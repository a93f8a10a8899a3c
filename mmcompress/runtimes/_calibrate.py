"""What a graph's operators see of real data: one histogram per tensor, and per channel the largest and the mean value.

Memory holds the model, at most 256 MiB of the activations of one batch, and 16 KiB per tensor, whatever the number of
examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import StageError
from mmcompress.families import Feeds
from mmcompress.runtimes._histogram import MASKED, Histogram

if TYPE_CHECKING:
    import onnx

GROUP_BYTES = 256 * 2**20
"""Activations that are read from one run: more tensors take more runs."""
FIRST_GROUP = 16
"""Tensors that are read in one run while their sizes are not known."""
INLINE_BYTES = 1_500_000_000


@dataclass
class Seen:
    """What a tensor held over all batches."""

    histogram: Histogram = field(default_factory=Histogram)
    largest: NDArray[np.float64] | None = None
    """Magnitude per channel [c]; None where the number of channels changes."""
    total: NDArray[np.float64] | None = None
    """Sum per channel [c]."""
    rows: int = 0
    """Values per channel."""
    bytes: int = 0
    """Of the last batch."""

    @property
    def mean(self) -> NDArray[np.float64] | None:
        """Per channel [c]."""
        return None if self.total is None or self.rows == 0 else self.total / self.rows

    def add(self, values: NDArray[np.float32], axis: int) -> None:
        """Take in a batch whose channels stand at ``axis``.

        Raises:
            ValueError: a value is not a number.
        """
        self.histogram.add(values)
        self.bytes = values.nbytes
        by_channel = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        if by_channel.size == 0 or (self.rows and self.largest is None):
            return
        if self.largest is not None and len(self.largest) != by_channel.shape[1]:
            self.largest = self.total = None
            return
        magnitude = np.maximum(by_channel.max(axis=0), -by_channel.min(axis=0)).astype(np.float64)
        magnitude[magnitude >= MASKED] = 0.0
        total = by_channel.sum(axis=0, dtype=np.float64)
        self.largest = magnitude if self.largest is None else np.maximum(self.largest, magnitude)
        self.total = total if self.total is None else self.total + total
        self.rows += len(by_channel)


Statistics = dict[str, Seen]


def observe(model: onnx.ModelProto, tensors: Mapping[str, int], batches: Iterable[Feeds], where: str) -> Statistics:
    """Run a graph on batches and gather what its tensors held.

    Args:
        model: The graph.
        tensors: Names, with the axis that their channels stand at.
        batches: What the graph is fed.
        where: The graph's name, for messages.

    Raises:
        StageError: there are no batches, or a tensor holds what is no number.
    """
    seen: Statistics = {name: Seen() for name in tensors}
    inputs = {value.name for value in model.graph.input}
    names = [name for name in tensors if name not in inputs]
    count = 0
    with session_with_outputs(model, names) as session:
        for feeds in batches:
            count += 1
            for name in tensors.keys() & feeds.keys():
                _take(seen[name], feeds[name], tensors[name], name, where)
            for group in list(_groups(seen, names)):
                for name, values in zip(group, session.run(group, feeds), strict=True):
                    _take(seen[name], values, tensors[name], name, where)
    if not count:
        raise StageError(f"{where}: no calibration examples reach this graph\n  Give training data with its inputs.")
    return seen


def _groups(seen: Statistics, names: list[str]) -> Iterator[list[str]]:
    """Tensors that are read in one run: as many as stay within :data:`GROUP_BYTES`, by their size in the last batch.

    Of a first batch no size is known, and few are read at a time.
    """
    group: list[str] = []
    size = 0
    for name in names:
        needed = seen[name].bytes or GROUP_BYTES // FIRST_GROUP
        if group and size + needed > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


def _take(seen: Seen, values: Any, axis: int, name: str, where: str) -> None:
    try:
        seen.add(values, axis)
    except ValueError as error:
        raise StageError(f"{where}: {name} holds what is {error} for calibration data") from error


@contextmanager
def session_with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> Iterator[Any]:
    """An ONNX Runtime session of a graph that also gives tensors inside it."""
    import tempfile

    import onnx

    from mmcompress.runtimes.onnxruntime import load_library

    onnxruntime = load_library()
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="mmcompress-calibrate-") as folder:
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, path, save_as_external_data=watched.ByteSize() > INLINE_BYTES)
        del watched
        yield onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
