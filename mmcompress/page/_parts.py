"""Sections of the report's page: times as they were measured, structure, INT8, slices, damage and classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._report_rows import Column, cell
from mmcompress._report_text import number, title
from mmcompress.metrics import Row
from mmcompress.page._html import Html, details, figure, join, section, table, tag
from mmcompress.page._plots import Dot, Share, Spread, dots, ridges, shares
from mmcompress.page._view import (
    Side,
    View,
    about,
    axis_text,
    interval_text,
    legend,
    measured,
    metric_title,
    value_text,
)

Job = tuple[str, int, str]
"""Request, batch and scope of a time."""
_BINS, _MOST_JOBS, _MOST_PARTS, _MOST_LINES = 56, 6, 24, 150
_MORE = 12
"""Figures that are folded away; what goes beyond them is in the rows alone, so that the page stays small."""
_SLICES = {
    "subset": "By slice",
    "damage": "Under damage",
    "masked": "With an input left out",
    "class": "By class",
}


# --- times ---------------------------------------------------------------------------------------------------------


def latency(view: View) -> Html:
    """Distributions of all timed calls, per request and batch."""
    calls: dict[Job, list[tuple[Side, NDArray[np.float64]]]] = {}
    for side in view.sides:
        for job, milliseconds in _calls(view, side).items():
            calls.setdefault(job, []).append((side, milliseconds))
    order = sorted(calls, key=lambda job: job[2] != "engine")
    figures = [_latency(job, calls[job]) for job in order[:_MOST_JOBS]]
    absent = {side.label: row.reason for side in view.sides for row in side.model.rows if _is_absent_time(row)}
    notes = join(tag("p", f"{name} was not timed: {reason}", class_="note") for name, reason in absent.items())
    if not figures:
        return section("latency", "Latency", notes)
    more = _more([_latency(job, calls[job]) for job in order[_MOST_JOBS : _MOST_JOBS + _MORE]])
    note = "All timed calls of all processes, on a logarithmic axis that leaves out the slowest per cent."
    return section(
        "latency", "Latency", tag("p", note, class_="note"), tag("div", *figures, class_="figures"), more, notes
    )


def _more(figures: Sequence[Html]) -> Html:
    return details(f"{len(figures)} more", tag("div", *figures, class_="figures")) if figures else Html()


def _is_absent_time(row: Row) -> bool:
    return row.metric == "latency_ms_p50" and row.status == "not_runnable_here"


def _calls(view: View, side: Side) -> dict[Job, NDArray[np.float64]]:
    names = dict.fromkeys(
        row.samples for row in side.model.rows if row.metric.startswith("latency_ms_") and row.samples
    )
    found: dict[Job, list[float]] = {}
    for name in names:
        for record in view.samples(name):
            job = (str(record["request"]), int(record["batch"]), str(record["scope"]))
            found.setdefault(job, []).extend(record["ms"])
    return {job: np.array(times, dtype=np.float64) for job, times in found.items() if times}


def _latency(job: Job, calls: Sequence[tuple[Side, NDArray[np.float64]]]) -> Html:
    request, batch, scope = job
    ends = [np.quantile(times, (0.0, 0.99)) for _, times in calls]
    low = max(min(float(end[0]) for end in ends), 1e-6) / 1.08
    high = max(float(end[1]) for end in ends) * 1.08
    spreads, body = [], []
    for side, times in calls:
        p50, p90 = (float(value) for value in np.quantile(times, (0.5, 0.9)))
        counts, _ = np.histogram(np.log(times.clip(low, high)), bins=_BINS, range=(np.log(low), np.log(high)))
        remark = f"p50 {number('', p50, 'ms')}, p90 {number('', p90, 'ms')}"
        spreads.append(Spread(side.label, (counts / counts.max()).tolist(), p50, p90, side.colour, remark))
        told = [number("", value, "ms") for value in (p50, p90, float(times.min()), float(times.max()))]
        body.append([side.label, *told, f"{len(times):,}"])
    where = {"engine": "engine alone", "end_to_end": "with pre- and postprocessing"}.get(scope, scope)
    described = f"Latency of {request}, {where}: " + "; ".join(f"{s.label} {s.remark}" for s in spreads) + "."
    drawn = ridges(spreads, low, high, axis_text("", "ms"), described)
    caption = Html(tag("span", request) + tag("small", f"{where}, batch {batch}; line: p50, dashed: p90"))
    return figure(caption, drawn, ["model", "p50", "p90", "shortest", "longest", "calls"], body)


# --- structure and INT8 --------------------------------------------------------------------------------------------


def structure(view: View) -> Html:
    """What is left of each part of the teacher, and of each block that was pruned."""
    figures = [drawn for metric in ("parameters", "macs") if (drawn := _parts(view, metric))]
    for step in view.report.steps:
        blocks = _blocks(step.facts)
        if blocks:
            figures.append(_pruned(step.name, blocks))
    body = tag("div", *figures, class_="figures") if figures else Html()
    return section("structure", "Structure before and after", body)


def _parts(view: View, metric: str) -> Html:
    """Shares of the teacher's parameters or products that the last model has, by part."""
    if len(view.chain) < 2:
        return Html()
    first, last = view.chain[0], view.chain[-1]
    before, after = about(first, metric, "part"), about(last, metric, "part")
    rows, body = [], []
    for part in sorted((part for part in before if part in after), key=lambda part: part != "total"):
        old, new = before[part].value, after[part].value
        if not old or new is None:
            continue
        told = f"{value_text(before[part])} → {value_text(after[part])}"
        rows.append(Share(part, new / old, told, last.colour))
        body.append([part, value_text(before[part]), value_text(after[part]), f"{new / old * 100:.0f} %"])
    if not rows:
        return Html()
    described = f"{title(metric)} left by part: " + "; ".join(f"{line[0]} {line[3]}" for line in body) + "."
    caption = Html(tag("span", f"{title(metric)} by part") + tag("small", f"{first.label} → {last.label}"))
    return figure(caption, shares(rows, described), ["part", first.label, last.label, "left"], body)


