"""Torch modules that take pictures as bytes."""

from __future__ import annotations

import torch
from torch import Tensor


class BytePictures(torch.nn.Module):
    """A tower of ``pixel_values`` behind the last steps of preprocessing."""

    scale: Tensor
    shift: Tensor

    def __init__(self, tower: torch.nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("scale", scale.reshape(1, 3, 1, 1).clone())
        self.register_buffer("shift", shift.reshape(1, 3, 1, 1).clone())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """uint8 [b, h, w, 3] to what the tower gives."""
        # TensorRT casts bytes and does nothing else with them.
        values = pixels.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        given: dict[str, Tensor] = self.tower(pixel_values=values)
        return given
