"""Numbers, intervals and verdicts as people read them: with units, and no more digits than mean something."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmcompress.metrics import Row

if TYPE_CHECKING:
    from mmcompress.gate import Verdict

_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_TITLES = {
    "mrr": "mean reciprocal rank",
    "wer": "word error rate",
    "cer": "character error rate",
    "cider": "CIDEr",
    "vqa_accuracy": "VQA accuracy",
    "zero_shot_top1": "zero-shot top-1",
    "macs": "MACs",
    "size_bytes": "size",
    "package_bytes": "package",
    "peak_memory_bytes": "peak memory",
}
STATUS_WORDS = {
    "passed": "passed",
    "failed": "FAILED",
    "inconclusive": "inconclusive",
    "not_measured": "not measured",
}


def title(metric: str, request: str | None = None) -> str:
    """A heading: ``recall@1``, ``embed_image p50``, ``embed_text speed-up``."""
    prefix, dot, base = metric.partition(".")
    if dot and prefix in ("retention", "drop", "difference"):
        return prefix
    if dot and prefix in ("speedup", "speedup_torch"):
        return f"{request or title(base)} speed-up" + (" over torch" if prefix == "speedup_torch" else "")
    if metric.startswith("latency_ms_"):
        return f"{request or 'latency'} {metric.removeprefix('latency_ms_')}"
    if metric.startswith("recall_at_"):
        return "recall@" + metric.removeprefix("recall_at_").replace("_", " ")
    return _TITLES.get(metric, metric.replace("_", " "))


def number(metric: str, value: float, unit: str, digits: int = 1, like: float | None = None) -> str:
    """A value with its unit: shares as per cent, ratios of costs as a factor, sizes and counts with a prefix.

    ``like`` is the value whose prefix and digits are taken, for the half width that stands behind it.
    """
    scale = abs(value if like is None else like)
    if unit == "ratio" and (metric.startswith("speedup") or metric == "size_ratio"):
        return f"{value:.{digits + 1}f}x"
    if unit == "ratio":
        return f"{value * 100:.{digits}f} " + ("points" if metric.startswith(("drop.", "difference.")) else "%")
    if unit in ("byte", "bytes", "B"):
        return _prefixed(value, "B", digits, scale)
    if unit in ("", "1", "count", "parameters", "macs", "MACs"):
        return _prefixed(value, "", digits, scale)
    if unit == "1/s":
        return f"{_significant(value, scale)} per s"
    return f"{_significant(value, scale)} {unit}"


def _prefixed(value: float, unit: str, digits: int, scale: float) -> str:
    for factor, prefix in _SI:
        if scale >= factor:
            return f"{value / factor:.{digits + 1}f} {prefix}{unit}"
    return f"{value:,.0f} {unit}".rstrip()


def _significant(value: float, scale: float) -> str:
    """Three significant digits of ``scale``, and every digit before the point."""
    if scale == 0 or scale >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(scale))}f}"


def short(row: Row | None) -> str:
    """A cell of the overview: the value, with the larger half of its 95 % interval; a dash where there is no row."""
    if row is None:
        return "-"
    if row.status != "measured" or row.value is None:
        return "not measured"
    text = number(row.metric, row.value, row.unit)
    if row.ci95 is None:
        return text
    half = max(row.value - row.ci95[0], row.ci95[1] - row.value)
    value, _, unit = text.partition(" ")
    width = number(row.metric, half, row.unit, like=row.value).partition(" ")[0]
    return f"{value} ± {width} {unit}".rstrip()


def interval(row: Row) -> str:
    """The 95 % interval, or ``exact``."""
    if row.status != "measured" or row.value is None:
        return ""
    if row.ci95 is None:
        return "exact"
    low, high = (number(row.metric, end, row.unit, digits=2) for end in row.ci95)
    return f"{low} to {high}"


def environment_lines(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts of a machine and what is known of them."""
    for name, value in environment.items():
        if value is None:
            told = "not known"
        elif isinstance(value, Mapping):
            told = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            told = ", ".join(map(str, value))
        else:
            told = number(name, value, "bytes") if name == "memory_bytes" else str(value)
        yield name.replace("_", " "), told


# --- verdicts ------------------------------------------------------------------------------------------------------


def goal_text(verdict: Verdict) -> str:
    """``at least 98.50 %``."""
    unit = verdict.unit
    if not unit:  # nothing was measured, so no row tells the unit
        unit = "B" if verdict.metric.endswith("_bytes") else "-"
    goal = f"{verdict.goal:g}" if unit == "-" else number(verdict.metric, verdict.goal, unit, digits=2)
    if verdict.value is None and not verdict.unit:
        return goal
    return f"{'at least' if verdict.higher_is_better else 'at most'} {goal}"


def measured_text(verdict: Verdict) -> str:
    """``98.91 % (98.20 % to 99.62 %)``, with the one-sided 95 % bounds below and above."""
    if verdict.value is None:
        return "-"
    value = number(verdict.metric, verdict.value, verdict.unit, digits=2)
    if verdict.one_sided95 is None:
        return value
    low, high = (number(verdict.metric, end, verdict.unit, digits=2) for end in verdict.one_sided95)
    return f"{value} ({low} to {high})"


def verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    """Verdict, package, demand, goal, measured, why."""
    return (
        STATUS_WORDS[verdict.status],
        verdict.subject or verdict.target,
        verdict.demand,
        goal_text(verdict),
        measured_text(verdict),
        verdict.reason,
    )


def verdict_line(verdict: Verdict) -> str:
    """The same in one line."""
    status, subject, demand, goal, measured, reason = verdict_cells(verdict)
    line = f"{status}: {subject}: {demand}: demanded {goal}, measured {measured}"
    return f"{line}; {reason}" if reason else line


def escape_markdown(text: str) -> str:
    """Text that stays itself within a cell of a Markdown table."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}" if character not in "<>" else f"&{'lg'[character == '>']}t;")
    return " ".join(text.split())
