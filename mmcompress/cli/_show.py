"""Commands that look: at data, at a package's answers, at what a recipe can name, at the store."""

from __future__ import annotations

import json
from pathlib import Path

import click

import mmcompress
from mmcompress import component
from mmcompress._progress import Progress
from mmcompress.cli._group import cli, recipe_options
from mmcompress.errors import InputError, UsageError


@cli.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
def plan(recipe: Path, overrides: tuple[str, ...], store: Path | None, quiet: bool, as_json: bool) -> None:
    """Show what a run of a RECIPE would build and what is found, without building anything.

    \b
    Example:
      mmcompress plan recipes/quickstart.yaml
    """
    from dataclasses import asdict

    from mmcompress.pipeline import Planner
    from mmcompress.plan import plan as steps_of
    from mmcompress.plan import plan_lines
    from mmcompress.recipe import load_recipe
    from mmcompress.store import Store, default_store

    with Progress(quiet=quiet or as_json) as progress:
        planned = steps_of(Planner(load_recipe(recipe, overrides), Store(store or default_store()), progress.listen))
    if as_json:
        click.echo(json.dumps([asdict(step) for step in planned], indent=2))
    else:
        click.echo("\n".join(plan_lines(planned)))


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


@cli.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--before", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The model that it was cut from."
)
@click.option("--family", help="The model folder's family, where several could load it.")
@click.option("--store", type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Draw it as a page here.")
def inspect(model: Path, before: Path | None, family: str | None, store: Path | None, out: Path | None) -> None:
    """Show what a model, a package or a run is made of: heads, widths, parameters, MACs, milliseconds per block.

    \b
    Example:
      mmcompress inspect runs/quickstart/latest --out structure.html
    """
    from mmcompress.inspect import inspect as read
    from mmcompress.inspect import lines, page
    from mmcompress.store import Store, default_store

    after, start = read(model, Store(store or default_store()), before, family)
    click.echo("\n".join(lines(after, start)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(after, start), encoding="utf-8")
        click.echo(f"page: {out}")


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
