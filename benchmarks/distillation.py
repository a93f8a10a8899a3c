"""What a teacher costs a training, and what it is worth.

    python benchmarks/distillation.py WORK --out benchmarks/results/distillation.json   (speed: about 35 minutes on two cores)

WORK gets models, caches and stores: what is built there is found by a second call. ``--quick`` shows that everything runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, main
from _distillation_speed import speed

PARTS: tuple[Callable[[bool, Path], tuple[Sequence[Claim], Mapping[str, Any]]], ...] = (speed,)


def measure(quick: bool, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """The claims and raw samples of all parts."""
    claims: list[Claim] = []
    samples: dict[str, Any] = {}
    for part in PARTS:
        found, raw = part(quick, work)
        claims += found
        samples.update(raw)
    return claims, samples


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, paths=["work"]))
