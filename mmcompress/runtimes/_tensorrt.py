"""What TensorRT and TensorRT for RTX share. They have one Python API, and both read the precision from the graph alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mmcompress.errors import StageError
from mmcompress.runtimes import Scheme
from mmcompress.runtimes._axes import read_bounds

Shape = tuple[int, ...]
Range = tuple[int, int, int]
"""Shortest, the one that is optimised for, longest."""
BATCH: Range = (1, 1, 64)
"""Where no other is given; packages ask for up to 64 examples at a time."""

SCHEME = Scheme(
    activations="int8",
    symmetric_activations=True,
    per_channel=True,
    reduce_range=False,
    operators=("MatMul", "Gemm", "Conv"),
    quantize_bias=False,
    float_outputs=("MatMul", "Gemm", "Conv"),
    tables="dequantize",
)
"""What its parser and its builder accept: zero points of zero, biases in float, and INT8 constants that nothing but
``DequantizeLinear`` reads."""

_EXPECTED = (
    "Expected: standard operators; QuantizeLinear and DequantizeLinear in pairs, INT8 with zero points of zero; "
    "biases in float."
)


def build_engine(
    trt: ModuleType, path: Path, shapes: Mapping[str, Range], configure: Callable[[Any], None]
) -> tuple[bytes, dict[str, list[Shape]]]:
    """Parse an ONNX graph as a strongly typed network and build its engine.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        path: The graph.
        shapes: How long axes may be, by their names; others take what the graph says of itself.
        configure: Called with the builder's configuration: says for which machine.

    Returns:
        The serialized engine, and the smallest, the optimised and the largest shape of each input by name.

    Raises:
        StageError: an operator is refused (named), the builder fails or runs out of memory, or nothing says how long
            an axis may be.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise StageError(_refusals(trt, path, parser))
    profile = profile_of(path, shapes)
    config = builder.create_builder_config()
    configure(config)
    optimization = builder.create_optimization_profile()
    for name, ranges in profile.items():
        optimization.set_shape(name, *ranges)
    if config.add_optimization_profile(optimization) < 0:
        raise StageError(f"{path.name}: {trt.__name__} refuses the shapes {profile}: {logger.last()}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        words = logger.last()
        if "memory" in words.lower():
            raise StageError(f"{path.name}: {trt.__name__} ran out of memory while it built the engine: {words}")
        raise StageError(f"{path.name}: {trt.__name__} cannot build the engine: {words}\n  {_EXPECTED}")
    return bytes(engine), profile


def profile_of(path: Path, shapes: Mapping[str, Range]) -> dict[str, list[Shape]]:
    """The smallest, the optimised and the largest shape of each input.

    Axes that vary take, in this order: what ``shapes`` says of their name; for ``batch``, :data:`BATCH`; what the graph
    was checked with when it was exported, optimised for the middle.

    Raises:
        StageError: none of these knows an axis, or ``shapes`` names one that the graph does not have.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    known = {"batch": BATCH}
    known |= {axis: (low, (low + high + 1) // 2, high) for axis, (low, high) in read_bounds(model).items()}
    known |= shapes
    profile = {}
    for value in model.graph.input:
        dims = [(axis.dim_param, axis.dim_value) for axis in value.type.tensor_type.shape.dim]
        unknown = [name for name, _ in dims if name and name not in known]
        if unknown:
            raise StageError(
                f"{path.name}: nothing says how long the axis {unknown[0]!r} of {value.name} may be\n"
                f"  Give the target `shapes: {{{unknown[0]}: [shortest, usual, longest]}}`."
            )
        profile[value.name] = [tuple(known[name][which] if name else size for name, size in dims) for which in range(3)]
    return profile


def _refusals(trt: ModuleType, path: Path, parser: Any) -> str:
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()!r}" if error.node_name() else "the graph"
        lines.append(f"{path.name}: {trt.__name__} refuses {where}: {error.desc()}")
    return "\n".join([*(lines or [f"{path.name}: {trt.__name__} cannot parse it"]), f"  {_EXPECTED}"])


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        """Keeps errors; the libraries' other words concern their authors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def last(self) -> str:
            return self.errors[-1] if self.errors else "no reason was given"

    return Logger()
