"""How much of a package's work its engine does in float."""

from __future__ import annotations

from collections.abc import Sequence

from mmcompress.metrics import Bench, Measured, Metric, Subject
from mmcompress.metrics._exact import exact_row
from mmcompress.package import read_manifest


class Coverage(Metric):
    """``float_macs_ratio``: of the multiply-accumulates of products with weights, the share that runs in float, by graph.

    Told of INT8 packages, by their manifests: what the engine runs where it was built on a machine that could tell, and
    what was asked for otherwise.
    """

    def gives(self) -> frozenset[str]:
        """``float_macs_ratio``."""
        return frozenset({"float_macs_ratio"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Read the manifests."""
        rows = []
        for subject in subjects:
            covered = read_manifest(subject.folder).get("coverage", {}) if subject.target != "torch" else {}
            for name, graph in covered.items():
                differs = graph["differs"]
                reason = f"otherwise than asked: {', '.join(differs)}" if differs else ""
                share = graph["float_share_of_weighted_macs"]
                conditions = {"part": name}
                rows.append(
                    exact_row(subject, "float_macs_ratio", share, "ratio", conditions=conditions, reason=reason)
                )
        return Measured(rows, {})
