"""Trainable modules of losses: they live while a stage trains and are no part of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Projections(torch.nn.Module):
    """A linear map (no bias) from the student's width to the teacher's for each output whose widths differ."""

    def __init__(self, widths: Mapping[str, tuple[int, int]]) -> None:
        """``widths``: name of the output to (student's width, teacher's width)."""
        super().__init__()
        self.maps = torch.nn.ModuleDict(
            {
                name.replace(".", "_"): torch.nn.Linear(student, teacher, bias=False)
                for name, (student, teacher) in widths.items()
                if student != teacher
            }
        )

    def forward(self, name: str, embeds: Tensor) -> Tensor:
        """[b, student's width] to L2-normalised [b, teacher's width]; unchanged where the widths are equal."""
        key = name.replace(".", "_")
        if key not in self.maps:
            return embeds
        projected: Tensor = self.maps[key](embeds)
        return normalize(projected, dim=-1)


class LayerProjections(torch.nn.Module):
    """A linear map (no bias) from the student's width to the teacher's for each pair of layers whose widths differ."""

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        """``widths``: (student's width, teacher's width) of each pair."""
        super().__init__()
        self.maps = torch.nn.ModuleList(
            torch.nn.Identity() if student == teacher else torch.nn.Linear(student, teacher, bias=False)
            for student, teacher in widths
        )

    def forward(self, pair: int, states: Tensor) -> Tensor:
        """[b, s, student's width] to [b, s, teacher's width]."""
        projected: Tensor = self.maps[pair](states)
        return projected
