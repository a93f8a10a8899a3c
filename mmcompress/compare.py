"""Several runs in one paired table: what each made side by side, and how it differs from what the first run made.

Runs of one recipe with different seeds count as one, with means and intervals over its seeds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcompress import _yaml
from mmcompress._report_rows import cell, columns, conditions_text, models
from mmcompress._report_text import short, title
from mmcompress.component import digest_json
from mmcompress.errors import InputError, UsageError
from mmcompress.metrics import Row
from mmcompress.metrics._statistics import bootstrap_means, drop_estimate, student_interval
from mmcompress.report import Report, load_report, print_report, read_samples

if TYPE_CHECKING:
    from rich.console import Console

DIFFERENCE = "difference."
"""Before the name of a metric: a model's value minus that of its counterpart in the first run, on the same examples."""
_RELATIVE = ("retention.", "drop.", "speedup.", "speedup_torch.", DIFFERENCE)
_SAME = 1e-6
"""A metric whose value is the mean of its examples' scores up to this can be paired by them."""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    label: str
    reports: tuple[Report, ...]


def compare(folders: Sequence[Path]) -> Report:
    """Put runs into one report, whose rows name the run and the model: ``clip: prune``.

    Rows of quality that both have example by example are paired with those of the model of the same name in the first
    run: ``difference.<metric>``. Over several seeds values are means, and intervals are Student's t over the seeds.

    Raises:
        UsageError: fewer than two runs.
        InputError: a folder without a report, or one of another version.
    """
    if len(folders) < 2:
        raise UsageError("there is nothing to compare with\n  Name two runs or more: mmcompress compare RUN RUN")
    groups = _groups([load_report(folder) for folder in folders])
    first, notes = groups[0], _notes(groups)
    rows: list[Row] = []
    seen: set[str] = set()
    for group in groups:
        own = list(_over_seeds([report.rows for report in group.reports]))
        if group is not first:
            differences, problems = _differences(first, group)
            own += differences
            notes += problems
        for row in own:
            named = row if len(groups) == 1 else replace(row, name=f"{group.label}: {row.name}")
            key = digest_json([named.name, row.target, row.metric, dict(row.conditions), row.reference])
            if key not in seen:
                seen.add(key)
                rows.append(replace(named, samples=""))
    recipes = "\n---\n".join(report.recipe.rstrip("\n") for group in groups for report in group.reports)
    name = " and ".join(group.label for group in groups)
    return Report(name, rows, [], first.reports[0].environment, recipes + "\n", notes, joined=True)


def write_comparison(
    folders: Sequence[Path], page: Path | None, csv_file: Path | None, latex_file: Path | None, console: Console
) -> list[tuple[str, Path]]:
    """Print a comparison and write it where files are named; gives what was written."""
    from mmcompress.page import write_page

    report = compare(folders)
    print_report(report, console)
    written = []
    for kind, path, text in (("table", csv_file, as_csv), ("LaTeX", latex_file, as_latex)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(report), encoding="utf-8")
            written.append((kind, path))
    if page is not None:
        written.append(("page", write_page(report, page)))
    return written


# --- runs that belong together -------------------------------------------------------------------------------------


def _groups(reports: Sequence[Report]) -> list[Group]:
    """Runs of one recipe but for its seed, in the order in which they are named; labels tell groups apart."""
    found: dict[str, list[Report]] = {}
    for report in reports:
        found.setdefault(_recipe_key(report), []).append(report)
    for members in found.values():
        seeds = [_seed(report) for report in members]
        if len(set(seeds)) < len(seeds):
            # The same recipe and seed twice: two observations, which are compared, not averaged.
            return [Group(label, (r,)) for label, r in zip(_labels([[r] for r in reports]), reports, strict=True)]
    return [
        Group(label, tuple(members)) for label, members in zip(_labels(found.values()), found.values(), strict=True)
    ]


def _labels(groups: Any) -> list[str]:
    titles = [members[0].title for members in groups]
    folders = [members[0].folder.resolve().name for members in groups]
    labels = [t if titles.count(t) == 1 else f"{t} {folder}" for t, folder in zip(titles, folders, strict=True)]
    return [label if labels.count(label) == 1 else f"{label} ({place + 1})" for place, label in enumerate(labels)]


def _recipe(report: Report) -> dict[str, Any]:
    value = _yaml.loads(report.recipe)
    if not isinstance(value, dict):
        raise InputError(f"{report.folder}: the report's recipe is not a mapping; it was changed after it was written")
    return value


def _recipe_key(report: Report) -> str:
    return digest_json({name: value for name, value in _recipe(report).items() if name != "seed"})


def _seed(report: Report) -> Any:
    return _recipe(report).get("seed", 0)


def _notes(groups: Sequence[Group]) -> list[str]:
    notes = [
        f"{group.label}: mean of {len(group.reports)} seeds ({', '.join(str(_seed(r)) for r in group.reports)})"
        for group in groups
        if len(group.reports) > 1
    ]
    machines = {str(report.environment.get("cpu")) for group in groups for report in group.reports}
    if len(machines) > 1:
        notes.append(f"measured on different machines: {'; '.join(sorted(machines))}")
    if len(groups) > 1:
        notes.append(
            "Times of different runs were not taken in turn; compare speed-ups, or measure packages together:"
            " mmcompress benchmark PACKAGE PACKAGE"
        )
    notes += [f"{group.label}: {note}" for group in groups for report in group.reports for note in report.notes]
    return list(dict.fromkeys(notes))


# --- over seeds ----------------------------------------------------------------------------------------------------


