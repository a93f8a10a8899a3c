"""The gate: a recipe's demands against the rows of a report, and a verdict for each.

A demand names a metric of the report, with conditions in brackets where the usual ones are not meant::

    demand:
      retention.recall_at_1: 0.985
      speedup.latency_ms_p50: {onnxruntime: 8.0}
      speedup.latency_ms_p50[embed_text]: 1.0
      latency_ms_p50[request=embed_text, batch=16]: 5.0
      size_bytes: 4 MB

It **passes** when the worse end of the measurement's one-sided 95 % interval meets the goal, **fails** when the better
end misses it, and is **inconclusive** otherwise, with the sample size that would decide. Exact quantities have no interval.
What was not measured here never passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

from mmcompress._report_rows import USUAL, choose, conditions_text
from mmcompress._report_text import escape_markdown, verdict_cells, verdict_line
from mmcompress.component import nearest
from mmcompress.errors import RecipeError, UsageError
from mmcompress.metrics import Row

Status = Literal["passed", "failed", "inconclusive", "not_measured"]
Value = float | int | str
Given = Mapping[str, Value | Mapping[str, Value]]
"""``demand:`` as a recipe has it: metric name to one goal, or to one goal per target."""

EXIT_PASSED, EXIT_FAILED, EXIT_INCONCLUSIVE = 0, 1, 4
KNOWN_CONDITIONS = ("batch", "threads", "request", "reference", "seed", "gallery", *USUAL)
_SCOPES = ("engine", "end_to_end")
_MULTIPLIERS = {
    "": 1,
    "%": 0.01,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
}


@dataclass(frozen=True)
class Demand:
    """A goal for the packages of one target."""

    name: str
    """As the recipe writes it, with brackets."""
    metric: str
    target: str
    goal: float
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What the brackets say, as text."""


@dataclass(frozen=True)
class Verdict:
    """Whether one package meets one demand, and why."""

    demand: str
    metric: str
    target: str
    goal: float
    status: Status
    subject: str = ""
    """The package's name in the report; empty where nothing was measured."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Those of the row that was judged."""
    value: float | None = None
    one_sided95: tuple[float, float] | None = None
    unit: str = ""
    higher_is_better: bool = True
    n: int = 0
    needed_n: int | None = None
    """The sample size that would decide an inconclusive verdict, if the point stays where it is."""
    reason: str = ""

    @property
    def holds(self) -> bool | None:
        """True, False, or None where nothing is known."""
        return {"passed": True, "failed": False}.get(self.status)


# --- reading demands -----------------------------------------------------------------------------------------------


def parse_demands(given: Given, targets: Sequence[str]) -> list[Demand]:
    """Demands of a recipe, one per target each.

    Raises:
        RecipeError: every goal that is no number or size, and every target that the recipe does not have.
    """
    demands: list[Demand] = []
    problems: list[str] = []
    for name, goals in given.items():
        try:
            metric, conditions = split_name(name)
            by_target = goals if isinstance(goals, Mapping) else dict.fromkeys(targets, goals)
            for target, goal in by_target.items():
                if target not in targets:
                    raise UsageError(_unknown_target(target, targets))
                demands.append(Demand(name, metric, target, parse_number(goal), conditions))
        except UsageError as error:
            problems.append(f"demand.{name}: {error}")
    if problems:
        raise RecipeError(problems)
    unique = {(demand.name, demand.target): demand for demand in demands}
    return list(unique.values())


