"""Measure what exists: packages on this machine, or everything that a recipe has built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcompress.errors import UsageError
from mmcompress.measure import measure
from mmcompress.metrics import Metric, Role, Row, Subject
from mmcompress.metrics.latency import Latency
from mmcompress.metrics.size import Size
from mmcompress.package import family_of, read_manifest
from mmcompress.pipeline import Listen, Planner, build, silent
from mmcompress.recipe import load_recipe
from mmcompress.runs import measure_built
from mmcompress.store import Store, default_store


def benchmark_packages(
    packages: Sequence[Path], *, threads: int, batches: Sequence[int] = (1,), listen: Listen = silent
) -> list[Row]:
    """Time and size of packages, interleaved; the first is the reference of the others.

    Raises:
        InputError: a folder is no package.
    """
    subjects: list[Subject] = []
    for index, folder in enumerate(packages):
        manifest = read_manifest(folder)
        family = family_of(folder, manifest)
        role: Role = "teacher" if index == 0 else "package"
        runtime = manifest["target"]["runtime"]
        name = f"{folder.parent.parent.name}/{folder.name}" if folder.parent.name == "packages" else folder.name
        if name in {subject.name for subject in subjects}:
            name = str(folder)
        subjects.append(
            Subject(str(folder), name, role, "package", runtime, family, folder.resolve(), manifest["precision"])
        )
    metrics: list[Metric] = [Latency(batch=tuple(batches)), Size()]
    rows, _, _ = measure(
        subjects, metrics, None, threads=threads, seed=0, progress=lambda m, d, t: listen("measure", m, d, t)
    )
    return rows


def benchmark_recipe(recipe: Path, listen: Listen = silent, store: Path | None = None) -> list[Row]:
    """The recipe's own metrics on what it has built; builds nothing.

    Raises:
        UsageError: something is not built yet.
    """
    read = load_recipe(recipe)
    planner = Planner(read, Store(store or default_store()), listen)
    plan = planner.plan()
    steps = [made.step for made in plan.models] + [made.step for made in plan.packages]
    missing = [step.name for step in steps if planner.store.find(step) is None]
    if missing:
        raise UsageError(f"not built yet: {', '.join(missing)}\n  Build first: mmcompress run {recipe}")
    rows, _, _ = measure_built(read, build(planner), listen)
    return rows
