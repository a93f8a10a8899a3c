"""The quality of two packages on the same examples: a recipe's test data, or the probe examples that travel with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmcompress._answers import Listen, open_subject, silent
from mmcompress._ask import agreement, ask
from mmcompress._probe import read_answers, read_probe
from mmcompress.errors import InputError, StageError
from mmcompress.gate._rows import Scores, paired_scores
from mmcompress.metrics import Subject


def package_scores(
    candidate: Subject, baseline: Subject, recipe: Path | None, threads: int, listen: Listen = silent
) -> tuple[list[Scores], list[str]]:
    """Scores of both by example id, and what could not be compared.

    Raises:
        InputError: there are no examples, or the recipe's data do not fit the packages.
        StageError: a package gave NaN.
    """
    if recipe is None:
        return probe_scores(candidate, baseline, threads)
    from mmcompress.measure import measure
    from mmcompress.recipe import load_recipe
    from mmcompress.splits import Splits

    read = load_recipe(recipe)
    metrics = [metric for metric in read.measure.metrics if metric.needs()]
    if not metrics:
        raise InputError(f"{recipe}: measure.metrics has none that judges answers")
    subjects = [baseline, candidate]
    rows, samples, _ = measure(subjects, metrics, Splits(read).test, threads=threads, seed=read.seed, progress=listen)
    old, new = ([row for row in rows if row.name == subject.name] for subject in subjects)
    return paired_scores(old, samples.__getitem__, new, samples.__getitem__, candidate.target)


def probe_scores(candidate: Subject, baseline: Subject, threads: int) -> tuple[list[Scores], list[str]]:
    """How near both are to the teacher's answers to the baseline's probe examples (see :func:`mmcompress._ask.agreement`)."""
    folder = baseline.folder / "probe"
    columns = read_probe(folder)
    found: list[Scores] = []
    notes = [
        f"quality is the agreement with the teacher on {len(columns['id'])} probe examples; --recipe RECIPE measures its task"
    ]
    opened = [open_subject(subject, threads, verify=False) for subject in (baseline, candidate)]
    for request in baseline.family.requests:
        values = {name: columns[name] for name in request.inputs}
        teacher = read_answers(folder, request.name)
        scores = []
        for side, subject in zip(opened, (baseline, candidate), strict=True):
            rows = ask(side.family, side.processor, side.run, request.name, values)
            if not np.isfinite(rows.reshape(len(rows), -1)).all():
                raise StageError(f"{subject.name} gave NaN or infinity for answers to {request.name}")
            comparable = rows.shape == teacher.shape or request.answers in ("tokens", "tags")
            scores.append(agreement(request.answers, rows, teacher) if comparable else None)
        old, new = scores
        if old is None or new is None:
            notes.append(f"{request.name}: not compared: its answers have another width than the teacher's")
            continue
        ids = [str(name) for name in columns["id"]]
        sides = [dict(zip(ids, map(float, side), strict=True)) for side in (old, new)]
        found.append(Scores(f"teacher_agreement[{request.name}]", baseline.target, sides[0], sides[1], span=0.0))
    for side in opened:
        side.close()
    return found, notes
