"""Tells when a loss that is still finite runs away."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from mmcompress.store import read_json, write_json

STEPS = 20
"""Steps over which the loss is averaged."""
TIMES = 10.0
"""How many times the level of the beginning the mean loss must reach to count as running away."""
EARLY = 0.1
"""The share of a training in which that level is taken: beyond the end of most warm-ups."""
FILE = "level.json"


@dataclass
class Runaway:
    """Watches the loss of a training of ``steps`` steps, in ``folder``, where a resumed one finds the level again.

    The level is the highest mean over :data:`STEPS` steps in the first tenth of the training. Trainings too short to have
    one, and losses that a schedule changes, are not watched.
    """

    steps: int
    folder: Path
    scheduled: bool
    level: float | None = None
    good: int = 0
    """The last step at which the mean was within the level."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    highest: float = 0.0

    def resume(self) -> None:
        """Read the level that an earlier process took."""
        if (self.folder / FILE).is_file():
            self.level = float(read_json(self.folder / FILE)["level"])

    def sees(self, step: int, loss: float) -> bool:
        """Whether the loss has run away by ``step``, the number of steps done before this one."""
        self.recent.append(loss)
        if self.scheduled or len(self.recent) < STEPS:
            return False
        mean = sum(self.recent) / STEPS
        early = max(2 * STEPS, round(EARLY * self.steps))
        if step < early and self.level is None:
            self.highest = max(self.highest, mean)
            if step == early - 1:
                self.level = self.highest
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / FILE, {"level": self.level})
        if self.level is None or mean <= self.level:
            self.good = step + 1
        return self.level is not None and mean > TIMES * self.level
