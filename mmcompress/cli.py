"""The command line. A user's mistake prints what, where, what was expected and what to do; never a traceback."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

import mmcompress
from mmcompress import component
from mmcompress._progress import Progress
from mmcompress.errors import InputError, MmcompressError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """Commands in the order of a user's work, the nearest name for one that does not exist."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            near = component.nearest(args[0], list(self.commands))
            raise click.UsageError(f"no command {args[0]!r}{near}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(mmcompress.__version__, prog_name="mmcompress")
@click.option(
    "--components",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="A folder of your own components, laid out as mmcompress is (losses/mine.py).",
)
def cli(components: tuple[Path, ...]) -> None:
    """Distill, prune, quantize and export a multimodal teacher, and measure the package that ships.

    \b
    Example:
      mmcompress demo
      mmcompress run recipes/clip_emoji.yaml -s teacher.clip.path=my-clip
    """
    component.SEARCH.folders[:] = [folder.resolve() for folder in components]


def _recipe_options(command: F) -> F:
    options = [
        click.argument("recipe", type=click.Path(path_type=Path)),
        click.option(
            "-s",
            "--set",
            "overrides",
            multiple=True,
            metavar="PATH=VALUE",
            help="Change a value of the recipe: -s stages.0.distill.epochs=2",
        ),
        click.option(
            "--store",
            type=click.Path(file_okay=False, path_type=Path),
            help="Where artifacts are kept [MMCOMPRESS_STORE or ~/.cache/mmcompress].",
        ),
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_recipe_options
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where reports go.",
)
@click.option("--smoke", is_flag=True, help="Drive every stage, target and package on 64 examples; keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(
    recipe: Path, overrides: tuple[str, ...], store: Path | None, quiet: bool, runs: Path, smoke: bool, as_json: bool
) -> None:
    """Build, measure, report and judge: a table of the teacher against each package.

    \b
    Example:
      mmcompress run recipes/quickstart.yaml
    """
    sys.exit(_run(recipe, overrides, store, quiet, runs, smoke, as_json))


def _run(
    recipe: Path, overrides: Sequence[str], store: Path | None, quiet: bool, runs: Path, smoke: bool, as_json: bool
) -> int:
    from mmcompress.report import load_report, print_report
    from mmcompress.runs import run as run_recipe

    with Progress(quiet=quiet or as_json) as progress:
        outcome = run_recipe(recipe, overrides=overrides, store=store, runs=runs, listen=progress.listen, smoke=smoke)
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
    @_recipe_options
    @click.option("--out", type=click.Path(path_type=Path), help="Copy the result here.")
    def command(recipe: Path, overrides: tuple[str, ...], store: Path | None, quiet: bool, out: Path | None) -> None:
        from mmcompress.pipeline import Planner
        from mmcompress.recipe import load_recipe
        from mmcompress.runs import build_to, copy_artifact
        from mmcompress.store import Store, default_store

        with Progress(quiet=quiet) as progress:
            planner = Planner(load_recipe(recipe, overrides), Store(store or default_store()), progress.listen)
            folder = build_to(planner, kind)
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
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-s", "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a value of the recipe.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True)
@click.option("--examples", type=click.IntRange(1, 1000), default=48, show_default=True, help="How many are shown.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of examples here.")
def data(recipe: Path, overrides: tuple[str, ...], split: str, examples: int, out: Path | None) -> None:
    """Check a recipe's data: counts, sizes, copies; with --out a page of examples to look at and to hear.

    \b
    Example:
      mmcompress data recipes/quickstart.yaml --split test --out examples.html
    """
    from mmcompress.data._page import page, summary, write_page
    from mmcompress.recipe import load_recipe
    from mmcompress.splits import open_splits

    loaded = load_recipe(recipe, overrides)
    opened = zip(("train", "validation", "test"), open_splits(loaded), strict=True)
    splits = {name: found for name, found in opened if found is not None}
    if split not in splits:
        raise UsageError(f"{recipe}: no {split} split\n  Expected one of {', '.join(splits)}.")
    lines = summary(splits, examples)
    click.echo("\n".join(lines))
    if out is not None:
        write_page(out, page(f"{loaded.name}: {split}", splits[split], lines, examples))
        click.echo(f"page: {out}")


