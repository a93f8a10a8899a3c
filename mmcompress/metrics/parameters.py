"""Parameters of model folders: in all, and per graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmcompress.metrics import Bench, Measured, Metric, Subject
from mmcompress.metrics._exact import exact_row

if TYPE_CHECKING:
    import torch


class Parameters(Metric):
    """How many numbers a model has learned; tied parameters count once. Packages hold the same, so they have no rows."""

    def gives(self) -> frozenset[str]:
        """``parameters``."""
        return frozenset({"parameters"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Load each model folder and count."""
        rows = []
        for subject in subjects:
            if subject.target != "torch":
                continue
            model = subject.family.load(subject.folder)
            counts = {"total": count_parameters(model)}
            counts |= {graph.name: count_parameters(graph.module) for graph in subject.family.graphs(model)}
            rows += [exact_row(subject, "parameters", n, "1", conditions={"part": name}) for name, n in counts.items()]
        return Measured(rows, {})


def count_parameters(module: torch.nn.Module) -> int:
    """Elements of all parameters; one that is used twice counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
