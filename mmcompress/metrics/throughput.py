"""Requests that arrive at a rate and are answered by several threads: how many, and how long the slowest take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmcompress.metrics import Bench, Measured, Metric, Row, Subject
from mmcompress.metrics._fresh import ask_processes, main_request, process_row
from mmcompress.metrics._statistics import samples_for_percentile
from mmcompress.metrics._timing import Child


class Throughput(Metric):
    """``requests_per_s`` when the next request comes with each answer, and ``response_ms_p99`` at stated rates.

    At a rate requests come whether or not answers do, and a response counts from when its request was due (what is left out
    otherwise is known as coordinated omission). Batch 1, from end to end.
    """

    request: str | None = None
    """What is answered; None for the family's main request."""
    concurrency: int = Field(2, ge=1, le=256)
    """Threads that answer."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Requests per second that arrive, each measured on its own."""
    seconds: float = Field(3.0, gt=0)
    """Of each rate, in each process."""
    processes: int = Field(3, ge=2)
    """Fresh processes per side."""

    def gives(self) -> frozenset[str]:
        """``requests_per_s``, and ``response_ms_p99`` where there are rates."""
        return frozenset({"requests_per_s", "response_ms_p99"} if self.rates else {"requests_per_s"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Load one process after the other."""
        if not subjects:
            return Measured([], {})
        request = main_request(subjects, self.request)

        def ask(child: Child, ready: float) -> Mapping[str, Any]:
            child.ask(do="warm", request=request.name, batch=1)
            load = {"do": "load", "request": request.name, "concurrency": self.concurrency, "seconds": self.seconds}
            return {str(rate): child.ask(**load, rate=rate) for rate in (0.0, *self.rates)}

        answers, absent = ask_processes(subjects, bench, [request], self.processes, ask)
        conditions = {"request": request.name, "threads": bench.threads, "concurrency": self.concurrency}
        rows: list[Row] = []
        samples: dict[str, list[dict[str, Any]]] = {}
        for side in (item for item in subjects if item.name in answers):
            found, reason = answers[side.name], absent.get(side.name, "")
            per_s = [item["0.0"]["per_s"] for item in found]
            rows.append(
                process_row(side, "requests_per_s", conditions, per_s, "1/s", higher_is_better=True, reason=reason)
            )
            samples[f"throughput/{side.name}"] = [
                {"process": index, "rate": rate, "ms": item[str(rate)]["ms"]}
                for index, item in enumerate(found)
                for rate in self.rates
            ]
            rows += [self._slowest(side, rate, found, conditions, reason) for rate in self.rates]
        return Measured(rows, {name: records for name, records in samples.items() if records})

    def _slowest(
        self, side: Subject, rate: float, found: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], reason: str
    ) -> Row:
        """The p99 over processes; absent where the requests of a process do not bound it, or were not all answered."""
        responses = [item[str(rate)]["ms"] for item in found]
        least = samples_for_percentile(0.99)
        due = [item[str(rate)]["due"] for item in found]
        served = all(len(ms) == count for ms, count in zip(responses, due, strict=True))
        enough = served and all(len(ms) >= least for ms in responses)
        values = [float(np.quantile(ms, 0.99, method="inverted_cdf")) for ms in responses] if enough else []
        if not served:
            reason = f"{min(map(len, responses))} of {max(due)} requests answered: more arrive than it serves"
        elif responses and not enough:
            reason = f"{min(map(len, responses))} requests in a process; {least} bound this percentile: raise `seconds`"
        samples = f"throughput/{side.name}"
        where = {**conditions, "rate": rate}
        row = process_row(side, "response_ms_p99", where, values, "ms", reason=reason, samples=samples)
        return row if enough or not responses else replace(row, status="too_few_samples")
