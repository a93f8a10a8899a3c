"""Torch modules around a tower whose texts are a table."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassScorer(torch.nn.Module):
    """A tower's normalised embeddings, and their cosines with the classes of a table."""

    table: Tensor

    def __init__(self, tower: torch.nn.Module, output: str, table: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.output = output
        self.register_buffer("table", table.T.contiguous())

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """What the tower takes to its embeddings [b, d] and ``class_scores`` [b, c]."""
        embeds = self.tower(**inputs)[self.output]
        return {self.output: embeds, "class_scores": embeds @ self.table}
