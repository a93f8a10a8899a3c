"""What a teacher costs a training, and what it is worth.

    python benchmarks/distillation.py DATA WORK --only quality --out benchmarks/results/distillation_quality.json

DATA holds the public sets that ``_task_data.py`` names, beside a folder ``teachers`` with ``emoji-clip``. WORK gets models, caches
and stores: what is built there is found by a second call. The parts, all measured without ``--only``, and the time of each on two cores:

- ``speed``: cached and live teachers against training without one (20 minutes)
- ``quality``: the arms of ``distillation/scenes.yaml``, three seeds (an hour and a half)
- ``drawings``: the same on emoji (40 minutes)
- ``speech``: spoken digits with a quarter of the decoder's layers (half an hour)
- ``temperature``: direction by temperature, on retrieval, classes and sequences (an hour)

``--quick`` shows that everything runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, main_of_parts
from _distillation_quality import drawings, quality
from _distillation_speech import speech
from _distillation_speed import speed
from _distillation_temperature import temperature

PARTS: dict[str, Callable[[bool, Path, Path], tuple[Sequence[Claim], Mapping[str, Any]]]] = {
    "speed": speed,
    "quality": quality,
    "drawings": drawings,
    "speech": speech,
    "temperature": temperature,
}


if __name__ == "__main__":
    sys.exit(main_of_parts(__doc__ or "", PARTS))