@cli.command()
@click.argument("what", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--batch", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def benchmark(what: tuple[Path, ...], threads: int, batch: tuple[int, ...], as_json: bool) -> None:
    """Measure packages against each other (the first is the reference), or all that a RECIPE has built.

    \b
    Example:
      mmcompress benchmark runs/quickstart/latest/packages/onnxruntime
    """
    from mmcompress.benchmarking import benchmark_packages, benchmark_recipe
    from mmcompress.report import print_rows

    with Progress(quiet=as_json) as progress:
        if len(what) == 1 and what[0].is_file():
            rows = benchmark_recipe(what[0], progress.listen)
        else:
            rows = benchmark_packages(what, threads=threads, batches=batch, listen=progress.listen)
    if as_json:
        from mmcompress.report import row_as_json

        click.echo(json.dumps([row_as_json(row) for row in rows], indent=2))
    else:
        print_rows(rows, Console(soft_wrap=not sys.stdout.isatty()))


@cli.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page here [RUN/report.html].")
def report(run_folder: Path, out: Path | None) -> None:
    """Make the page of a RUN's report again: one HTML file that opens without a network.

    \b
    Example:
      mmcompress report runs/quickstart/latest
    """
    from mmcompress._page import write_page
    from mmcompress.report import load_report

    loaded = load_report(run_folder)
    assert loaded.folder is not None
    click.echo(f"page: {write_page(loaded, out or loaded.folder)}")


@cli.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A picture; may be repeated.",
)
@click.option("--text", multiple=True, help="A text; may be repeated.")
@click.option("--threads", type=click.IntRange(1))
def predict(package: Path, image: tuple[Path, ...], text: tuple[str, ...], threads: int | None) -> None:
    """Run a package: pictures and texts give the best text for each picture, one of them alone its embeddings.

    \b
    Example:
      mmcompress predict runs/quickstart/latest/packages/onnxruntime --image scene.png --text "a red star" --text "a blue ring"
    """
    if not image and not text:
        raise UsageError("nothing to run on; give --image, --text or both")
    with mmcompress.load_package(package, threads=threads) as loaded:
        if image and text:
            for path, answer in zip(image, loaded.classify(list(image), list(text)), strict=True):
                click.echo(
                    json.dumps(
                        {
                            "image": str(path),
                            "label": answer.label,
                            "scores": [round(float(s), 6) for s in answer.scores],
                        }
                    )
                )
        else:
            rows = loaded.embed_images(list(image)) if image else loaded.embed_texts(list(text))
            for name, row in zip([*map(str, image), *text], rows, strict=True):
                click.echo(json.dumps({"input": name, "embedding": [round(float(v), 6) for v in row]}))


@cli.command(name="list")
@click.argument("kind", required=False, type=click.Choice(component.KINDS))
def list_components(kind: str | None) -> None:
    """List the components that a recipe can name.

    \b
    Example:
      mmcompress list losses
    """
    for each in [kind] if kind else component.KINDS:
        click.echo(f"{each}:")
        for found in component.every(each):
            first = (found.__doc__ or "").strip().splitlines()[0]
            click.echo(f"  {found.component_name():<16} {first}")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors and checks.

    \b
    Example:
      mmcompress schema > recipe.schema.json
    """
    from mmcompress.recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@cli.command()
@click.option("--copy", type=click.Path(file_okay=False, path_type=Path), help="Copy them into a folder.")
def recipes(copy: Path | None) -> None:
    """List the recipes that come with mmcompress.

    \b
    Example:
      mmcompress recipes --copy ./recipes
    """
    import shutil

    from mmcompress.runs import recipes as shipped

    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        click.echo(f"{name:<18} {first}")
    if copy is not None:
        shutil.copytree(next(iter(shipped().values())).parent, copy, dirs_exist_ok=True)
        click.echo(f"copied to {copy}")


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


@cli.command()
@click.option("--store", type=click.Path(file_okay=False, path_type=Path))
def verify(store: Path | None) -> None:
    """Hash every artifact of the store again.

    \b
    Example:
      mmcompress verify
    """
    from mmcompress.store import Store, default_store

    wrong = Store(store or default_store()).verify()
    if wrong:
        raise InputError(
            "\n".join(f"{path}: changed after it was written; delete its folder and build again" for path in wrong)
        )
    click.echo("every artifact matches its manifest")


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs the command and turns errors into messages and exit codes."""
    try:
        cli.main(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except MmcompressError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except MemoryError:
        click.echo("error: out of memory; lower batch_size or free memory, and run the same command again", err=True)
        sys.exit(3)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug of ours, told as one
        sys.exit(_bug(error))


def _bug(error: Exception) -> int:
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"mmcompress-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    click.echo(
        f"mmcompress has a bug: {type(error).__name__}: {error}\n  The traceback is in {file.name}; please report it.",
        err=True,
    )
    return EXIT_BUG
