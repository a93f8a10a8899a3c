"""What a teacher costs a training, and what it is worth.

    python benchmarks/distillation.py WORK --only speed --out benchmarks/results/distillation_speed.json   (two cores: 20 minutes)
    python benchmarks/distillation.py WORK --only quality --out benchmarks/results/distillation_quality.json   (about three hours)

Without ``--only`` both are measured.

WORK gets models, caches and stores: what is built there is found by a second call. ``--quick`` shows that everything runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, main, only
from _distillation_quality import quality
from _distillation_speed import speed

PARTS: dict[str, Callable[[bool, Path], tuple[Sequence[Claim], Mapping[str, Any]]]] = {
    "speed": speed,
    "quality": quality,
}
ONLY: list[str] = []


def measure(quick: bool, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """The claims and raw samples of all parts."""
    claims: list[Claim] = []
    samples: dict[str, Any] = {}
    for name in ONLY or PARTS:
        found, raw = PARTS[name](quick, work)
        claims += found
        samples.update(raw)
    return claims, samples


if __name__ == "__main__":
    ONLY.extend(only())
    sys.exit(main(__doc__ or "", measure, paths=["work"]))
