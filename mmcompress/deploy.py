"""Deployment, in a fixed order: export a model folder to FP32 graphs, quantize them for a target, compile a package."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._ask import ask
from mmcompress._probe import raw_values, read_probe, write_expected, write_probe
from mmcompress.component import JSON, digest_path
from mmcompress.data import Examples
from mmcompress.data._splits import subset
from mmcompress.errors import StageError
from mmcompress.families import Family, Feeds, Graph, Request
from mmcompress.package import FORMAT as PACKAGE_FORMAT
from mmcompress.package import MANIFEST, family_fields, load_package, runtime_fields
from mmcompress.runtimes import Precision, Quantize, Runtime, Scheme, facts_of
from mmcompress.stages import Model
from mmcompress.store import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from mmcompress._accuracy import Promise

EXPORT_REVISION = 2
QUANTIZE_REVISION = 2
COMPILE_REVISION = 2
"""Raised when the same inputs give other graphs, so that artifacts of the older code are built again."""

TOLERANCE = 1e-4
"""Of a graph against torch: largest difference, relative to the largest output."""
CHECKED_BATCHES = (1, 3, 8)
CALIBRATION_BATCH = 16
__all__ = ["EXPORT_REVISION", "PACKAGE_FORMAT", "QUANTIZE_REVISION", "compile", "describe_scheme", "export", "quantize"]


def export(family: Family, folder: Path, output: Path) -> dict[str, Any]:
    """Export a model folder's graphs to ``<name>.onnx`` in FP32, each checked against torch; gives facts per graph.

    Attention is traced as plain products and softmax (``eager``): the exporter's form of SDPA has twice the operators.

    Raises:
        StageError: a graph cannot be traced, or differs from torch by more than :data:`TOLERANCE`.
    """
    from mmcompress._export import export_graph

    facts: dict[str, Any] = {}
    for graph in family.graphs(family.load(folder, attention="eager")):
        path = output / f"{graph.name}.onnx"
        operators = export_graph(graph, path)
        difference = check_export(graph, path)
        facts[graph.name] = {
            "bytes": graph_bytes(path),
            "operators": operators,
            "max_difference": difference,
            "tolerance": TOLERANCE,
            "checked_batches": list(CHECKED_BATCHES),
        }
    return {"graphs": facts}


def check_export(graph: Graph, path: Path) -> float:
    """The largest difference to torch at batch 1, 3 and 8, relative to the largest output.

    Raises:
        StageError: above :data:`TOLERANCE`, or the outputs of different examples are equal, which would prove nothing.
    """
    import torch

    from mmcompress.runtimes.onnxruntime import OnnxRuntime

    session = OnnxRuntime().open(path.parent, [graph.name], threads=1)
    worst = 0.0
    for batch, distinct in sample_batches(graph, CHECKED_BATCHES):
        with torch.inference_mode():
            expected = {name: value.numpy() for name, value in graph.module(**batch).items()}
        found = session.run(graph.name, {name: value.numpy() for name, value in batch.items()})
        shapes = {name: tuple(value.shape) for name, value in batch.items()}
        for name, want in expected.items():
            difference = relative_difference(found[name], want)
            if not difference <= TOLERANCE:
                raise StageError(
                    f"graph {graph.name}: {name} differs from torch by {difference:.2e} of the largest output at {shapes}"
                    f"\n  at most {TOLERANCE:.0e} was expected"
                )
            others = range(1, distinct) if want.size else ()
            nearest = min((relative_difference(want[i], want[0]) for i in others), default=1.0)
            if nearest <= 10 * TOLERANCE:
                raise StageError(
                    f"graph {graph.name}: {name} of different examples differs by only {nearest:.2e} at {shapes}\n"
                    "  The check needs sample inputs whose outputs differ."
                )
            worst = max(worst, difference)
    session.close()
    return worst


def sample_batches(graph: Graph, sizes: Sequence[int]) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Batches of sample inputs, with the number of examples in each that are different.

    The samples are repeated to each size. Then come the graph's variants; where it names none, further axes that vary
    are also tried at half their length, where examples need not differ any more.
    """
    import torch

    count = min(value.shape[0] for value in graph.inputs.values())
    for size in sizes:
        rows = torch.arange(size) % count
        yield {name: value[rows] for name, value in graph.inputs.items()}, min(size, count)
    for variant in graph.variants:
        yield dict(variant), 1
    halved = {axis for axes in graph.dynamic.values() for number, axis in axes.items() if number > 0}
    if halved and not graph.variants:
        batch = {}
        for name, value in graph.inputs.items():
            for number, axis in graph.dynamic.get(name, {}).items():
                if axis in halved:
                    value = value.narrow(number, 0, max(2, value.shape[number] // 2))
            batch[name] = value.contiguous()
        yield batch, 1


def relative_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference over the largest expected value (NaN where a value is none)."""
    if expected.size == 0:  # the empty past that a decoder begins with
        return 0.0 if found.shape == expected.shape else float("inf")
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def quantize(
    family: Family,
    model: Path,
    graphs: Path,
    scheme: Scheme,
    examples: Examples,
    output: Path,
    nodes_to_exclude: Mapping[str, Collection[str]] | None = None,
    settings: Quantize | None = None,
    promise: Promise | None = None,
) -> dict[str, Any]:
    """Quantize the FP32 graphs in ``graphs`` by a scheme, calibrated on examples; gives coverage per graph.

    Args:
        family: The family of the model.
        model: Its model folder, for the preprocessing.
        graphs: Folder of ``<name>.onnx`` in FP32.
        scheme: The target's scheme.
        examples: Training examples; they are encoded a batch at a time, so memory does not grow with their number.
        output: Folder for the graphs in INT8.
        nodes_to_exclude: Operators that stay float, by graph.
        settings: Calibrator, smoothing and bias correction, of every graph; the usual ones where none are given.
        promise: What may be lost at most; calibrator, smoothing and operators in float are then chosen by measurement.

    Raises:
        StageError: nothing matched, the quantizer failed, or the promise cannot be kept.
    """
    from mmcompress.runtimes._quantize import Choice, quantize_graph

    if promise is not None:
        from mmcompress._accuracy import quantize_within

        return quantize_within(family, model, graphs, scheme, examples, output, promise)
    settings = settings or Quantize()
    choice = Choice(settings.calibrator, settings.smoothing, settings.bias_correction)

    facts = {}
    for request in graph_requests(family):
        for name in request.graphs:
            if name not in facts:
                feeds = Batches(family, model, graphs, request, name, examples)
                excluded = (nodes_to_exclude or {}).get(name, ())
                source = graphs / f"{name}.onnx"
                facts[name] = quantize_graph(source, output / source.name, scheme, feeds, excluded, choice)
                facts[name]["float_bytes"] = graph_bytes(source)
    return {"calibration_examples": len(examples), "scheme": describe_scheme(scheme), "graphs": facts}


def graph_requests(family: Family) -> list[Request]:
    """The family's requests, those that run the fewest graphs first."""
    return sorted(family.requests, key=lambda request: len(request.graphs))


@dataclasses.dataclass(frozen=True)
class Batches:
    """What a graph is fed when a request is answered for examples: encoded anew each time that it is read."""

    family: Family
    model: Path
    graphs: Path
    request: Request
    graph: str
    examples: Examples

    def __iter__(self) -> Iterator[Feeds]:
        return calibration_feeds(self.family, self.model, self.graphs, self.request, self.graph, self.examples)


def calibration_feeds(
    family: Family, model: Path, graphs: Path, request: Request, graph: str, examples: Examples
) -> Iterator[Feeds]:
    """What a graph is fed when a request is answered for examples, a batch at a time."""
    from mmcompress.runtimes.onnxruntime import OnnxRuntime

    processor = family.processor(model)
    others = [name for name in request.graphs if name != graph]
    session = OnnxRuntime().open(graphs, request.graphs, None) if others else None
    recorded: list[Feeds] = []

    def run(name: str, feeds: Feeds) -> Feeds:
        if name == graph:
            recorded.append(feeds)
        if session is None:
            raise _Recorded
        return session.run(name, feeds)

    for start in range(0, len(examples), CALIBRATION_BATCH):
        batch = [examples[i] for i in range(start, min(start + CALIBRATION_BATCH, len(examples)))]
        with contextlib.suppress(_Recorded):
            family.answer(run, request.name, processor.encode(raw_values(batch, request.inputs)))
        yield from recorded
        recorded.clear()


class _Recorded(Exception):
    """Ends an answer of one graph once its feeds are known: the calibration runs the graph itself."""


def describe_scheme(scheme: Scheme) -> dict[str, JSON]:
    """A scheme for keys and manifests."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(scheme).items()}


def compile(
    family: Family,
    model: Path,
    graphs: Path,
    runtime: Runtime,
    precision: Precision,
    teacher: Model,
    probe: Examples,
    provenance: Mapping[str, JSON],
    output: Path,
    asked: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a package to ``output``; gives its size and, where it runs here, how near its answers are to the teacher's.

    Args:
        family: The family of the model.
        model: Its model folder: configuration, tokenizer and preprocessing come from there.
        graphs: Folder of ``<name>.onnx`` in FP32 or INT8.
        runtime: The target.
        precision: What the graphs are in.
        teacher: Whose answers to the probe examples are kept.
        probe: Examples that the package is checked with, wherever it goes.
        provenance: Where it comes from, for the manifest.
        output: The package's folder.
        asked: What the quantizer told of each graph, for its coverage; nothing of graphs in float.

    Raises:
        StageError: the runtime refuses a graph, or the package does not answer as its graphs do.
    """
    names = list(dict.fromkeys(name for request in family.requests for name in request.graphs))
    compiled = runtime.compile({name: graphs / f"{name}.onnx" for name in names}, output)
    for name in family.package_files(model):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, output / name)
    write_probe(output / "probe", family.requests, probe, teacher.family, teacher.folder)
    runs_here = runtime.runs_here()
    if runs_here:
        _write_expected(family, output, runtime, names)
    covered = _coverage(family, model, graphs, runtime, probe, output, asked or {}) if precision == "int8" else {}
    engines = {name: output / file for name, file in compiled["files"].items()}
    about = {
        "family": family.component_name(),
        "family_fields": family_fields(family),
        "target": {**facts_of(runtime), "fields": runtime_fields(runtime)},
        "precision": precision,
        "requests": [dataclasses.asdict(request) for request in family.requests],
        "left_out": dict(family.left_out),
        "graphs": {
            name: {"file": path.name, "bytes": graph_bytes(path), **graph_signature(graphs / f"{name}.onnx")}
            for name, path in engines.items()
        },
        "coverage": covered,
        "preprocessing": describe_processor(family.processor(model)),
        "licences": licences(model),
        "provenance": dict(provenance),
    }
    seal(output, about)
    facts = {"precision": precision, "coverage": covered, "probe": _probe_checks(output) if runs_here else None}
    return {**compiled, **facts, "size_bytes": sum(graph_bytes(path) for path in engines.values())}


def _probe_checks(package: Path) -> dict[str, JSON]:
    with load_package(package) as opened:
        return {request: dataclasses.asdict(check) for request, check in opened.check_probe().items()}


def _coverage(
    family: Family,
    model: Path,
    graphs: Path,
    runtime: Runtime,
    probe: Examples,
    output: Path,
    asked: Mapping[str, Mapping[str, Any]],
) -> dict[str, JSON]:
    """Coverage by graph: see :mod:`mmcompress.runtimes._coverage`."""
    from mmcompress.runtimes._coverage import coverage

    requests = {name: request for request in graph_requests(family)[::-1] for name in request.graphs}
    found: dict[str, JSON] = {}
    for name, request in requests.items():
        feeds = next(calibration_feeds(family, model, graphs, request, name, subset(probe, 1)))
        engine = runtime.engine_precisions(output, name) if runtime.runs_here() else None
        found[name] = coverage(graphs / f"{name}.onnx", asked.get(name, {}), engine, feeds)
    return found


def seal(package: Path, about: Mapping[str, JSON]) -> None:
    """Write the manifest: what is told about the package, and the digest of every file in it."""
    files = {
        path.relative_to(package).as_posix(): {"sha256": digest_path(path), "bytes": path.stat().st_size}
        for path in sorted(package.rglob("*"))
        if path.is_file()
    }
    write_json(package / MANIFEST, {"format": PACKAGE_FORMAT, **about, "files": files})


def _write_expected(family: Family, package: Path, runtime: Runtime, graphs: Sequence[str]) -> None:
    """Answer the probe examples with the package's own engines, for comparing on other machines."""
    processor = family.processor(package)
    columns = read_probe(package / "probe")
    session = runtime.open(package, graphs, None)
    for request in family.requests:
        values = {name: columns[name] for name in request.inputs}
        write_expected(package / "probe", request.name, ask(family, processor, session.run, request.name, values))
    session.close()


def describe_processor(processor: object) -> dict[str, JSON]:
    """The resolved settings of a processor's parts (``images``, ``texts``): nothing is left to a library's defaults."""
    from pydantic import BaseModel

    settings = {name: getattr(part, "settings", None) for name, part in vars(processor).items()}
    return {name: value.model_dump(mode="json") for name, value in settings.items() if isinstance(value, BaseModel)}


def licences(model: Path) -> list[str]:
    """What the checkpoint's own model card says of its licence; empty where it says nothing."""
    card = model / "README.md"
    if not card.is_file():
        return []
    lines = card.read_text(encoding="utf-8", errors="replace").split("---")
    head = lines[1].splitlines() if len(lines) > 2 else []
    return [line.partition(":")[2].strip() for line in head if line.startswith("license:")]


def graph_signature(path: Path) -> dict[str, JSON]:
    """Inputs and outputs of an ONNX graph: type and shape by name; an axis that varies has a name."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {
        side: {
            value.name: {
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            }
            for value in values
        }
        for side, values in (("inputs", graph.input), ("outputs", graph.output))
    }


def graph_bytes(path: Path) -> int:
    """Bytes of a graph with its weights, which may lie beside it (ONNX's external data, OpenVINO's ``.bin``)."""
    beside = (path.with_name(f"{path.name}.data"), path.with_suffix(".bin"))
    return path.stat().st_size + sum(data.stat().st_size for data in beside if data.is_file())
