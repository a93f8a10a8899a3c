"""The report: rows of measurements as JSON, Markdown and a terminal's table, and the raw samples beside them.

::

    <run>/report.json            rows, verdicts, environment, notes, the resolved recipe
    <run>/report.md              the same for people: verdict first, then all models side by side
    <run>/report.html            the same as a page with drawings; it opens without a network
    <run>/recipe.yaml            the resolved recipe
    <run>/samples/<name>.jsonl   raw samples: one line per example, or per timed call
    <run>/examples/              what teacher and package answer differently, as far as the page shows it
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mmcompress import _report_show, gate
from mmcompress.component import JSON, digest_json, digest_path
from mmcompress.errors import InputError
from mmcompress.gate import Verdict
from mmcompress.metrics import Row
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from mmcompress.data import Examples

FORMAT = 1
FILE = "report.json"
_ROWS = TypeAdapter(list[Row])
_VERDICTS = TypeAdapter(list[Verdict])


@dataclass(frozen=True)
class SampleFile:
    """Raw samples of one name, beside the report."""

    file: str
    """Relative to the report's folder."""
    records: int
    sha256: str


@dataclass(frozen=True)
class StepFacts:
    """What a step of the build told of itself: losses, blocks that were cut, operators in INT8, ..."""

    name: str
    """Of the model where it made one (``prune``), else the step's own."""
    kind: str
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What a run measured and what came of its demands."""

    title: str
    rows: Sequence[Row]
    verdicts: Sequence[Verdict]
    environment: Mapping[str, Any]
    recipe: str
    """The resolved recipe, as YAML."""
    notes: Sequence[str]
    """What was left out, mended or failed."""
    samples: Mapping[str, SampleFile] = field(default_factory=dict)
    folder: Path | None = None
    steps: Sequence[StepFacts] = ()
    joined: bool = False
    """Whether several runs are in it, whose stages do not follow one another, and none of which is judged."""


_SAMPLES = TypeAdapter(dict[str, SampleFile])
_STEPS = TypeAdapter(list[StepFacts])


def row_as_json(row: Row) -> dict[str, JSON]:
    """A row as ``report.json`` holds it.

    Raises:
        ValueError: it has a value or an end that is no finite number.
    """
    value: dict[str, JSON] = json.loads(json.dumps(asdict(row), allow_nan=False))
    return value


def write_report(
    folder: Path,
    *,
    title: str,
    rows: Sequence[Row],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    environment: Mapping[str, Any],
    recipe_text: str,
    verdicts: Sequence[Verdict],
    notes: Sequence[str],
    steps: Sequence[StepFacts] = (),
    test: Examples | None = None,
) -> Report:
    """Write samples, Markdown, the page and, last, ``report.json``: a folder that has it is whole.

    From ``test``, the examples that were answered, those are kept that the page shows.

    Raises:
        ValueError: two rows that are the same measurement, a number that is not finite, a row that names samples which
            are not there.
    """
    from mmcompress.page import write_page

    problem = _problem(rows, set(samples))
    if problem:
        raise ValueError(problem)
    folder.mkdir(parents=True, exist_ok=True)
    files = _write_samples(folder, samples)
    told = [*steps]
    report = Report(title, list(rows), list(verdicts), dict(environment), recipe_text, list(notes), files, folder, told)
    value = {
        "format": FORMAT,
        "title": title,
        "exit_code": gate.exit_code(verdicts),
        "verdicts": [{**asdict(verdict), "holds": verdict.holds} for verdict in verdicts],
        "rows": [row_as_json(row) for row in rows],
        "samples": {name: asdict(file) for name, file in files.items()},
        "environment": dict(environment),
        "notes": list(notes),
        "recipe": recipe_text,
        "steps": [asdict(step) for step in steps],
    }
    _write_text(folder / "report.md", _report_show.markdown(report))
    _write_text(folder / "recipe.yaml", recipe_text)
    write_page(report, folder, test)
    write_json(folder / FILE, value)
    return report


def load_report(path: Path) -> Report:
    """Read a report: its folder, or its ``report.json``.

    Raises:
        InputError: there is none, it is of another format, or a row is not what the contract says (which, and why).
    """
    file = path / FILE if path.is_dir() else path
    value = read_json(file)
    if not isinstance(value, dict) or "rows" not in value:
        raise InputError(f"{file}: not a report of mmcompress; expected a mapping with `rows`")
    if value.get("format") != FORMAT:
        raise InputError(
            f"{file}: a report of format {value.get('format')!r}; this version reads format {FORMAT}\n"
            "  Make it again with this version: mmcompress run RECIPE"
        )
    missing = [name for name in ("title", "verdicts", "samples", "environment", "notes", "recipe") if name not in value]
    if missing:
        raise InputError(f"{file}: {', '.join(missing)} missing; the file was changed after it was written")
    try:
        rows = _ROWS.validate_python(value["rows"])
        verdicts = _VERDICTS.validate_python([_without(item, "holds") for item in value["verdicts"]])
        samples = _SAMPLES.validate_python(value["samples"])
        steps = _STEPS.validate_python(value.get("steps", []))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where}: {first['msg']}; got {first['input']!r:.80}") from None
    problem = _problem(rows, set(samples))
    if problem:
        raise InputError(f"{file}: {problem}")
    return Report(
        str(value["title"]),
        rows,
        verdicts,
        value["environment"],
        str(value["recipe"]),
        [str(note) for note in value["notes"]],
        samples,
        file.parent,
        steps,
    )


def read_samples(report: Report, name: str) -> list[dict[str, Any]]:
    """The raw samples that a row names.

    Raises:
        InputError: there are none of that name, or the file is missing or was changed.
    """
    if report.folder is None or name not in report.samples:
        raise InputError(f"the report has no samples {name!r}; it has {', '.join(report.samples) or 'none'}")
    entry = report.samples[name]
    path = (report.folder / entry.file).resolve()
    if not path.is_relative_to(report.folder.resolve()):
        raise InputError(f"{path}: samples lie outside of the report's folder")
    if digest_path(path) != entry.sha256:
        raise InputError(f"{path}: missing, or changed after the report was written")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def print_report(report: Report, console: Console) -> None:
    """All models side by side, then the verdicts: tables in a terminal, plain lines elsewhere."""
    _report_show.print_report(report, console)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Rows side by side, without verdicts."""
    _report_show.print_rows(rows, console)


