"""The report as one page of HTML: everything is inside it, no script, and nothing is asked for from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmcompress._report_show import ROW_HEAD, absences, row_cells
from mmcompress._report_text import environment_lines
from mmcompress.metrics import Row
from mmcompress.page._examples import examples, keep_examples
from mmcompress.page._html import Html, bullets, details, document, join, section, table, tag
from mmcompress.page._overview import (
    gains_and_losses,
    quality_and_cost,
    side_by_side,
    tiles,
    verdict,
)
from mmcompress.page._parts import int8, latency, slices, steps_table, structure
from mmcompress.page._view import View

if TYPE_CHECKING:
    from mmcompress.data import Examples
    from mmcompress.report import Report

FILE = "report.html"
_MOST_ROWS, _LETTERS = 1200, 300
"""Rows that are listed one by one, and letters of a remark; ``report.json`` has all of them."""
LIMIT = 2_000_000
"""Bytes that a page may have."""
_FRAME = 30_000
"""Of which head, style and notes take at most so many."""
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
        "rows": _rows(view),
        "environment": _environment(view),
        "recipe": section("recipe", "Recipe", tag("pre", report.recipe.rstrip("\n"), tabindex="0")),
    }
    parts |= {"verdict": verdict(view), "compare": _headline(view) + side_by_side(view)}
    parts |= {"examples": Html(), "notes": Html()}
    room = LIMIT - _FRAME - sum(len(part.encode()) for part in parts.values())
    parts["examples"] = examples(view, room)
    if (over := len(parts["examples"].encode()) - room) > 0:  # by its words, which pictures and sounds make room for
        parts["examples"] = examples(view, room - over)
    parts["notes"] = _notes(view)  # last, because the other sections add what they could not draw
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


def _row(row: Row) -> list[str]:
    cells = row_cells(row)
    return [*cells[:-1], cells[-1] if len(cells[-1]) <= _LETTERS else cells[-1][: _LETTERS - 1] + "…"]


def _rows(view: View) -> Html:
    rows = [row for side in view.sides for row in side.model.rows]
    if not rows:
        return Html()
    listed = table(ROW_HEAD, map(_row, rows[:_MOST_ROWS]), class_="words", label="All measurements")
    left = f"The first {_MOST_ROWS:,}; all are in report.json." if len(rows) > _MOST_ROWS else ""
    note = tag("p", left, class_="note") if left else Html()
    return section("rows", "All measurements", details(f"{len(rows):,} rows", note, listed), steps_table(view))


def _environment(view: View) -> Html:
    facts = join(tag("dt", name) + tag("dd", told) for name, told in environment_lines(view.report.environment))
    return section("environment", "Environment", tag("dl", facts, class_="facts")) if facts else Html()
