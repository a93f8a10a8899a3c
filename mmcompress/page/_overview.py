"""The top of the report's page: verdict, key figures, all models side by side, quality against cost, gains and losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmcompress import gate
from mmcompress._report_rows import Column, cell
from mmcompress._report_show import LEGEND, summary
from mmcompress._report_text import STATUS_WORDS, number, title, verdict_cells
from mmcompress.metrics import Row
from mmcompress.page._html import Html, bullets, details, escape, figure, join, section, table, tag
from mmcompress.page._plots import Point, Step, bullet, pareto, scatter, waterfall
from mmcompress.page._view import (
    Side,
    View,
    axis_text,
    interval_text,
    legend,
    measured,
    metric_title,
    row_of,
    value_text,
)

_KIND = {"passed": "good", "failed": "bad", "inconclusive": "open", "not_measured": "open"}
_DRAWN = {"good": "up", "bad": "down", "open": "same"}
_CODES = {gate.EXIT_PASSED: "good", gate.EXIT_FAILED: "bad", gate.EXIT_INCONCLUSIVE: "open"}
_COSTS = ("size_bytes", "parameters", "macs")
_MOST_REQUESTS = 4


# --- verdict -------------------------------------------------------------------------------------------------------


def verdict(view: View) -> Html:
    """What came of the demands, and what failed to be built."""
    if view.report.joined:
        return Html()
    verdicts = view.report.verdicts
    failed = [note for note in view.report.notes if note.startswith("target failed")]
    kind = "bad" if failed else _CODES[gate.exit_code(verdicts)] if verdicts else ""
    order = sorted(verdicts, key=lambda item: ["failed", "inconclusive", "not_measured", "passed"].index(item.status))
    inner = [
        tag("h2", summary(verdicts)),
        bullets([tag("span", note, class_="bad") for note in failed]) if failed else Html(),
        tag("ul", *(_verdict_line(item) for item in order)) if order else Html(),
    ]
    return tag("section", *inner, id="verdict", class_=f"verdict {kind}".rstrip())


def _verdict_line(item: gate.Verdict) -> Html:
    _, subject, demand, goal, found, reason = verdict_cells(item)
    kind = _KIND[item.status]
    parts = [tag("span", STATUS_WORDS[item.status].lower(), class_=f"badge {kind}"), tag("b", demand)]
    parts.append(Html(f" of {tag('span', subject)}: demanded {tag('span', goal)}, measured {tag('span', found)}"))
    if reason:
        parts.append(tag("div", reason, class_="soft"))
    if item.value is not None:
        described = f"{demand}: measured {found}, demanded {goal}"
        drawn = bullet(item.value, item.one_sided95, item.goal, described, _DRAWN[kind])
        parts.append(tag("div", drawn, style="max-width:15rem"))
    return tag("li", *parts)


def tiles(view: View) -> Html:
    """The few figures that each package is asked about."""
    return join(_package_tiles(view, side) for side in view.packages)


def _package_tiles(view: View, side: Side) -> Html:
    found = []
    quality = view.quality[0].metric if view.quality else ""
    for metric, words in (
        (quality, metric_title(quality)),
        (f"retention.{quality}", "of the teacher's quality is kept"),
        ("size_ratio", "smaller than the teacher's package"),
    ):
        row = cell(side.model, Column(metric, None, quality=False)) if quality or metric == "size_ratio" else None
        found += [_tile(row, words)] if measured(row) is not None else []
    for column in [column for column in view.columns if column.metric == "speedup.latency_ms_p50"][:_MOST_REQUESTS]:
        row = row_of(side, column)
        found += [_tile(row, f"as fast: {column.request or 'a call'}")] if measured(row) is not None else []
    return tag("h3", side.label) + tag("div", *found, class_="tiles") if found else Html()


def _tile(row: Row | None, words: str) -> Html:
    return tag("div", tag("b", value_text(row)), tag("span", words), tag("span", interval_text(row)), class_="tile")


# --- side by side --------------------------------------------------------------------------------------------------


def side_by_side(view: View) -> Html:
    """The teacher against each package; all models below."""
    if not view.sides:
        return section("compare", "Teacher and packages", tag("p", "Nothing was measured."))
    note = tag("p", LEGEND, class_="note")
    heading = "Teacher and packages" if view.packages else "All models"
    every = details(f"All {len(view.sides)} models", _compare(view, view.sides))
    more = every if len(view.sides) > len(view.compared) else Html()
    return section("compare", heading, _compare(view, view.compared), note, more)


def _compare(view: View, sides: Sequence[Side]) -> Html:
    def lines() -> Iterator[list[object]]:
        for column in view.columns:
            rows = [row_of(side, column) for side in sides]
            if any(row is not None for row in rows):
                yield [_row_title(column, rows), *(_cell(row) for row in rows)]

    return table(["", *(side.label for side in sides)], lines(), label="Models side by side")


def _row_title(column: Column, rows: Sequence[Row | None]) -> str:
    first = next(row for row in rows if row is not None)
    words = title(column.metric, column.request)
    return words if first.higher_is_better or not column.quality else f"{words} (lower is better)"


def _cell(row: Row | None) -> object:
    if row is None:
        return "-"
    if measured(row) is None:
        return tag("span", "not measured", class_="soft", title=row.reason)
    return escape(value_text(row)) + tag("span", interval_text(row), class_="under")


# --- quality against cost ------------------------------------------------------------------------------------------


def quality_and_cost(view: View) -> Html:
    """Quality against time per request; against size, or another cost, where nothing was timed."""
    if not view.quality:
        return Html()
    times = [column for column in view.columns if column.metric == "latency_ms_p50"][:_MOST_REQUESTS]
    figures = [drawn for column in times if (drawn := _against(view, column))]
    for metric in _COSTS:
        column = Column(metric, None, quality=False)
        if len(figures) < max(2, len(times)) and (drawn := _against(view, column)):
            figures.append(drawn)
    body = legend(view.sides) + tag("div", *figures, class_="figures") if figures else Html()
    return section("pareto", "Quality against cost", body)


def _against(view: View, cost: Column) -> Html:
    quality = view.quality[0]
    pairs = [(side, row_of(side, cost), row_of(side, quality)) for side in view.sides]
    known = [(s, x, y) for s, x, y in pairs if x is not None and y is not None]
    found = [(s, x, y) for s, x, y in known if (measured(x) or 0) > 0 and measured(y) is not None]
    if len(found) < 2:
        return Html()
    points = [Point(s.label, x.value or 0, y.value or 0, s.colour, s.shape, _bounded(x), y.ci95) for s, x, y in found]
    first_x, first_y = found[0][1], found[0][2]
    higher = first_y.higher_is_better
    names = title(cost.metric, cost.request), metric_title(quality.metric, higher_is_better=higher)
    front = [point.label for point in pareto(points, higher_is_better=higher)]
    described = f"{names[1]} against {names[0]} of {len(points)} models. On the Pareto front: {', '.join(front)}."
    texts = axis_text(cost.metric, first_x.unit), axis_text(quality.metric, first_y.unit)
    drawn = scatter(points, names, texts, higher_is_better=higher, description=described)
    body = [[s.label, _plain(x), _plain(y), "yes" if s.label in front else "no"] for s, x, y in found]
    caption = Html(f"{tag('span', title(quality.metric))} against {tag('span', names[0])}")
    note = "Up and to the left is better. No model beats those on the dashed line in both."
    return figure(caption, drawn, ["model", names[0], title(quality.metric), "on the front"], body, note)


def _bounded(row: Row) -> tuple[float, float] | None:
    """An interval that says something about a quantity above zero."""
    if row.ci95 is None or row.value is None or row.ci95[1] > 3 * row.value or row.ci95[0] <= 0:
        return None
    return row.ci95


def _plain(row: Row) -> str:
    return f"{value_text(row)} {interval_text(row)}".rstrip()


# --- gains and losses ----------------------------------------------------------------------------------------------


def gains_and_losses(view: View) -> Html:
    """What each stage and each package gained and lost: quality, then size, parameters and products."""
    if view.report.joined:
        return Html()
    wanted = [*view.quality[:3], *(Column(metric, None, quality=False) for metric in _COSTS)]
    figures = [drawn for column in wanted if (drawn := _waterfall(view, column))]
    note = "Each bar goes from the model before to the model itself, packages from the model that they are made of."
    body = Html(tag("p", note, class_="note") + tag("div", *figures, class_="figures")) if figures else Html()
    return section("stages", "What each stage gained and lost", body)


def _waterfall(view: View, column: Column) -> Html:
    found = [(side, row_of(side, column)) for side in [*view.chain, *view.packages]]
    known = [(side, row) for side, row in found if row is not None and measured(row) is not None]
    if len(known) < 2:
        return Html()
    steps: list[Step] = []
    last: float | None = None
    for side, row in known:
        assert row.value is not None
        change = _change(row, last) if last is not None else ""
        better = None if last is None or row.value == last else (row.value > last) == row.higher_is_better
        steps.append(Step(side.label, last, row.value, value_text(row), change, better, row.ci95))
        last = last if side.role == "package" else row.value
    first = known[0][1]
    words = metric_title(column.metric, higher_is_better=first.higher_is_better)
    told = "; ".join(f"{step.label} {step.value_text} {step.change}".rstrip() for step in steps)
    drawn = waterfall(steps, axis_text(column.metric, first.unit), f"{words}: {told}.", from_zero=not column.quality)
    body = [[step.label, step.value_text, step.change or "-"] for step in steps]
    return figure(words, drawn, ["model", title(column.metric), "change"], body)


def _change(row: Row, before: float) -> str:
    assert row.value is not None
    difference = row.value - before
    sign = "+" if difference > 0 else "\N{MINUS SIGN}" if difference < 0 else "±"
    if row.unit == "ratio":
        return f"({sign}{abs(difference) * 100:.1f} points)"
    if row.higher_is_better or row.metric not in _COSTS or before == 0:
        return f"({sign}{number(row.metric, abs(difference), row.unit)})"
    return f"({sign}{abs(difference) / before * 100:.0f} %)"
