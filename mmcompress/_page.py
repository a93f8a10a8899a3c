"""The report as one page of HTML: everything is inside it, no script, and nothing is asked for from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress._page_examples import examples, keep_examples
from mmcompress._page_html import Html, bullets, details, document, join, section, table, tag
from mmcompress._page_overview import (
    gains_and_losses,
    quality_and_cost,
    side_by_side,
    tiles,
    verdict,
)
from mmcompress._page_parts import int8, latency, slices, steps_table, structure
from mmcompress._page_view import View
from mmcompress._report_rows import conditions_text
from mmcompress._report_show import absences
from mmcompress._report_text import interval, number
from mmcompress.metrics import Row

if TYPE_CHECKING:
    from mmcompress.data import Examples
    from mmcompress.report import Report

FILE = "report.html"
_MOST_ROWS = 1200
"""Rows that are listed one by one; all of them are in ``report.json``."""
_SECTIONS = {
    "verdict": "Verdict",
    "compare": "Comparison",
    "notes": "Notes",
    "pareto": "Quality and cost",
    "stages": "Stages",
    "latency": "Latency",
    "structure": "Structure",
    "int8": "INT8",
    "slices": "Slices",
    "examples": "Examples",
    "rows": "All rows",
    "environment": "Environment",
    "recipe": "Recipe",
}


def page(report: Report) -> str:
    """The page of a report. Samples and examples are read from the report's folder, where it has one."""
    view = View(report)
    parts = {
        "pareto": quality_and_cost(view),
        "stages": gains_and_losses(view),
        "latency": latency(view),
        "structure": structure(view),
        "int8": int8(view),
        "slices": slices(view),
        "examples": examples(view),
        "rows": _rows(view),
        "environment": _environment(view),
        "recipe": section("recipe", "Recipe", tag("pre", report.recipe.rstrip("\n"), tabindex="0")),
    }
    parts = {
        "verdict": verdict(view),
        "compare": Html(_headline(view) + side_by_side(view)),
        "notes": _notes(view),  # last, because the other sections add what they could not draw
        **parts,
    }
    links = [tag("a", name, href=f"#{key}") for key, name in _SECTIONS.items() if parts[key]]
    folder = report.folder.name if report.folder is not None else ""
    head = tag("header", tag("h1", report.title), tag("p", folder, class_="soft"), tag("nav", *links))
    order = [parts[key] for key in _SECTIONS]
    foot = tag("footer", "Made by mmcompress. The rows are in report.json, the raw samples in samples/.")
    return document(report.title, Html(head + tag("main", *order) + foot))


def write_page(report: Report, to: Path, test: Examples | None = None) -> Path:
    """Write the page; gives its path.

    Args:
        report: What is shown, with the folder that it was read from.
        to: The file, or a folder that gets a ``report.html``.
        test: The test split, from which examples that the page shows are kept beside the report; None where they are
            there already, or where there are none.
    """
    if test is not None:
        keep_examples(View(report), test)
    path = to / FILE if to.is_dir() else to
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page(report), encoding="utf-8")
    os.replace(part, path)
    return path


def _headline(view: View) -> Html:
    found = tiles(view)
    return tag("section", found, aria_label="Key figures") if found else Html()


def _notes(view: View) -> Html:
    absent = absences(view.report.rows)
    notes = [note for note in view.report.notes if not note.startswith("target failed")]
    parts = []
    for heading, lines in (("Notes", [*notes, *dict.fromkeys(view.problems)]), ("Not measured", absent)):
        if lines:
            shown = (
                bullets(lines)
                if len(lines) <= 8
                else bullets(lines[:8]) + details(f"{len(lines) - 8} more", bullets(lines[8:]))
            )
            parts.append(tag("h3", heading) + shown)
    return section("notes", "Notes and what was not measured", *parts)


def _rows(view: View) -> Html:
    rows = [row for side in view.sides for row in side.model.rows]
    if not rows:
        return Html()
    head = ["model", "metric", "conditions", "value", "95 % interval", "n", "relative to", "remark"]
    listed = table(head, (_row(row) for row in rows[:_MOST_ROWS]), class_="words", label="All measurements")
    left = f"The first {_MOST_ROWS:,}; all are in report.json." if len(rows) > _MOST_ROWS else ""
    note = tag("p", left, class_="note") if left else Html()
    return section("rows", "All measurements", details(f"{len(rows):,} rows", note, listed), steps_table(view))


def _row(row: Row) -> list[object]:
    return [
        row.name,
        row.metric,
        conditions_text(row),
        number(row.metric, row.value, row.unit, digits=2) if row.value is not None else "-",
        interval(row),
        f"{row.n:,}" if row.n else "",
        row.reference,
        row.reason if row.status == "measured" else f"{row.status.replace('_', ' ')}: {row.reason}",
    ]


def _environment(view: View) -> Html:
    facts = join(tag("dt", name) + tag("dd", value) for name, value in _facts(view.report.environment))
    return section("environment", "Environment", tag("dl", Html(facts), class_="facts")) if facts else Html()


def _facts(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in environment.items():
        if value is None:
            told = "not known"
        elif isinstance(value, Mapping):
            told = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            told = ", ".join(map(str, value))
        else:
            told = number("size_bytes", value, "bytes") if name == "memory_bytes" else str(value)
        yield name.replace("_", " "), told
