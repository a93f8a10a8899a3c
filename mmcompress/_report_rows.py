"""Which rows of a report are meant where a metric alone is named, and in which order models stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcompress.metrics import Row

USUAL: Mapping[str, Any] = {
    "scope": "engine",
    "direction": "mean",
    "gallery_of": "own",
    "split": "test",
    "part": "total",
    "class": None,
    "subset": None,
    "damage": None,
    "masked": None,
}
"""Conditions that are meant where no others are named; besides, the main request and the smallest batch."""
_DERIVED = ("retention.", "drop.", "difference.", "speedup.", "speedup_torch.")
_COSTS = ("macs", "parameters", "size_bytes", "package_bytes", "size_ratio", "peak_memory_bytes")
_TIMES = ("latency_ms_", "throughput_per_s", "real_time_factor")


def choose(rows: Sequence[Row], conditions: Mapping[str, str], request: str | None) -> list[Row]:
    """Rows that meet ``conditions`` (as text; ``reference`` is one), with the usual value of each that is not named."""
    found = [row for row in rows if all(as_text(_condition(row, key)) == value for key, value in conditions.items())]
    usual = USUAL if request is None else {"request": request, **USUAL}
    for key, value in usual.items():
        if key not in conditions and any(key in row.conditions for row in found):
            found = [row for row in found if row.conditions.get(key, value) == value]
    batches = [row.conditions["batch"] for row in found if "batch" in row.conditions]
    if batches and "batch" not in conditions:
        found = [row for row in found if row.conditions.get("batch", min(batches)) == min(batches)]
    if "reference" not in conditions and any(row.reference == "fp32" for row in found):
        found = [row for row in found if row.reference == "fp32"]
    return found


def _is_usual(row: Row) -> bool:
    """Whether a row is about everything, and not about one class, a part of the examples, or damaged ones."""
    return all(row.conditions.get(key) is None for key, value in USUAL.items() if value is None)


def _condition(row: Row, key: str) -> Any:
    return row.reference if key == "reference" else row.conditions.get(key)


def as_text(value: Any) -> str:
    """A condition's value as brackets of a demand write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def conditions_text(row: Row) -> str:
    """``batch=1, request=embed_text``: what is true of a row."""
    return ", ".join(f"{key}={as_text(value)}" for key, value in row.conditions.items())


# --- side by side --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Something that was measured, with all its rows."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Column:
    """One quantity of every model."""

    metric: str
    request: str | None
    quality: bool


def models(rows: Sequence[Row]) -> list[Model]:
    """Teacher in torch, teacher's packages, baselines, students in the order of the stages, packages."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.role, row.name, row.artifact, row.target), []).append(row)

    def place(key: tuple[str, str, str, str]) -> int:
        role, _, _, target = key
        if role == "teacher":
            return 0 if target == "torch" else 1
        return {"baseline": 2, "student": 3}.get(role, 4)

    return [Model(key[1], tuple(groups[key])) for key in sorted(groups, key=place)]


def columns(rows: Sequence[Row]) -> list[Column]:
    """What stands side by side: quality with what is kept of the first metric, then sizes, times and speed-ups."""
    metrics = list(dict.fromkeys(row.metric for row in rows if _is_usual(row)))
    quality = [name for name in metrics if not name.startswith((*_DERIVED, *_TIMES)) and name not in _COSTS]
    chosen = [Column(name, None, quality=True) for name in quality]
    if quality:
        kept = [f"{prefix}{quality[0]}" for prefix in ("retention.", "drop.", "difference.")]
        chosen[1:1] = [Column(name, None, quality=True) for name in kept if name in metrics]
    chosen += [Column(name, None, quality=False) for name in _COSTS if name in metrics]
    for metric in ("latency_ms_p50", "speedup.latency_ms_p50", "speedup_torch.latency_ms_p50"):
        requests = dict.fromkeys(row.conditions.get("request") for row in rows if row.metric == metric)
        chosen += [Column(metric, request, quality=False) for request in requests]
    return chosen


def cell(model: Model, column: Column) -> Row | None:
    """The row of a model in a column, or None where there is none."""
    conditions = {} if column.request is None else {"request": column.request}
    found = choose([row for row in model.rows if row.metric == column.metric], conditions, None)
    return found[0] if found else None
