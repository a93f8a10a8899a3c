"""Scalars of a training for TensorBoard, where the user asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcompress.errors import UsageError


class Tracker:
    """Writes each loss term, the learning rate, examples per second and the gradient's norm at every step."""

    def __init__(self, folder: Path) -> None:
        """``folder``: where the scalars go.

        Raises:
            UsageError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--track writes for TensorBoard, which is not installed\n  pip install 'mmcompress[tracking]'"
            ) from None
        self.folder, self.make = folder, SummaryWriter

    def open(self, first: int) -> None:
        """Begin to write; a training that goes on from step ``first`` writes anew what came after it."""
        self.writer: Any = self.make(str(self.folder), purge_step=first + 1 if first else None)

    def step(
        self,
        step: int,
        terms: Mapping[str, Any],
        examples_per_second: float,
        gradient_norm: float,
        learning_rate: float,
    ) -> None:
        """A step that was done."""
        for name, value in terms.items():
            self.writer.add_scalar(f"train/{name}", float(value), step)
        self.writer.add_scalar("train/learning_rate", learning_rate, step)
        self.writer.add_scalar("train/gradient_norm", gradient_norm, step)
        self.writer.add_scalar("speed/examples_per_second", examples_per_second, step)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the validation data gave."""
        for name, value in metrics.items():
            if name.startswith("eval_"):
                self.writer.add_scalar(f"validation/{name.removeprefix('eval_')}", value, step)

    def close(self) -> None:
        """Write what is not written yet."""
        self.writer.close()