def _identity(row: Row) -> str:
    """What a row is about, whichever seed its model came from."""
    conditions = {name: value for name, value in row.conditions.items() if name != "seed"}
    return digest_json([row.name, row.target, row.metric, conditions, row.reference])


def _over_seeds(runs: Sequence[Sequence[Row]]) -> Iterator[Row]:
    """The rows of one run, or means over runs of those that all of them have."""
    if len(runs) == 1:
        yield from runs[0]
        return
    others = [{_identity(row): row for row in rows} for rows in runs[1:]]
    for row in runs[0]:
        same = [row, *(found[_identity(row)] for found in others if _identity(row) in found)]
        values = [one.value for one in same if one.value is not None]
        if len(values) == len(runs):
            yield mean_of(row, values, [one.artifact for one in same])


def mean_of(row: Row, values: Sequence[float], artifacts: Sequence[str]) -> Row:
    """A row with the mean of the values of several seeds and Student's t interval over them; exact where all are equal."""
    conditions = {name: value for name, value in row.conditions.items() if name != "seed"}
    artifact = artifacts[0] if len(set(artifacts)) == 1 else digest_json(list(artifacts))
    made = replace(row, artifact=artifact, conditions=conditions, value=float(np.mean(values)), n=len(values))
    if len(set(values)) == 1 and row.ci95 is None:
        return made
    two, one = (student_interval(np.asarray(values, dtype=np.float64), alpha) for alpha in (0.025, 0.05))
    return replace(made, ci95=two, one_sided95=one, interval_of="seed")


# --- paired differences --------------------------------------------------------------------------------------------


def _differences(first: Group, group: Group) -> tuple[list[Row], list[str]]:
    """``difference.*`` rows of a group, and why some are not there."""
    pairs = [(a, b) for b in group.reports for a in first.reports if _seed(a) == _seed(b)]
    if not pairs and len(first.reports) == len(group.reports) == 1:
        pairs = [(first.reports[0], group.reports[0])]
    if len(pairs) != len(group.reports):
        return [], [f"{group.label}: not paired with {first.label}, whose seeds are others"]
    notes: list[str] = []
    found = [_paired(a, b, notes) for a, b in pairs]
    told = [f"{group.label}: {note}" for note in dict.fromkeys(notes)]
    return [replace(row, reference=f"{first.label}: {row.reference}") for row in _over_seeds(found)], told


def _paired(first: Report, second: Report, notes: list[str]) -> list[Row]:
    """Differences of the models of one report to those of the same name in another."""
    counterparts = {_identity(row): row for row in first.rows}
    made = []
    for row in second.rows:
        theirs = counterparts.get(_identity(row))
        comparable = row.samples and row.interval_of == "example" and not row.metric.startswith(_RELATIVE)
        if not comparable or theirs is None or not theirs.samples or theirs.artifact == row.artifact:
            continue
        ours_by, theirs_by = _scores(second, row), _scores(first, theirs)
        if ours_by is None or theirs_by is None:
            notes.append(f"{row.metric} is no mean over examples, so that its differences are not paired")
        elif ours_by.keys() != theirs_by.keys():
            notes.append(f"{row.metric} was measured on other examples, so that its differences are not paired")
        else:
            made.append(_difference(row, theirs, ours_by, theirs_by))
    return made


def _scores(report: Report, row: Row) -> Mapping[str, float] | None:
    """The score of each example, where the row's value is their mean."""
    records = read_samples(report, row.samples)
    if not records or any("score" not in record or "id" not in record for record in records):
        return None
    # What is true of an example is a part of what tells it from one of other data that has the same name.
    scores = {f"{record['id']}\n{record.get('true', '')}": float(record["score"]) for record in records}
    mean = sum(scores.values()) / len(scores)
    return scores if row.value is not None and abs(mean - row.value) < _SAME and len(scores) == len(records) else None


def _difference(row: Row, theirs: Row, ours_by: Mapping[str, float], theirs_by: Mapping[str, float]) -> Row:
    scores = np.array([[ours_by[name], theirs_by[name]] for name in ours_by])
    span = float(max(1.0, np.ptp(scores)))
    replicates = bootstrap_means(scores, seed=0)
    ours, other = scores.mean(axis=0)
    estimate = drop_estimate(
        (float(ours), float(other)), len(scores), (replicates[:, 0], replicates[:, 1]), span, (-span, span)
    )
    return replace(
        row,
        metric=DIFFERENCE + row.metric,
        value=estimate.value,
        n=estimate.n,
        ci95=estimate.ci95,
        one_sided95=estimate.one_sided95,
        reference=theirs.name,
    )


# --- tables --------------------------------------------------------------------------------------------------------

_CSV = ("model", "metric", "conditions", "value", "low95", "high95", "unit", "n", "interval_of", "relative_to")


def as_csv(report: Report) -> str:
    """Every measured row of a comparison, one per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for row in report.rows:
        if row.value is not None:
            low, high = row.ci95 or ("", "")
            facts = (row.unit, row.n or "", row.interval_of or "", row.reference)
            writer.writerow([row.name, row.metric, conditions_text(row), row.value, low, high, *facts])
    return text.getvalue()


def as_latex(report: Report) -> str:
    r"""The models side by side as a ``tabular`` (with the rules of ``booktabs``)."""
    chosen = columns(report.rows)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(chosen)}}}",
        r"\toprule",
        " & ".join(map(_latex, ["model", *(title(column.metric, column.request) for column in chosen)])) + r" \\",
        r"\midrule",
    ]
    for model in models(report.rows):
        lines.append(" & ".join(map(_latex, [model.name, *(short(cell(model, c)) for c in chosen)])) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$").replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
