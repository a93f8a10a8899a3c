"""CLIP ViT-B/32's picture tower quantized with ranges by entropy, in a process of its own, so that its memory is its own.

``python benchmarks/_int8_calibration.py GRAPH PICTURES`` quantizes a graph and writes seconds and bytes as JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _claims import Claim
from _engine_graphs import export, pictures

BATCH = 16
SECONDS, GIB = 180.0, 2.0


@dataclass(frozen=True)
class Noise:
    """Pictures that are made when they are asked for, as those of a data set are read."""

    count: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches of :data:`BATCH`."""
        for seed in range(self.count // BATCH):
            yield {"pixel_values": pictures(BATCH, seed)}


def calibration(quick: bool, work: Path) -> list[Claim]:
    """Seconds and peak resident memory of quantizing by entropy, reading and writing included."""
    source = work / "vit_b_32.onnx"
    if not source.is_file():
        export(source)
    count = 2 * BATCH if quick else 512
    command = [sys.executable, __file__, str(source), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds, gib = found["seconds"], found["bytes"] / 2**30
    return [
        Claim(f"{count} pictures by entropy: seconds", seconds, "s", None, SECONDS, False, seconds < SECONDS),
        Claim(f"{count} pictures by entropy: peak memory", gib, "GiB", None, GIB, False, gib < GIB),
    ]


def _quantize(source: Path, count: int) -> dict[str, float]:
    from mmcompress.runtimes._quantize import Choice, quantize_graph
    from mmcompress.runtimes.onnxruntime import OnnxRuntime

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        quantize_graph(
            source,
            Path(folder) / "int8.onnx",
            OnnxRuntime().scheme(),
            Noise(count),
            choice=Choice(calibrator="entropy"),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.perf_counter() - start, "bytes": peak}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_quantize(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
