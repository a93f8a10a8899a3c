"""CLIP ViT-B/32's image tower on two threads: our INT8 engines beside those of other tools, in turn in one run.

    python benchmarks/engines.py WORK --out benchmarks/results/engines.json    (about twenty minutes on two quiet cores)

Random weights, 224 pixels, batch 1 and 16. WORK keeps the graphs, so that a second call only times. Each side has a process
of its own, and all are visited there and back in each round; claims are ratios of p50 of blocks that were measured side by
side. The INT8 products alone, in oneDNN, are the limit that no engine passes. ``--quick`` times batch 1 in few rounds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _claims import THREADS, Claim, main, verdict
from _engine_graphs import make, pictures, tower

from mmcompress.metrics._statistics import block_weights, paired_ratio, quantity_estimate

LAYERS, TOKENS = 12, 50
PRODUCTS = ((768, 768, 4), (768, 3072, 1), (3072, 768, 1))
"""Inputs, outputs and number per layer of the INT8 products."""
TORCH = ("torch eager", "torch compiled", "torch bf16", "torch torchao int8", "products alone")
OURS = "ours onnxruntime int8"
SETTLE_SECONDS, BLOCK_SECONDS, FEWEST_CALLS = 0.15, 0.3, 3
"""The first calls of a block find their weights gone from the caches: the other sides ran. They do not count."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


# --- the side's process --------------------------------------------------------------------------------------------


def opened(runtime: str, path: str) -> Callable[[Any], object]:
    """What runs a batch of pictures."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})
    if runtime.startswith("openvino"):
        import openvino

        core = openvino.Core()
        precision = "bf16" if runtime.endswith("bf16") else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": THREADS,
        }
        request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
        return lambda batch: request.infer([batch], share_inputs=True)
    return opened_torch(runtime)


def opened_torch(kind: str) -> Callable[[Any], object]:
    """The tower in torch, or its INT8 products alone."""
    import torch

    torch.set_num_threads(THREADS)
    if kind == "products alone":
        return products_alone()
    model = tower()
    if kind == "torch torchao int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    run = torch.compile(model) if kind in ("torch compiled", "torch torchao int8") else model
    dtype = torch.bfloat16 if kind == "torch bf16" else torch.float32

    def call(batch: Any) -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return run(pixel_values=torch.from_numpy(batch)).image_embeds

    return call


def products_alone() -> Callable[[Any], object]:
    """The INT8 products of all layers by oneDNN, with nothing between them."""
    import torch

    torch.backends.quantized.engine = "onednn"
    packed = []
    for inputs, outputs, count in PRODUCTS:
        for _ in range(LAYERS * count):
            weight = torch.quantize_per_channel(
                torch.randn(outputs, inputs),
                torch.full((outputs,), 0.02),
                torch.zeros(outputs, dtype=torch.long),
                0,
                torch.qint8,
            )
            packed.append((inputs, torch.ops.quantized.linear_prepack(weight, None)))
    rows: dict[tuple[int, int], Any] = {}

    def call(batch: Any) -> object:
        for inputs, weight in packed:
            key = len(batch) * TOKENS, inputs
            if key not in rows:
                rows[key] = torch.quantize_per_tensor(torch.randn(*key), 0.03, 128, torch.quint8)
            torch.ops.quantized.linear(rows[key], weight, 1.0, 128)
        return None

    return call


def serve(runtime: str, path: str) -> None:
    """Answer each line, a batch size, with the milliseconds of the calls of a block."""
    run = opened(runtime, path)
    for line in sys.stdin:
        given = pictures(int(line))
        _calls(run, given, SETTLE_SECONDS, 1)
        print(json.dumps(_calls(run, given, BLOCK_SECONDS, FEWEST_CALLS)), flush=True)


def _calls(run: Callable[[Any], object], given: Any, seconds: float, fewest: int) -> list[float]:
    """Milliseconds of as many calls as fit into so many seconds, and at least ``fewest``."""
    found: list[float] = []
    while len(found) < fewest or sum(found) < 1000 * seconds:
        started = time.perf_counter()
        run(given)
        found.append((time.perf_counter() - started) * 1000)
    return found


# --- the run -------------------------------------------------------------------------------------------------------


class Side:
    """A process that holds one engine."""

    def __init__(self, runtime: str, path: Path | None) -> None:
        environment = {**os.environ, **{name: str(THREADS) for name in VARIABLES}}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", runtime, str(path or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def time(self, batch: int) -> list[float]:
        """Milliseconds of the calls of a block; none where the process ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{batch}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return []
        line = self.process.stdout.readline()
        return list(json.loads(line)) if line else []

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def visit(sides: Mapping[str, Side], batch: int, rounds: int) -> dict[str, list[list[float]]]:
    """Blocks of all sides, there and back in an order that is drawn for each round."""
    chance = random.Random(0)
    blocks: dict[str, list[list[float]]] = {}
    for name, side in sides.items():
        if side.time(batch):
            blocks[name] = []
        else:
            print(f"left out: {name}: its process ended")
    for _ in range(rounds):
        order = list(blocks)
        chance.shuffle(order)
        for name in (*order, *order[::-1]):
            time.sleep(0.02)
            blocks[name].append(sides[name].time(batch))
    return blocks


