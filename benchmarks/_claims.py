"""What every benchmark shares: claims with goals and intervals, one JSON file, a table, an exit code."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmcompress._environment import environment_facts
from mmcompress.metrics import Row
from mmcompress.report import Report, read_samples

THREADS = 2


@dataclass(frozen=True)
class Claim:
    """A number, what it should be, and whether its interval says that it is."""

    name: str
    value: float | None
    unit: str
    ci95: tuple[float, float] | None
    goal: float | None
    higher_is_better: bool
    holds: bool | None
    """None: the interval straddles the goal, or there is none to reach."""


def claim(name: str, row: Row, goal: float | None = None, *, better: bool | None = None) -> Claim:
    """A claim about a report's row; the worse end of its one-sided interval must meet the goal."""
    higher = row.higher_is_better if better is None else better
    ends = row.one_sided95 or ((row.value, row.value) if row.value is not None else None)
    return Claim(name, row.value, row.unit, row.ci95, goal, higher, verdict(ends, goal, higher_is_better=higher))


def verdict(ends: tuple[float, float] | None, goal: float | None, *, higher_is_better: bool) -> bool | None:
    """Whether a goal is met by an interval's worse end (True), missed by its better end (False), or neither (None)."""
    if goal is None or ends is None:
        return None
    worse, better = ends if higher_is_better else (-ends[1], -ends[0])
    least = goal if higher_is_better else -goal
    return True if worse >= least else False if better < least else None


def find(report: Report, metric: str, name: str, **conditions: Any) -> Row:
    """The one row of a metric of a model that meets conditions."""
    rows = [
        row
        for row in report.rows
        if row.metric == metric
        and row.name == name
        and all(row.conditions.get(key) == value for key, value in conditions.items())
    ]
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} rows of {metric} of {name} with {conditions}")
    return rows[0]


def samples_of(reports: Sequence[Report]) -> dict[str, Any]:
    """The raw samples of reports, by title and name; times as milliseconds alone, to keep the file small."""
    return {
        f"{report.title}/{name}": [
            {key: value for key, value in record.items() if key not in ("answer", "answer_text_to_image")}
            for record in read_samples(report, name)
        ]
        for report in reports
        for name in report.samples
        if name.startswith(("recall_at_1/", "latency/"))
    }


def only() -> list[str]:
    """The names that the command line gives with ``--only``, which is taken out of it; none for everything."""
    names = []
    while "--only" in sys.argv:
        place = sys.argv.index("--only")
        names += sys.argv[place + 1 : place + 2]
        del sys.argv[place : place + 2]
    return names


def main(
    text: str, measure: Callable[..., tuple[Sequence[Claim], Mapping[str, Any]]], *, paths: Sequence[str] = ()
) -> int:
    """Parse paths, ``--quick`` and ``--out``; measure, write, print; 0 when every goal is met, 1 when one is missed, 4 else."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for path in paths:
        parser.add_argument(path, type=Path)
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores; shows that it runs")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    claims, samples = measure(arguments.quick, *(getattr(arguments, path) for path in paths))
    return write_and_print(claims, samples, arguments.out, quick=arguments.quick)


def main_of_parts(
    text: str,
    parts: Mapping[str, Callable[..., tuple[Sequence[Claim], Mapping[str, Any]]]],
    *,
    paths: Sequence[str] = ("data", "work"),
) -> int:
    """:func:`main` of the parts that ``--only`` names, or of all: each is given ``quick`` and the paths, resolved."""
    chosen = only() or list(parts)

    def measure(quick: bool, *given: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
        claims: list[Claim] = []
        samples: dict[str, Any] = {}
        for name in chosen:
            found, raw = parts[name](quick, *(path.resolve() for path in given))
            claims += found
            samples.update(raw)
        return claims, samples

    return main(text, measure, paths=paths)


def write_and_print(claims: Sequence[Claim], samples: Mapping[str, Any], out: Path | None, *, quick: bool) -> int:
    """The JSON file, the table, and the exit code."""
    if out is not None:
        content = {
            "environment": environment_facts(THREADS),
            "quick": quick,
            "claims": [asdict(c) for c in claims],
            "samples": samples,
        }
        out.write_text(json.dumps(content) + "\n", encoding="utf-8")
    for item in claims:
        print(line(item))
    verdicts = [item.holds for item in claims if item.goal is not None]
    return 1 if False in verdicts else 4 if None in verdicts else 0


def clopper_pearson(hits: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson, Biometrika 26 (1934)), ``alpha / 2`` outside each end."""

    def tail(share: float, least: int) -> float:
        """The chance of at least ``least`` hits."""
        if share in (0.0, 1.0):
            return float(share == 1.0 or least == 0)
        terms = (
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(share)
            + (n - k) * math.log1p(-share)
            for k in range(least, n + 1)
        )
        return math.fsum(math.exp(term) for term in terms)

    def solve(least: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle, least) < wanted else (low, middle)
        return (low + high) / 2

    return (solve(hits, alpha / 2) if hits else 0.0, solve(hits + 1, 1 - alpha / 2) if hits < n else 1.0)


def share_claim(name: str, hits: int, n: int, goal: float | None, *, higher_is_better: bool) -> Claim:
    """A share with its exact interval; it holds where the share meets the goal, whose interval is shown beside it."""
    share = hits / n
    holds = None if goal is None else (share >= goal if higher_is_better else share <= goal)
    return Claim(f"{name}, of {n}", share, "ratio", clopper_pearson(hits, n), goal, higher_is_better, holds)


def line(item: Claim) -> str:
    """One claim as a line of the table."""
    shown = "-" if item.value is None else f"{item.value:.4g}"
    interval = f" [{item.ci95[0]:.4g}, {item.ci95[1]:.4g}]" if item.ci95 else ""
    goal = "" if item.goal is None else f"  goal {'>=' if item.higher_is_better else '<='} {item.goal:g}"
    verdict = "" if item.goal is None else {True: "  holds", False: "  MISSED", None: "  undecided"}[item.holds]
    return f"{item.name:<64} {shown}{interval} {item.unit}{goal}{verdict}"
