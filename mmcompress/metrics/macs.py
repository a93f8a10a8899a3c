"""Multiply-accumulates of model folders: per graph, and together."""

from __future__ import annotations

from collections.abc import Sequence

from mmcompress.metrics import Bench, Measured, Metric, Subject
from mmcompress.metrics._exact import exact_row


class Macs(Metric):
    """Multiply-accumulates per example, of each graph's sample inputs; ``part: total`` is their sum.

    Packages compute the same products, so they have no rows of their own.
    """

    def gives(self) -> frozenset[str]:
        """``macs``."""
        return frozenset({"macs"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Load each model folder, run each graph once and count."""
        from mmcompress.metrics._macs import count_macs

        rows = []
        for subject in subjects:
            if subject.target != "torch":
                continue
            graphs = subject.family.graphs(subject.family.load(subject.folder))
            counts = {graph.name: count_macs(graph.module, graph.inputs) for graph in graphs}
            counts["total"] = sum(counts.values())
            rows += [exact_row(subject, "macs", n, "1", conditions={"part": name}) for name, n in counts.items()]
        return Measured(rows, {})