def measure(quick: bool, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Claims and raw milliseconds."""
    graphs = make(work)
    plan: dict[str, tuple[str, Path | None]] = {**graphs, **{name: (name, None) for name in TORCH}}
    claims: list[Claim] = []
    samples: dict[str, Any] = {"products": [[TOKENS, *item[:2], item[2] * LAYERS] for item in PRODUCTS]}
    for batch in (1,) if quick else (1, 16):
        sides = {name: Side(*what) for name, what in plan.items()}
        blocks = visit(sides, batch, 2 if quick else 15 if batch == 1 else 8)
        for side in sides.values():
            side.close()
        samples[f"batch {batch}"] = blocks
        claims += claims_of(blocks, batch)
    return claims, samples


def claims_of(blocks: Mapping[str, list[list[float]]], batch: int) -> list[Claim]:
    """Times of all sides, and how ours compare with the fastest of others."""
    medians = {name: float(np.median(np.concatenate(found))) for name, found in blocks.items()}
    claims = [
        Claim(f"p50, batch {batch}: {name}", value, "ms", None, None, False, None) for name, value in medians.items()
    ]

    def fastest(*beginnings: str) -> str:
        return min((name for name in medians if name.startswith(beginnings)), key=lambda name: medians[name])

    best_static = fastest("quantize_static")
    claims.append(ratio(blocks, f"{best_static} / ours on ONNX Runtime, batch {batch}", best_static, OURS, 1.25))
    if any(name.startswith("transformers") for name in medians):
        theirs = fastest("transformers")
        claims.append(ratio(blocks, f"{theirs} / ours on ONNX Runtime, batch {batch}", theirs, OURS, 1.25))
    ours, others = fastest("ours"), fastest("quantize_static", "transformers", "nncf", "torch")
    claims.append(ratio(blocks, f"{others} / {ours}, batch {batch}", others, ours, 1.0))
    claims.append(ratio(blocks, f"onnxruntime fp32 / {OURS}, batch {batch}", "onnxruntime fp32", OURS, None))
    if "products alone" in medians:
        claims.append(
            ratio(blocks, f"{ours} / INT8 products alone, batch {batch}", ours, "products alone", 1.5, higher=False)
        )
    return claims


def ratio(
    blocks: Mapping[str, list[list[float]]],
    name: str,
    above: str,
    below: str,
    goal: float | None,
    *,
    higher: bool = True,
) -> Claim:
    """A ratio of p50s, paired block by block; the worse end of its one-sided interval must meet the goal."""
    arrays = [[[np.asarray(block) for block in blocks[side]]] for side in (above, below)]
    weights = block_weights(1, len(blocks[above]), 0)
    value, replicates = paired_ratio(arrays[0], arrays[1], weights)
    estimate = quantity_estimate(value, len(blocks[above]), replicates, span=0.0)
    holds = verdict(estimate.one_sided95, goal, higher_is_better=higher)
    return Claim(name, value, "times", estimate.ci95, goal, higher, holds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3])
    else:
        assert __doc__ is not None
        sys.exit(main(__doc__, measure, paths=["work"]))