def _blocks(facts: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """Blocks of a pruning stage: what is counted, before and after."""
    found = {}
    for name, cut in (facts.get("blocks") or {}).items():
        for what, counts in cut.items() if isinstance(cut, Mapping) else ():
            if isinstance(counts, Sequence) and len(counts) == 2 and counts[0]:
                found[f"{name}"] = (what, int(counts[0]), int(counts[1]))
    return found


def _pruned(name: str, blocks: Mapping[str, tuple[str, int, int]]) -> Html:
    rows = [
        Share(block, after / before, f"{before} → {after} {what}", 3) for block, (what, before, after) in blocks.items()
    ]
    body = [[block, what, before, after] for block, (what, before, after) in blocks.items()]
    described = f"{name}: " + "; ".join(f"{row.label} {row.remark}" for row in rows) + "."
    caption = Html(tag("span", "Blocks that were pruned") + tag("small", name))
    return figure(caption, shares(rows, described, compact=True), ["block", "counted", "before", "after"], body)


def int8(view: View) -> Html:
    """Per quantization and graph: which weighted operators run in INT8."""
    figures = []
    for step in view.report.steps:
        graphs = step.facts.get("graphs")
        if step.kind == "quantize" and isinstance(graphs, Mapping):
            figures.append(_coverage(step.name, graphs))
    body = tag("div", *figures, class_="figures") if figures else Html()
    return section("int8", "INT8 coverage", body)


def _coverage(name: str, graphs: Mapping[str, Mapping[str, Any]]) -> Html:
    rows, body = [], []
    for graph, facts in graphs.items():
        done, left = list(facts.get("int8", ())), list(facts.get("float", ()))
        tables = len(facts.get("int8_tables", ()))
        count = len(done) + len(left)
        remark = f"{len(done)} of {count} products" + (f", {tables} tables" if tables else "")
        rows.append(Share(graph, len(done) / count if count else 0.0, remark, 1))
        sizes = [number("size_bytes", facts[key], "bytes") if key in facts else "-" for key in ("float_bytes", "bytes")]
        body.append([graph, len(done), len(left), tables, *sizes, ", ".join(map(str, left)) or "none"])
    described = f"{name}: in INT8 " + "; ".join(f"{row.label} {row.remark}" for row in rows) + "."
    caption = Html(tag("span", "Products with weights that run in INT8") + tag("small", name))
    head = ["graph", "INT8", "float", "tables", "size in FP32", "size in INT8", "left in float"]
    return figure(caption, shares(rows, described), head, body)


# --- parts of the test data ----------------------------------------------------------------------------------------


def slices(view: View) -> Html:
    """Quality by slice, under damage, with inputs left out, and by class."""
    parts = []
    for key, heading in _SLICES.items():
        figures = [drawn for metric in _metrics_with(view, key) for drawn in _slices(view, metric, key)]
        if figures:
            shown = tag("div", *figures[:_MOST_JOBS], class_="figures")
            more = _more(figures[_MOST_JOBS : _MOST_JOBS + _MORE])
            parts.append(tag("h3", heading) + shown + more)
    body = Html(legend(view.compared) + join(parts)) if parts else Html()
    return section("slices", "Slices, damage and classes", body)


def _metrics_with(view: View, key: str) -> list[str]:
    metrics = dict.fromkeys(
        row.metric for side in view.sides for row in side.model.rows if row.conditions.get(key) is not None
    )
    return [metric for metric in metrics if not metric.startswith(("retention.", "drop.", "difference."))]


def _slices(view: View, metric: str, key: str) -> Iterator[Html]:
    """One figure per column of slices; for the rest one."""
    found = {side.label: about(side, metric, key) for side in view.compared}
    groups: dict[str, list[str]] = {}
    for part in dict.fromkeys(part for rows in found.values() for part in rows):
        column, equals, _ = part.partition("=")
        groups.setdefault(column if equals and key == "subset" else "", []).append(part)
    whole = {side.label: _whole(view, side, metric) for side in view.compared} if key != "class" else {}
    for column, parts in groups.items():
        known = [part for part in parts if any(measured(rows.get(part)) is not None for rows in found.values())]
        if known:
            yield _slice_figure(view, metric, key, column, known, found, whole)


def _whole(view: View, side: Side, metric: str) -> Row | None:
    return cell(side.model, Column(metric, None, quality=True))


def _slice_figure(
    view: View,
    metric: str,
    key: str,
    column: str,
    parts: Sequence[str],
    found: Mapping[str, Mapping[str, Row]],
    whole: Mapping[str, Row | None],
) -> Html:
    everything = (
        "all examples" if key in ("subset", "class") else "undamaged" if key == "damage" else "nothing left out"
    )
    entries = [(everything, whole)] if any(measured(row) is not None for row in whole.values()) else []
    entries += [
        (part.partition("=")[2] if column else part, {label: rows.get(part) for label, rows in found.items()})
        for part in parts
    ]
    drawn_rows: list[tuple[str, list[Dot]]] = []
    body: list[list[str]] = []
    for name, rows in entries[:_MOST_LINES]:
        some = [(side, rows.get(side.label)) for side in view.compared]
        if len(drawn_rows) < _MOST_PARTS:
            drawn_rows.append(
                (name, [_dot(side, row) for side, row in some if row is not None and measured(row) is not None])
            )
        body.append([name, *(f"{value_text(row)} {interval_text(row)}".rstrip() for _, row in some)])
    first = next(row for _, rows in entries for row in rows.values() if row is not None and measured(row) is not None)
    words = metric_title(metric, higher_is_better=first.higher_is_better)
    caption = Html(tag("span", words) + (tag("small", f"by {column}") if column else ""))
    names = ", ".join(side.label for side in view.compared)
    described = f"{words} of {names}, {len(entries)} lines: " + "; ".join(
        f"{b[0]}: {', '.join(b[1:])}" for b in body[:8]
    )
    left = f"{len(drawn_rows)} of {len(entries)} are drawn." if len(entries) > len(drawn_rows) else ""
    drawn = dots(drawn_rows, axis_text(metric, first.unit), described)
    return figure(caption, drawn, ["part", *(side.label for side in view.compared)], body, left)


def _dot(side: Side, row: Row) -> Dot:
    assert row.value is not None
    return Dot(row.value, side.colour, side.shape, row.ci95, f"{side.label}: {value_text(row)} {interval_text(row)}")


def steps_table(view: View) -> Html:
    """What each step of the build reported of itself."""
    if not view.report.steps:
        return Html()
    body = [[step.name, f"{step.seconds:.1f} s", _facts_text(step.facts)] for step in view.report.steps]
    return details("What each step reported", table(["step", "took", "facts"], body, class_="words"))


def _facts_text(facts: Mapping[str, Any]) -> str:
    parts = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items()]
    return "; ".join(part if len(part) <= 300 else part[:299] + "…" for part in parts)
