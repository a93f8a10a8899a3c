"""A report for people: Markdown, tables in a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmcompress import gate
from mmcompress._report_rows import Column, Model, cell, columns, conditions_text, models
from mmcompress._report_text import (
    STATUS_WORDS,
    environment_lines,
    escape_markdown,
    interval,
    number,
    short,
    title,
    verdict_line,
)
from mmcompress.metrics import Row

if TYPE_CHECKING:
    from rich.console import Console

    from mmcompress.report import Report

LEGEND = (
    "± is the larger half of the 95 % interval. Retention and drop are relative to the teacher in torch on the same "
    "examples; speed-ups to the teacher's own FP32 package in the same runtime, timed in turns on the same machine."
)
"""What the numbers of an overview mean."""
_STYLES = {"passed": "green", "failed": "bold red", "inconclusive": "yellow", "not_measured": "yellow"}


def summary(verdicts: Sequence[gate.Verdict]) -> str:
    """The outcome in one line: ``Failed: of 3 demands 2 passed, 1 failed.``."""
    if not verdicts:
        return "No demands were made."
    word = {gate.EXIT_PASSED: "Passed", gate.EXIT_FAILED: "Failed", gate.EXIT_INCONCLUSIVE: "Undecided"}
    counts = [(sum(v.status == status for v in verdicts), text.lower()) for status, text in STATUS_WORDS.items()]
    told = ", ".join(f"{count} {text}" for count, text in counts if count)
    return f"{word[gate.exit_code(verdicts)]}: of {len(verdicts)} demands {told}."


def absences(rows: Sequence[Row]) -> list[str]:
    """Why rows have no value, each reason once: ``openvino int8: latency_ms_p50, ...: reason``."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status != "measured":
            where = f"{row.status.replace('_', ' ')}: {row.reason}"
            reasons.setdefault((row.name, where), []).append(row.metric)
    return [f"{name}: {', '.join(dict.fromkeys(metrics))}: {why}" for (name, why), metrics in reasons.items()]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(map(escape_markdown, head)) + " |"
    yield "|" + "---|" + "---:|" * (len(head) - 1)
    for line in body:
        yield "| " + " | ".join(map(escape_markdown, line)) + " |"


def _side_by_side(found: Sequence[Model], chosen: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    head = ["model", *(title(column.metric, column.request) for column in chosen)]
    return head, [[model.name, *(short(cell(model, column)) for column in chosen)] for model in found]


# --- Markdown ------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The whole report as one Markdown page."""
    lines = [f"# {escape_markdown(report.title)}", "", f"**{summary(report.verdicts)}**", ""]
    if report.verdicts:
        lines += [gate.markdown(report.verdicts)]
    lines += ["## Side by side", ""]
    lines += [*_table(*_side_by_side(models(report.rows), columns(report.rows))), "", LEGEND, ""]
    for heading, notes in (("Not measured", absences(report.rows)), ("Notes", report.notes)):
        if notes:
            lines += [f"## {heading}", "", *(f"- {escape_markdown(note)}" for note in notes), ""]
    rows = [row_cells(row) for model in models(report.rows) for row in model.rows]
    lines += ["## All measurements", "", *_table(ROW_HEAD, rows), ""]
    facts = [
        f"- {escape_markdown(name)}: {escape_markdown(told)}" for name, told in environment_lines(report.environment)
    ]
    lines += ["## Environment", "", *facts, ""]
    lines += ["## Recipe", "", *_fenced(report.recipe), ""]
    return "\n".join(lines)


ROW_HEAD = ("model", "metric", "conditions", "value", "95 % interval", "n", "relative to", "remark")


def row_cells(row: Row) -> list[str]:
    """One measurement with all that is known of it, under :data:`ROW_HEAD`."""
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


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}yaml", text.rstrip("\n"), fence]


# --- terminal ------------------------------------------------------------------------------------------------------


def print_report(report: Report, console: Console) -> None:
    """The models side by side, what is missing and why, and last, where a terminal is read first, the verdicts."""
    from rich.text import Text

    print_rows(report.rows, console)
    _lines(console, [f"not measured: {line}" for line in absences(report.rows)])
    _lines(console, [f"note: {note}" for note in report.notes])
    for verdict in report.verdicts:
        console.print(Text(verdict_line(verdict), style=_STYLES[verdict.status]), soft_wrap=True)
    if not report.joined:
        console.print(Text(f"{report.title}: {summary(report.verdicts)}", style="bold"), soft_wrap=True)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Quality and costs, each as a table in a terminal; one plain line per model elsewhere."""
    from rich.table import Table
    from rich.text import Text

    found, chosen = models(rows), columns(rows)
    if not console.is_terminal:
        for model in found:
            told = [(title(c.metric, c.request), short(cell(model, c))) for c in chosen if cell(model, c) is not None]
            _lines(console, [f"{model.name}: " + "; ".join(f"{name} {value}" for name, value in told)])
        return
    for heading, quality in (("Quality", True), ("Cost", False)):
        part = [column for column in chosen if column.quality is quality]
        if not part:
            continue
        table = Table(title=heading, title_justify="left")
        head, body = _side_by_side(found, part)
        for index, name in enumerate(head):
            table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
        for line in body:
            if any(value != "-" for value in line[1:]):
                table.add_row(*(Text(value) for value in line))
        console.print(table)


def _lines(console: Console, lines: Sequence[str]) -> None:
    from rich.text import Text

    for line in lines:
        console.print(Text(line), soft_wrap=True)