def unknown_names(given: Given, known: Sequence[str], targets: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """What is wrong with demands, found before anything is built: name of the demand, and message.

    ``known`` are the names that the recipe's metrics give. Without ``targets`` the targets' names are not checked.
    """
    problems: list[tuple[str, str]] = []
    for name, goals in given.items():
        try:
            metric, conditions = split_name(name)
        except UsageError as error:
            problems.append((name, str(error)))
            continue
        if metric not in known:
            choices = f"; measured: {', '.join(sorted(known))}" if known else "; `measure.metrics` names no metric"
            problems.append((name, f"nothing measures {metric!r}{nearest(metric, list(known))}{choices}"))
        for condition in conditions:
            near = nearest(condition, KNOWN_CONDITIONS)
            if near and condition not in KNOWN_CONDITIONS:
                problems.append((name, f"unknown condition {condition!r}{near}"))
        for target, goal in goals.items() if isinstance(goals, Mapping) else ((None, goals),):
            if target is not None and targets is not None and target not in targets:
                problems.append((name, _unknown_target(target, targets)))
            try:
                parse_number(goal)
            except UsageError as error:
                problems.append((name, str(error)))
    return problems


def _unknown_target(target: str, targets: Sequence[str]) -> str:
    return f"the recipe has no target {target!r}{nearest(target, list(targets))}; it has {', '.join(targets) or 'none'}"


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """``latency_ms_p50[embed_text, batch=16]`` to the metric and its conditions; a bare word is a request or a scope.

    Raises:
        UsageError: the brackets cannot be read.
    """
    match = re.fullmatch(r"\s*([A-Za-z0-9_.]+)\s*(?:\[([^\[\]]*)\])?\s*", name)
    if match is None:
        raise UsageError(f"cannot read {name!r}; expected metric or metric[request] or metric[batch=16, ...]")
    conditions: dict[str, str] = {}
    for part in match[2].split(",") if match[2] is not None else []:
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            key, value = ("scope" if key in _SCOPES else "request"), key
        if not key or not value or key in conditions:
            raise UsageError(f"cannot read [{match[2]}] of {match[1]!r}; expected request or key=value, each key once")
        conditions[key] = value
    return match[1], conditions


def parse_number(value: Value) -> float:
    """A number, or text with a unit: ``4 MB``, ``512 KiB``, ``98.5 %``, ``40 M``.

    Raises:
        UsageError: it is neither.
    """
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*", value)
        if match is not None and match[2] in _MULTIPLIERS:
            number = float(match[1]) * _MULTIPLIERS[match[2]]
    if not math.isfinite(number):
        units = ", ".join(unit for unit in _MULTIPLIERS if unit)
        raise UsageError(f"expected a number, or a number with one of {units}; got {value!r}")
    return number


# --- judging -------------------------------------------------------------------------------------------------------


def judge(demands: Sequence[Demand], rows: Sequence[Row], main_request: str) -> list[Verdict]:
    """One verdict per demand and package of its target; one ``not_measured`` where a target has no package."""
    verdicts: list[Verdict] = []
    for demand in demands:
        packages = [row for row in rows if row.role == "package" and row.target == demand.target]
        subjects = list(dict.fromkeys((row.artifact, row.name) for row in packages))
        if not subjects:
            verdicts.append(_not_measured(demand, f"nothing was measured of a package for {demand.target}"))
        for subject in subjects:
            own = [row for row in packages if (row.artifact, row.name) == subject]
            found = choose([row for row in own if row.metric == demand.metric], demand.conditions, main_request)
            if not found:
                verdicts.append(_not_measured(demand, _why_absent(demand, own, main_request), subject[1]))
                continue
            # Where several rows remain (seeds, say), the demand is of each of them.
            verdicts.append(max((judge_row(demand, row) for row in found), key=_badness))
    return verdicts


def judge_row(demand: Demand, row: Row) -> Verdict:
    """The verdict of one demand on one row."""
    common: dict[str, Any] = {
        "demand": demand.name,
        "metric": demand.metric,
        "target": demand.target,
        "goal": demand.goal,
        "subject": row.name,
        "conditions": dict(row.conditions),
        "value": row.value,
        "one_sided95": row.one_sided95,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "n": row.n,
    }
    if row.status != "measured" or row.value is None:
        reason = row.reason or "no reason was given"
        return Verdict(**common, status="not_measured", reason=f"{row.status.replace('_', ' ')}: {reason}")
    if row.one_sided95 is None and (row.interval_of is not None or row.ci95 is not None):
        return Verdict(**common, status="not_measured", reason="the row is not exact and has no one-sided bounds")
    low, high = row.one_sided95 or (row.value, row.value)
    worse, better = (low, high) if row.higher_is_better else (high, low)
    if _meets(worse, demand.goal, row.higher_is_better):
        return Verdict(**common, status="passed")
    if not _meets(better, demand.goal, row.higher_is_better):
        return Verdict(**common, status="failed", reason="the better end of its interval misses the goal")
    needed, reason = _deciding_size(row, demand.goal, worse, better)
    return Verdict(**common, status="inconclusive", needed_n=needed, reason=reason)


def _meets(value: float, goal: float, higher_is_better: bool) -> bool:
    return value >= goal if higher_is_better else value <= goal


def _deciding_size(row: Row, goal: float, worse: float, better: float) -> tuple[int | None, str]:
    """The sample size at which an interval around the same point would exclude the goal: its ends move as 1/sqrt(n)."""
    assert row.value is not None
    distance = abs(row.value - goal)
    end = worse if _meets(row.value, goal, row.higher_is_better) else better
    if distance == 0 or row.n == 0:
        return None, "the interval contains the goal, and no sample size is known to decide"
    needed = max(row.n + 1, math.ceil(row.n * (abs(row.value - end) / distance) ** 2))
    unit = "calls" if row.interval_of == "block" else f"{row.interval_of or 'example'}s"
    return needed, f"the interval contains the goal; about {needed:,} {unit} would decide (now {row.n:,})"


def _badness(verdict: Verdict) -> int:
    return ("passed", "inconclusive", "not_measured", "failed").index(verdict.status)


def _not_measured(demand: Demand, reason: str, subject: str = "") -> Verdict:
    return Verdict(
        demand.name, demand.metric, demand.target, demand.goal, "not_measured", subject=subject, reason=reason
    )


def _why_absent(demand: Demand, rows: Sequence[Row], main_request: str) -> str:
    same = [row for row in rows if row.metric == demand.metric]
    if not same:
        return f"no row of this package measures {demand.metric}{nearest(demand.metric, [row.metric for row in rows])}"
    wanted = demand.conditions or {"request": main_request}
    there = sorted({conditions_text(row) for row in same})
    return (
        f"{demand.metric} was not measured at {', '.join(f'{key}={value}' for key, value in wanted.items())}; "
        f"it was at: {'; '.join(there)}"
    )


# --- telling -------------------------------------------------------------------------------------------------------


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """0 when every demand passed, 1 when one failed, else 4: inconclusive or not measured."""
    statuses = {verdict.status for verdict in verdicts}
    if "failed" in statuses:
        return EXIT_FAILED
    return EXIT_INCONCLUSIVE if statuses - {"passed"} else EXIT_PASSED


def junit_xml(verdicts: Sequence[Verdict], suite: str) -> str:
    """JUnit XML: a test case per verdict. Inconclusive and not measured are errors, so that no CI shows them green."""
    failures = sum(verdict.status == "failed" for verdict in verdicts)
    errors = sum(verdict.status in ("inconclusive", "not_measured") for verdict in verdicts)
    root = ElementTree.Element(
        "testsuite", name=suite, tests=str(len(verdicts)), failures=str(failures), errors=str(errors), skipped="0"
    )
    for verdict in verdicts:
        case = ElementTree.SubElement(
            root, "testcase", classname=f"{suite}.{verdict.subject or verdict.target}", name=verdict.demand
        )
        line = verdict_line(verdict)
        if verdict.status == "failed":
            ElementTree.SubElement(case, "failure", type="failed", message=line)
        elif verdict.status != "passed":
            ElementTree.SubElement(case, "error", type=verdict.status, message=line)
        else:
            ElementTree.SubElement(case, "system-out").text = line
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table, the worst first; for a report and for a job's summary."""
    lines = ["| verdict | package | demand | goal | measured | why |", "|---|---|---|---|---|---|"]
    for verdict in sorted(verdicts, key=_badness, reverse=True):
        lines.append("| " + " | ".join(escape_markdown(cell) for cell in verdict_cells(verdict)) + " |")
    return "\n".join(lines) + "\n"
