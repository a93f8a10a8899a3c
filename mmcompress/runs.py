"""One run of a recipe from end to end: build, measure, report, gate; and the folder that holds what came out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress import _processes
from mmcompress._smoke import SMOKE_EXAMPLES, smoke_recipe
from mmcompress._steps import ModelStep, PackageStep
from mmcompress.component import digest_json
from mmcompress.errors import InputError, StageError, UsageError
from mmcompress.measure import Samples, measure
from mmcompress.metrics import Row, Subject
from mmcompress.pipeline import Built, Listen, Planner, build, silent
from mmcompress.recipe import FromAnswers, Recipe, dump_recipe, load_recipe
from mmcompress.store import MANIFEST, Store, default_store, write_json


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    folder: Path
    rows: tuple[Row, ...]
    verdicts: tuple[Any, ...]
    failures: Mapping[str, str]
    built: int
    exit_code: int


def run(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    store: Path | None = None,
    runs: Path | str = "runs",
    listen: Listen = silent,
    smoke: bool = False,
    track: Path | None = None,
) -> Outcome:
    """Build a recipe, measure what it made, write the report and judge the recipe's demands.

    ``track``: a folder for the scalars of trainings, which TensorBoard shows.

    Raises:
        RecipeError, InputError: the recipe or what it names is wrong.
        StageError: a stage failed; what was finished is kept.
    """
    path = Path(recipe)
    if _processes.count() > 1:
        raise UsageError(
            "one process measures\n  Build with `torchrun -m mmcompress distill`, then run the same recipe without it."
        )
    if not smoke:
        place = Store(store or default_store())
        return _run(path, load_recipe(path, overrides), place, Path(runs), listen, None, track)
    with tempfile.TemporaryDirectory(prefix="mmcompress-smoke-") as folder:
        small = smoke_recipe(load_recipe(path, overrides))
        return _run(path, small, Store(Path(folder) / "store"), Path(folder) / "runs", listen, SMOKE_EXAMPLES, track)


def run_seeds(recipe: Path | str, seeds: int, *, overrides: Sequence[str] = (), **options: Any) -> list[Outcome]:
    """Run a recipe as often as that, with its own seed and the ones that follow; options are those of :func:`run`.

    What does not follow from the seed (data, teacher outputs) is found by the later runs.
    """
    first = load_recipe(Path(recipe), overrides).seed
    return [run(recipe, overrides=[*overrides, f"seed={first + more}"], **options) for more in range(seeds)]


def worst(codes: Sequence[int]) -> int:
    """The exit code of several runs: failed stages before failed demands before undecided ones."""
    order = (StageError.exit_code, 1, 4, 0)
    return min(codes, key=order.index)


def _run(
    path: Path, recipe: Recipe, store: Store, runs: Path, listen: Listen, limit: int | None, track: Path | None
) -> Outcome:
    from mmcompress import gate, report

    started = time.strftime("%Y%m%d-%H%M%S")
    planner = Planner(recipe, store, listen, limit, track)
    built = build(planner)
    rows, samples, environment = measure_built(recipe, built, listen)
    demands = gate.parse_demands(recipe.demand, [target.component_name() for target in recipe.targets])
    family = built.subjects[-1].family
    verdicts = gate.judge(demands, rows, family.requests[0].name)
    folder = new_run_folder(runs, recipe, started)
    copy_packages(built.subjects, rows, recipe, folder / "packages")
    report.write_report(
        folder,
        title=recipe.name,
        rows=rows,
        samples=samples,
        environment=environment,
        recipe_text=dump_recipe(recipe),
        verdicts=verdicts,
        notes=[*_notes(built), *_without_teacher(recipe)],
        steps=[
            report.StepFacts(name, made["kind"], made["seconds"], made["facts"])
            for name, made in built.manifests.items()
        ],
        test=built.splits.test,
    )
    _point(runs / recipe.name / "latest", folder)
    code = StageError.exit_code if built.failures else gate.exit_code(verdicts)
    return Outcome(folder, tuple(rows), tuple(verdicts), built.failures, built.built, code)


def measure_built(recipe: Recipe, built: Built, listen: Listen) -> tuple[list[Row], Samples, dict[str, Any]]:
    """Measure what a recipe made by the recipe's own metrics; see :func:`mmcompress.measure.measure`."""
    return measure(
        list(built.subjects),
        list(recipe.measure.metrics),
        built.splits.test,
        threads=recipe.measure.threads,
        seed=recipe.seed,
        progress=lambda message, done, total: listen("measure", message, done, total),
    )


def _notes(built: Built) -> list[str]:
    """What was left out or failed, told in the report."""
    notes = [f"target failed: {name}: {reason}" for name, reason in built.failures.items()]
    for name, examples in (
        ("train", built.splits.train),
        ("validation", built.splits.validation),
        ("test", built.splits.test),
    ):
        if examples is not None:
            notes += [f"{name}: {count} {reason}" for reason, count in examples.notes.items()]
    return notes


