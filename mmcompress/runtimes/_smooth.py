"""Changes to a float graph that keep its function and make it lose less in INT8, and biases that make up for rounding."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmcompress.runtimes._calibrate import Statistics

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float64]


class Constants:
    """The initializers of a graph; a changed one gets a name of its own, so that other readers keep theirs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._found = {value.name: value for value in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str) -> NDArray[np.float32]:
        """The value."""
        from onnx import numpy_helper

        value: NDArray[np.float32] = numpy_helper.to_array(self._found[name])
        return value

    def is_vector(self, name: str, length: int) -> bool:
        """Whether a name is that of one float per channel."""
        value = self._found.get(name)
        return value is not None and value.data_type == 1 and list(value.dims) == [length]

    def replace(self, node: onnx.NodeProto, position: int, value: Floats) -> None:
        """Give a node another constant."""
        from onnx import numpy_helper

        name = f"{node.name or node.output[0]}_{position}_of_{node.input[position]}"
        made = numpy_helper.from_array(value.astype(np.float32), name)
        self.model.graph.initializer.append(made)
        self._found[name] = self.model.graph.initializer[-1]
        node.input[position] = name

    def drop_unused(self) -> None:
        """Remove what no node reads any more."""
        used = {name for node in self.model.graph.node for name in node.input}
        used |= {value.name for value in self.model.graph.output}
        kept = [value for value in self.model.graph.initializer if value.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)


@dataclass(frozen=True)
class Fold:
    """An activation whose channels can be scaled in what makes it, and back in the weights of all that read it."""

    tensor: str
    constants: tuple[tuple[onnx.NodeProto, int], ...]
    """Node and input: constants of one value per channel that are divided by the scales."""
    readers: tuple[onnx.NodeProto, ...]


def smooth(model: onnx.ModelProto, statistics: Statistics, chosen: Collection[str], alpha: float) -> int:
    """SmoothQuant, in place: divide the channels of activations by s and multiply the weights that read them by s.

    ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` (Xiao et al. 2022, arXiv:2211.10438, equation 4). Gives how many
    activations were scaled: those that come straight from a LayerNormalization, or from a product (and a sum) with a
    constant per channel, and that chosen products alone read.
    """
    constants = Constants(model)
    folds = list(foldable(model, constants, statistics, chosen))
    for fold in folds:
        largest = statistics[fold.tensor].largest
        assert largest is not None
        weights = np.max([_inputs_first(reader, constants) for reader in fold.readers], axis=0)
        scales = smoothing_scales(largest, weights, alpha)
        for node, position in fold.constants:
            constants.replace(node, position, constants.get(node.input[position]) / scales)
        for reader in fold.readers:
            weight = constants.get(reader.input[1])
            constants.replace(reader, 1, weight * (scales if _transposed(reader) else scales[:, None]))
    constants.drop_unused()
    return len(folds)


def smoothing_scales(activations: Floats, weights: Floats, alpha: float) -> Floats:
    """Equation 4 of SmoothQuant for the largest magnitudes per channel [c] of both; 1 where either is zero."""
    known = (activations > 0) & (weights > 0)
    raised = np.where(known, activations, 1.0) ** alpha / np.where(known, weights, 1.0) ** (1.0 - alpha)
    return np.where(known, np.clip(raised, 1e-5, 1e5), 1.0)


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _inputs_first(node: onnx.NodeProto, constants: Constants) -> Floats:
    """The largest magnitude of the weights of each input channel."""
    weight = np.abs(constants.get(node.input[1])).astype(np.float64)
    return np.asarray(weight.max(axis=0 if _transposed(node) else 1))


def foldable(
    model: onnx.ModelProto, constants: Constants, statistics: Statistics, chosen: Collection[str]
) -> Iterator[Fold]:
    """Activations that can be scaled by channel without changing the function."""
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    for name, seen in statistics.items():
        reading = readers.get(name, [])
        if seen.largest is None or name in outputs or name not in producers or not reading:
            continue
        plain = all(node.op_type in ("MatMul", "Gemm") and node.name in chosen for node in reading)
        if not plain or any(node.input[0] != name or name in node.input[1:] for node in reading):
            continue
        made = _constants_of(producers[name], producers, readers, constants, len(seen.largest))
        if made:
            yield Fold(name, made, tuple(reading))


def _constants_of(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    constants: Constants,
    channels: int,
) -> tuple[tuple[onnx.NodeProto, int], ...]:
    """The constants per channel that scale an activation when all of them are divided; none where there are not such."""
    if node.op_type == "LayerNormalization":
        positions = [position for position in (1, 2) if len(node.input) > position and node.input[position]]
        fits = all(constants.is_vector(node.input[position], channels) for position in positions)
        return tuple((node, position) for position in positions) if fits else ()
    vectors = [
        position for position in (0, 1) if len(node.input) == 2 and constants.is_vector(node.input[position], channels)
    ]
    if len(vectors) != 1:
        return ()
    if node.op_type == "Mul":
        return ((node, vectors[0]),)
    before = producers.get(node.input[1 - vectors[0]])
    if node.op_type != "Add" or before is None or before.op_type != "Mul" or len(readers[before.output[0]]) != 1:
        return ()
    below = _constants_of(before, producers, readers, constants, channels)
    return (*below, (node, vectors[0])) if below else ()


# --- biases --------------------------------------------------------------------------------------------------------


def correct_biases(
    model: onnx.ModelProto, statistics: Statistics, chosen: Collection[str], levels: int, per_channel: bool
) -> int:
    """Add to biases, in place, what rounding the weights takes from the mean output; gives how many were changed.

    The mean of ``(W - W_rounded) x`` over calibration data (Nagel et al. 2019, arXiv:1906.04721, section 4.2). A product
    without a bias has nothing to change.
    """
    constants = Constants(model)
    sums = {name: node for node in model.graph.node if node.op_type == "Add" for name in node.input}
    changed = 0
    for node in list(model.graph.node):
        seen = statistics.get(node.input[0]) if node.name in chosen else None
        if seen is None or seen.mean is None or node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = constants.get(node.input[1]).astype(np.float64)
        weight = weight.T if _transposed(node) else weight
        lost = seen.mean @ (weight - rounded(weight, levels, per_channel))
        target, position = (node, 2) if node.op_type == "Gemm" else (sums.get(node.output[0]), None)
        if target is None:
            continue
        if position is None:
            position = 1 if target.input[0] == node.output[0] else 0
        if len(target.input) > position and constants.is_vector(target.input[position], weight.shape[1]):
            constants.replace(target, position, constants.get(target.input[position]) + lost)
            changed += 1
    constants.drop_unused()
    return changed


def rounded(weight: Floats, levels: int, per_channel: bool) -> Floats:
    """Weights [k, n] as symmetric integers of ``levels`` steps to either side hold them, with a scale per column or one."""
    scales = np.abs(weight).max(axis=0 if per_channel else None, keepdims=True) / levels
    scales = np.where(scales == 0, 1.0, scales)
    return np.asarray(np.rint(weight / scales) * scales)