def _without(item: Any, key: str) -> Any:
    return {name: value for name, value in item.items() if name != key} if isinstance(item, dict) else item


def _problem(rows: Sequence[Row], samples: set[str]) -> str:
    """Why rows are not those of one report; empty where they are."""
    seen: set[str] = set()
    for row in rows:
        who = f"row {row.name!r} {row.metric} {dict(row.conditions)}"
        if row.status == "measured" and row.value is None:
            return f"{who} is measured and has no value"
        if row.status != "measured" and not row.reason:
            return f"{who} was not measured and gives no reason"
        if row.interval_of is not None and (row.ci95 is None or row.one_sided95 is None):
            return f"{who} is not exact and has no interval"
        for low, high in (ends for ends in (row.ci95, row.one_sided95) if ends is not None):
            if low > high:
                return f"{who} has an interval from {low} to {high}"
        if row.samples and row.samples not in samples:
            return f"{who} names samples {row.samples!r}, which are not there"
        key = digest_json([row.artifact, row.name, row.target, row.metric, dict(row.conditions), row.reference])
        if key in seen:
            return f"{who} is there twice"
        seen.add(key)
    return ""


def _write_samples(folder: Path, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, SampleFile]:
    """One file of JSON lines per name, under a name that every file system takes."""
    files: dict[str, SampleFile] = {}
    taken: set[str] = set()
    for name, records in samples.items():
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.replace("/", ".")).strip(".-") or "samples"
        free, count = stem, 1
        while free.lower() in taken:
            count += 1
            free = f"{stem}-{count}"
        taken.add(free.lower())
        path = folder / "samples" / f"{free}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = (json.dumps(dict(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        _write_text(path, "".join(lines))
        files[name] = SampleFile(path.relative_to(folder).as_posix(), len(records), digest_path(path))
    return files


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