def _without_teacher(recipe: Recipe) -> list[str]:
    if not isinstance(recipe.teacher, FromAnswers):
        return []
    return [
        f"the teacher is a file of answers ({recipe.teacher.answers.name}): without its model it has no rows here, and"
        " nothing is relative to it"
    ]


def new_run_folder(runs: Path, recipe: Recipe, started: str) -> Path:
    """``runs/<name>/<time>-<digest>``, made new."""
    digest = digest_json(recipe.model_dump(mode="json", by_alias=True))[:8]
    folder = runs / recipe.name / f"{started}-{digest}"
    number = 1
    while folder.exists():
        number += 1
        folder = runs / recipe.name / f"{started}-{digest}-{number}"
    folder.mkdir(parents=True)
    return folder


def copy_packages(subjects: Sequence[Subject], rows: Sequence[Row], recipe: Recipe, folder: Path) -> None:
    """Copy the recipe's packages (not the teacher's) to ``folder/<target>``, with what was measured beside them.

    ``scores.json`` and ``README.md`` are no part of what the package's digests seal: other machines add their own.
    """
    from mmcompress.report import row_as_json

    for subject in subjects:
        if subject.role != "package":
            continue
        target = folder / subject.target
        copy_artifact(subject.folder, target)
        own = [row for row in rows if row.name == subject.name]
        write_json(target / "scores.json", {"recipe": recipe.name, "rows": [row_as_json(row) for row in own]})
        (target / "README.md").write_text(model_card(subject, own, recipe), encoding="utf-8")


def model_card(subject: Subject, rows: Sequence[Row], recipe: Recipe) -> str:
    """What a package is, how to use it and what was measured of it, as Markdown."""
    from mmcompress._report_rows import conditions_text
    from mmcompress._report_text import interval, number

    lines = [f"# {recipe.name}: {subject.family.component_name()} for {subject.target}, {subject.precision}", ""]
    lines += [
        "```python",
        "import mmcompress",
        "",
        'with mmcompress.load_package("this folder", threads=2) as package:',
        *(
            f"    package.ask({request.name!r}, ...)  # {', '.join(request.inputs)}"
            for request in subject.family.requests
        ),
        "```",
        "",
        "`manifest.json` says where it comes from and what it must contain; `scores.json` holds these measurements whole.",
        "",
        "| metric | conditions | value | 95 % interval |",
        "|---|---|---:|---:|",
    ]
    for row in rows:
        if row.value is not None:
            value = number(row.metric, row.value, row.unit)
            lines.append(f"| {row.metric} | {conditions_text(row)} | {value} | {interval(row)} |")
    return "\n".join(lines) + "\n"


def copy_artifact(source: Path, folder: Path) -> None:
    """Copy an artifact's files without the store's own manifest."""
    if folder.exists():
        raise UsageError(f"{folder}: exists already; name a new folder")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(MANIFEST))


def _point(link: Path, folder: Path) -> None:
    """Make ``latest`` point to a run, in one step, so that it never points nowhere."""
    part = link.with_name(f".latest-{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(folder.name, target_is_directory=True)
    os.replace(part, link)


def build_to(planner: Planner, kind: str) -> Path:
    """Build up to the last step of a kind; gives its folder.

    Raises:
        UsageError: the recipe has no such step.
    """
    if _processes.count() > 1 and kind in ("export", "quantize", "compile"):
        raise UsageError(
            f"{kind} is the work of one process\n"
            "  Build the models with torchrun, then run the same recipe without it: it finds them."
        )
    _processes.agree("the recipe", digest_json(planner.recipe.model_dump(mode="json", by_alias=True)))
    plan = planner.plan()
    if kind == "compile":
        steps = [package.step for package in plan.packages if package.role == "package"]
    elif kind in ("export", "quantize"):
        steps = [step for step in plan.deployment if step.kind == kind]
    else:
        steps = [model.step for model in plan.models if model.stage == kind and model.role != "baseline"]
    if not steps:
        raise UsageError(f"the recipe has no {kind} step; it has {', '.join(kinds_of(plan.models, plan.packages))}")
    return planner.get(steps[-1]).folder


def kinds_of(models: Sequence[ModelStep], packages: Sequence[PackageStep]) -> list[str]:
    """The kinds of steps of a plan."""
    kinds = dict.fromkeys(model.step.kind for model in models)
    if packages:
        kinds.update(dict.fromkeys(("export", "compile")))
    return list(kinds)


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent / "recipes"):  # installed, and in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise RuntimeError(f"the recipes are missing from this installation ({here / 'recipes'})")


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that comes with the package.

    Raises:
        InputError: there is none of that name.
    """
    found = recipes()
    if name not in found:
        raise InputError(f"no recipe {name!r} comes with mmcompress; there are {', '.join(found)}")
    return found[name]
