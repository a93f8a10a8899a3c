"""The emoji recipe as it comes out: drawings and their names, tested on a style that training never saw.

    python benchmarks/clip_emoji.py TEACHER DATA --out benchmarks/results/clip_emoji.json     (half an hour at most)

TEACHER is a CLIP folder, DATA one with train.jsonl, validation.jsonl and test.jsonl. ``--quick`` is a smoke run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, claim, find, main, samples_of
from _recipes import smoke

from mmcompress import runs
from mmcompress.report import load_report

RECIPE = Path(__file__).parents[1] / "recipes" / "clip_emoji.yaml"
INT8 = "onnxruntime int8"


def places(teacher: Path, data: Path) -> list[str]:
    """The overrides of a recipe on drawings that say where its teacher and its tables lie."""
    tables = [f"data.{split}.image_text.path={data / split}.jsonl" for split in ("train", "validation", "test")]
    return [f"teacher.clip.path={teacher}", *tables]


def measure(quick: bool, teacher: Path, data: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Run the recipe (what is built is found) and read its report; nothing is demanded of a test this hard."""
    if quick:
        return smoke(RECIPE, places(teacher, data)), {}
    report = load_report(runs.run(RECIPE, overrides=places(teacher, data)).folder)
    claims = []
    for name in ("teacher", "distill", "prune", INT8):
        claims += [
            claim(f"{metric.replace('_at_', '@')} of {name}", find(report, metric, name, direction="mean"))
            for metric in ("recall_at_1", "recall_at_5", "mrr")
        ]
    claims.append(
        claim("recall@1 that the package keeps", find(report, "retention.recall_at_1", INT8, direction="mean"))
    )
    for request in ("embed_image", "embed_text"):
        row = find(report, "speedup.latency_ms_p50", INT8, request=request, batch=1, scope="engine")
        claims.append(claim(f"{request}, p50, engine, batch 1: times as fast", row))
    claims.append(claim("times smaller", find(report, "size_ratio", INT8)))
    return claims, samples_of([report])


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, paths=("teacher", "data")))
