"""The most memory that a process holds while it opens a model and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from mmcompress.metrics import Bench, Measured, Metric, Subject
from mmcompress.metrics._fresh import ask_processes, main_request, process_row
from mmcompress.metrics._timing import Child

CALLS = 8


class PeakMemory(Metric):
    """``peak_memory_bytes``: of the whole process with Python and libraries, as the system counts resident pages."""

    request: str | None = None
    """What is answered; None for the family's main request."""
    batch: int = Field(1, ge=1, le=4096)
    """Examples at a time."""
    processes: int = Field(3, ge=2)
    """Fresh processes per side."""

    def gives(self) -> frozenset[str]:
        """``peak_memory_bytes``."""
        return frozenset({"peak_memory_bytes"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Answer a few times in each process and ask for its peak."""
        if not subjects:
            return Measured([], {})
        request = main_request(subjects, self.request)

        def ask(child: Child, ready: float) -> Mapping[str, Any]:
            for _ in range(CALLS):
                child.ask(do="first", request=request.name, batch=self.batch)
            return child.ask(do="memory")

        answers, absent = ask_processes(subjects, bench, [request], self.processes, ask)
        conditions = {"request": request.name, "batch": self.batch, "threads": bench.threads}
        rows = []
        for side in (item for item in subjects if item.name in answers):
            values = [float(item["peak_bytes"]) for item in answers[side.name]]
            reason = absent.get(side.name, "")
            rows.append(process_row(side, "peak_memory_bytes", conditions, values, "byte", reason=reason))
        return Measured(rows, {})
