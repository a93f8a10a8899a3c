"""The gate on itself: small graphs with a planted slowdown and a planted drop, on this very machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcompress._answers import Listen, silent
from mmcompress.errors import require
from mmcompress.gate._accuracy import judge_drop, paired_drop
from mmcompress.gate._run import Options, run_gate
from mmcompress.gate._sides import open_side

WIDTH, ROWS, LAYERS = 128, 16, 100
SLOWER_LAYERS = 112
EXAMPLES, CLASSES = 2000, 10
NOISE = 0.35


@dataclass(frozen=True)
class Proof:
    """One thing that the gate must say of itself."""

    name: str
    expected: str
    found: str
    reason: str

    @property
    def holds(self) -> bool:
        """Whether it said so."""
        return self.found == self.expected


def selftest(folder: Path, limit_seconds: float = 150.0, listen: Listen = silent) -> list[Proof]:
    """Gate a graph against a copy of itself, against one with 12 % more layers, and its answers against spoiled ones.

    Raises:
        MissingExtra: the libraries that write and run graphs are not installed.
    """
    baseline, copy, slower = (folder / f"{name}.onnx" for name in ("baseline", "copy", "slower"))
    write_graph(baseline, LAYERS)
    shutil.copyfile(baseline, copy)
    write_graph(slower, SLOWER_LAYERS)
    proofs = []
    loose = {**Options().budgets, "operators": 1.0}
    options = Options(budgets=loose, limit_seconds=limit_seconds)
    for name, graph, expected in (("a copy of the baseline", copy, "passed"), ("12 % more work", slower, "failed")):
        sides = [open_side(path, side) for path, side in ((graph, "candidate"), (baseline, "baseline"))]
        outcome = run_gate(sides[0], sides[1], options, listen)
        verdict = next(item for item in outcome.verdicts if item.metric.startswith("slowdown."))
        measured = f"{verdict.value:+.1%}" if verdict.value is not None else "not measured"
        proofs.append(Proof(f"time: {name}", expected, verdict.status, f"{measured}; {verdict.reason}".rstrip("; ")))
    return proofs + _drops(folder)


def _drops(folder: Path) -> list[Proof]:
    """The answers of a small classifier, to itself and with noise in its weights."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    inputs = random.standard_normal((EXAMPLES, WIDTH)).astype(np.float32)
    truth = (inputs @ weights).argmax(axis=1)
    spoiled = weights + NOISE * random.standard_normal(weights.shape).astype(np.float32)
    scores = {}
    for name, matrix in (("whole", weights), ("spoiled", spoiled)):
        path = folder / f"{name}.onnx"
        _write_classifier(path, matrix)
        scores[name] = _scores(path, inputs, truth)
    budget = Options().budgets["quality"]
    proofs = []
    for name, side, expected in (
        ("the same answers", "whole", "passed"),
        ("noise in the weights", "spoiled", "failed"),
    ):
        drop = paired_drop(scores["whole"], scores[side], budget)
        status, reason, _ = judge_drop(drop, budget)
        proofs.append(Proof(f"quality: {name}", expected, status, f"{drop.value:+.1%} lost; {reason}".rstrip("; ")))
    return proofs


def _scores(path: Path, inputs: np.ndarray, truth: np.ndarray) -> Mapping[str, float]:
    from mmcompress.runtimes.onnxruntime import OnnxSession

    session = OnnxSession(path.parent, [path.stem], "CPUExecutionProvider", 1)
    answers = session.run(path.stem, {"x": inputs})["y"].argmax(axis=1)
    return {str(index): float(same) for index, same in enumerate(answers == truth)}


def write_graph(path: Path, layers: int, rows: int = ROWS, width: int = WIDTH) -> None:
    """A graph whose time grows with ``layers``: products of [n, rows, width] with two matrices, and a tanh between them."""
    require("onnx", "gate")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shapes = {"wide": (width, 4 * width), "narrow": (4 * width, width)}
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes, last = [], "x"
    for layer in range(layers):
        names = [f"{kind}{layer}" for kind in ("a", "b", "c")]
        nodes.append(helper.make_node("MatMul", [last, "wide"], [names[0]], name=f"wide{layer}"))
        nodes.append(helper.make_node("Tanh", [names[0]], [names[1]], name=f"tanh{layer}"))
        nodes.append(helper.make_node("MatMul", [names[1], "narrow"], [names[2]], name=f"narrow{layer}"))
        last = names[2]
    nodes.append(helper.make_node("Identity", [last], ["y"], name="last"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", rows, width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def _write_classifier(path: Path, weights: np.ndarray) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in zip("xy", weights.shape, strict=True)
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
