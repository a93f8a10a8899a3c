"""Commands that measure and show what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from mmcompress._progress import Progress
from mmcompress.cli._group import cli


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
@click.option(
    "--add",
    "added",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A report that compile wrote on a device: its rows join the RUN's. May be repeated.",
)
def report(run_folder: Path, out: Path | None, added: tuple[Path, ...]) -> None:
    """Make the page of a RUN's report again: one HTML file that opens without a network.

    \b
    Example:
      mmcompress report runs/quickstart/latest
      mmcompress report runs/quickstart/latest --add onnxruntime-arm64-report
    """
    from mmcompress._device_report import add_report
    from mmcompress.page import write_page
    from mmcompress.report import load_report

    loaded = load_report(run_folder)
    for other in added:
        loaded = add_report(loaded, load_report(other))
    assert loaded.folder is not None
    click.echo(f"page: {write_page(loaded, out or loaded.folder)}")


@cli.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page here.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all rows here.")
@click.option("--latex", "latex_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here.")
def compare(folders: tuple[Path, ...], out: Path | None, csv_file: Path | None, latex_file: Path | None) -> None:
    """Put several RUNs into one table, paired example by example with the first; seeds of one recipe are averaged.

    \b
    Example:
      mmcompress compare runs/clip/latest runs/clip-small/latest --out compare.html --csv compare.csv
    """
    from mmcompress.compare import write_comparison

    for kind, path in write_comparison(folders, out, csv_file, latex_file, Console(soft_wrap=not sys.stdout.isatty())):
        click.echo(f"{kind}: {path}")
