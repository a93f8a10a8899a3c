"""How long a fresh process takes to its first answer, and how much of that is opening the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from mmcompress.metrics import Bench, Measured, Metric, Subject
from mmcompress.metrics._fresh import ask_processes, main_request, process_row
from mmcompress.metrics._timing import Child


class ColdStart(Metric):
    """``cold_start_ms``: opening and the first answer together; ``load_ms``: opening alone, libraries included.

    The files are in the system's cache after the first process; starting Python itself is left out.
    """

    request: str | None = None
    """What is answered first; None for the family's main request."""
    processes: int = Field(5, ge=2)
    """Fresh processes per side."""

    def gives(self) -> frozenset[str]:
        """Both times."""
        return frozenset({"cold_start_ms", "load_ms"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Start one process after the other."""
        if not subjects:
            return Measured([], {})
        request = main_request(subjects, self.request)

        def ask(child: Child, ready: float) -> Mapping[str, Any]:
            started = time.perf_counter()
            child.ask(do="first", request=request.name, batch=1)
            return {"load_ms": 1000 * ready, "first_ms": 1000 * (time.perf_counter() - started)}

        answers, absent = ask_processes(subjects, bench, [request], self.processes, ask)
        rows, samples = [], {}
        conditions = {"request": request.name, "threads": bench.threads}
        for side in (item for item in subjects if item.name in answers):
            found = answers[side.name]
            samples[f"cold_start/{side.name}"] = [{"process": index, **item} for index, item in enumerate(found)]
            for metric, values in (
                ("cold_start_ms", [item["load_ms"] + item["first_ms"] for item in found]),
                ("load_ms", [item["load_ms"] for item in found]),
            ):
                told: dict[str, Any] = {"reason": absent.get(side.name, ""), "samples": f"cold_start/{side.name}"}
                rows.append(process_row(side, metric, conditions, values, "ms", **told))
        return Measured(rows, samples)
