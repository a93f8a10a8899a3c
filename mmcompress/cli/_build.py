"""Commands that build: ``run``, ``demo``, and one per kind of step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from mmcompress._progress import Progress
from mmcompress.cli._group import cli, recipe_options
from mmcompress.errors import UsageError

_tracked = click.option(
    "--track",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write losses, learning rate and speed of trainings here, for TensorBoard.",
)


@cli.command()
@recipe_options
@_tracked
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where reports go.",
)
@click.option("--smoke", is_flag=True, help="Drive every stage, target and package on 64 examples; keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--seeds", type=click.IntRange(2, 100), help="Run it with so many seeds; a table of means follows.")
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    store: Path | None,
    quiet: bool,
    runs: Path,
    smoke: bool,
    as_json: bool,
    seeds: int | None,
    track: Path | None,
) -> None:
    """Build, measure, report and judge: a table of the teacher against each package.

    \b
    Example:
      mmcompress run recipes/quickstart.yaml
    """
    if seeds is None:
        sys.exit(_run(recipe, overrides, store, quiet, runs, smoke, as_json, track))
    if smoke or as_json or track:
        raise UsageError("--seeds makes several reports\n  Leave out --smoke, --json and --track.")
    sys.exit(_run_seeds(recipe, overrides, store, quiet, runs, seeds))


def _run_seeds(recipe: Path, overrides: Sequence[str], store: Path | None, quiet: bool, runs: Path, seeds: int) -> int:
    from mmcompress.compare import write_comparison
    from mmcompress.runs import run_seeds, worst

    with Progress(quiet=quiet) as progress:
        outcomes = run_seeds(recipe, seeds, overrides=overrides, store=store, runs=runs, listen=progress.listen)
    folders = [outcome.folder for outcome in outcomes]
    beside = folders[-1].with_name(f"{folders[-1].name}-seeds")
    console = Console(soft_wrap=not sys.stdout.isatty())
    for kind, path in write_comparison(folders, beside / "compare.html", beside / "compare.csv", None, console):
        click.echo(f"{kind}: {path}")
    return worst([outcome.exit_code for outcome in outcomes])


def _run(
    recipe: Path,
    overrides: Sequence[str],
    store: Path | None,
    quiet: bool,
    runs: Path,
    smoke: bool,
    as_json: bool,
    track: Path | None = None,
) -> int:
    from mmcompress.report import load_report, print_report
    from mmcompress.runs import run as run_recipe

    with Progress(quiet=quiet or as_json) as progress:
        outcome = run_recipe(
            recipe, overrides=overrides, store=store, runs=runs, listen=progress.listen, smoke=smoke, track=track
        )
    if smoke:
        click.echo(
            f"smoke run finished: {outcome.built} artifacts built, {len(outcome.rows)} rows measured, nothing kept"
        )
        return 3 if outcome.failures else 0
    if as_json:
        click.echo((outcome.folder / "report.json").read_text(encoding="utf-8"))
    else:
        print_report(load_report(outcome.folder), Console(soft_wrap=not sys.stdout.isatty()))
        click.echo(f"report: {outcome.folder / 'report.html'}")
        click.echo(
            f"{outcome.built} artifacts built" if outcome.built else "nothing to build: every artifact was found"
        )
    for name, reason in outcome.failures.items():
        click.echo(f"{name} failed: {reason}", err=True)
    return outcome.exit_code


def _step_command(kind: str, text: str) -> None:
    @recipe_options
    @_tracked
    @click.option("--out", type=click.Path(path_type=Path), help="Copy the result here.")
    def command(
        recipe: Path,
        overrides: tuple[str, ...],
        store: Path | None,
        quiet: bool,
        track: Path | None,
        out: Path | None,
    ) -> None:
        from mmcompress import _processes
        from mmcompress.pipeline import Planner
        from mmcompress.recipe import load_recipe
        from mmcompress.runs import build_to, copy_artifact
        from mmcompress.store import Store, default_store

        first = not _processes.rank()
        with _processes.together(), Progress(quiet=quiet or not first) as progress:
            place = Store(store or default_store())
            folder = build_to(Planner(load_recipe(recipe, overrides), place, progress.listen, track=track), kind)
        if not first:
            return
        if out is not None:
            copy_artifact(folder, out)
        click.echo(out or folder)

    command.__doc__ = (
        f"{text}\n\n    \b\n    Example:\n      mmcompress {kind} recipes/quickstart.yaml --out ./{kind}\n    "
    )
    cli.command(name=kind)(command)


for _kind, _text in {
    "finetune": "Train up to the last finetune stage; print the model's folder.",
    "distill": "Build up to the last distill stage; print the model's folder.",
    "prune": "Build up to the last prune stage; print the model's folder.",
    "export": "Build up to the FP32 graphs of the last model; print their folder.",
    "quantize": "Build up to the INT8 graphs of the last target; print their folder.",
    "compile": "Build up to the package of the last target; print its folder.",
}.items():
    _step_command(_kind, _text)


@cli.command()
@click.option("--store", type=click.Path(file_okay=False, path_type=Path))
@click.option("--runs", type=click.Path(file_okay=False, path_type=Path), default=Path("runs"), show_default=True)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def demo(store: Path | None, runs: Path, quiet: bool) -> None:
    """Run the quickstart: a CLIP teacher to an INT8 package in minutes, on generated scenes.

    \b
    Example:
      mmcompress demo
    """
    from mmcompress.runs import shipped_recipe

    sys.exit(_run(shipped_recipe("quickstart"), (), store, quiet, runs, smoke=False, as_json=False))
