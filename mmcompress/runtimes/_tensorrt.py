"""What TensorRT 10 and 11 and TensorRT for RTX share: strongly typed networks, which read the precision from the graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from mmcompress.errors import InputError, StageError
from mmcompress.runtimes import Scheme
from mmcompress.runtimes._axes import read_file_bounds

Shape = tuple[int, ...]
Range = tuple[int, int, int]
"""Shortest, the one that is optimised for, longest."""
Listen = Callable[[str, int, int], None]
"""Told of the builder's phase, its steps that are done, and how many there are."""
BATCH: Range = (1, 1, 64)
"""Where no other is given; packages ask for up to 64 examples at a time."""
OLDEST = 10
"""Major version: before it, networks could not be typed by their graph."""

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
_LISTEN: ContextVar[Listen | None] = ContextVar("listen", default=None)
_TOLD_EVERY_SECONDS = 0.2


@contextmanager
def telling(listen: Listen) -> Iterator[None]:
    """Tell ``listen`` of the builder's progress while the block runs; builds take minutes on a small device."""
    token = _LISTEN.set(listen)
    try:
        yield
    finally:
        _LISTEN.reset(token)


def build_engine(
    trt: ModuleType,
    path: Path,
    shapes: Mapping[str, Range],
    configure: Callable[[Any], None],
    workspace_mib: int | None = None,
) -> tuple[bytes, dict[str, list[Shape]]]:
    """Parse an ONNX graph as a strongly typed network and build its engine.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        path: The graph.
        shapes: How long axes may be, by their names; others take what the graph says of itself.
        configure: Called with the builder's configuration: says for which machine.
        workspace_mib: What a layer may use of the GPU's memory while it runs, in MiB; all of it where none is given.

    Returns:
        The serialized engine, and the smallest, the optimised and the largest shape of each input by name.

    Raises:
        InputError: the library is older than 10.
        StageError: an operator is refused (named), the builder fails or runs out of memory, or nothing says how long
            an axis may be.
    """
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise StageError(_refusals(trt, path, parser))
    profile = profile_of(path, network, shapes)
    config = builder.create_builder_config()
    configure(config)
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * 1024 * 1024)
    listen = _LISTEN.get()
    if listen is not None:
        config.progress_monitor = _monitor(trt, path.stem, listen)
    optimization = builder.create_optimization_profile()
    for name, ranges in profile.items():
        optimization.set_shape(name, *ranges)
    if config.add_optimization_profile(optimization) < 0:
        raise StageError(f"{path.name}: {trt.__name__} refuses the shapes {profile}: {logger.last()}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise StageError(_failure(trt, path, logger.errors, workspace_mib))
    return bytes(engine), profile


def network_flags(trt: ModuleType) -> int:
    """Flags of a network whose types are the graph's: by name in TensorRT 10, the only kind where the name is gone.

    Raises:
        InputError: the library is older than 10.
    """
    major = trt.__version__.partition(".")[0]
    if trt.__name__ == "tensorrt" and major.isdigit() and int(major) < OLDEST:
        raise InputError(
            f"tensorrt {trt.__version__} is installed, and {OLDEST} or later is needed\n"
            "  JetPack 6.1 and later bring it; elsewhere: pip install --upgrade tensorrt"
        )
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def profile_of(path: Path, network: Any, shapes: Mapping[str, Range]) -> dict[str, list[Shape]]:
    """The smallest, the optimised and the largest shape of each input of a parsed network.

    Axes that vary take, in this order: what ``shapes`` says of their name; for ``batch``, :data:`BATCH`; what the graph
    was checked with when it was exported, optimised for the middle.

    Raises:
        StageError: none of these knows an axis, or ``shapes`` names one that the graph does not have.
    """
    known = {"batch": BATCH}
    known |= {axis: (low, (low + high + 1) // 2, high) for axis, (low, high) in read_file_bounds(path).items()}
    known |= shapes
    profile = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        axes = [(tensor.get_dimension_name(k), int(size)) for k, size in enumerate(tensor.shape)]
        unknown = [name for name, size in axes if size < 0 and name not in known]
        if unknown:
            raise StageError(
                f"{path.name}: nothing says how long the axis {unknown[0]!r} of {tensor.name} may be\n"
                f"  Give the target `shapes: {{{unknown[0]}: [shortest, usual, longest]}}`."
            )
        profile[tensor.name] = [
            tuple(known[name][which] if size < 0 else size for name, size in axes) for which in range(3)
        ]
    return profile


def _failure(trt: ModuleType, path: Path, errors: list[str], workspace_mib: int | None) -> str:
    """Why nothing was built: for want of workspace, of memory, or what the builder said last."""
    said = errors[-1] if errors else "no reason was given"
    words = " ".join(errors).lower()
    if "insufficient workspace" in words or ("workspace" in words and workspace_mib is not None):
        limit = f"its limit of {workspace_mib} MiB" if workspace_mib is not None else "the GPU's memory"
        return (
            f"{path.name}: {trt.__name__} found no way to compute a layer within {limit}: {said}\n"
            "  Raise the target's `workspace_mib`, or give `shapes` with a smaller largest batch."
        )
    if "memory" in words or "bad_alloc" in words:
        return (
            f"{path.name}: {trt.__name__} ran out of memory while it built the engine: {said}\n"
            "  Close other programs, give the target `workspace_mib`, or `shapes` with a smaller largest batch."
        )
    return f"{path.name}: {trt.__name__} cannot build the engine: {said}\n  {_EXPECTED}"


def _refusals(trt: ModuleType, path: Path, parser: Any) -> str:
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()!r}" if error.node_name() else "the graph"
        lines.append(f"{path.name}: {trt.__name__} refuses {where}: {error.desc()}")
    return "\n".join([*(lines or [f"{path.name}: {trt.__name__} cannot parse it"]), f"  {_EXPECTED}"])


def make_logger(trt: ModuleType) -> Any:
    """A logger that keeps errors, as ``errors`` and, the latest, ``last()``; the libraries' other words concern their authors."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def last(self) -> str:
            return self.errors[-1] if self.errors else "no reason was given"

    return Logger()


def _monitor(trt: ModuleType, name: str, listen: Listen) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        """Tells of the phase that moves; phases lie within each other."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def tell(self, phase: str, done: int) -> None:
            if time.monotonic() - self.told >= _TOLD_EVERY_SECONDS:
                self.told = time.monotonic()
                listen(f"building {name}: {phase}", done, self.steps.get(phase, 0))

    return Monitor()
