"""Commands of a device: ``compile`` of a package, and ``doctor``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import mmcompress.cli._build  # noqa: F401 - makes the command that this one extends
from mmcompress._progress import Progress
from mmcompress.cli._group import cli
from mmcompress.errors import UsageError

_OF_RECIPE = cli.commands["compile"]


@click.option("--target", help="Of a PACKAGE: onnxruntime, openvino, tensorrt or tensorrt_rtx [its own].")
@click.option("--device", help="Of a PACKAGE: what its report calls this device [what the system says].")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of a PACKAGE.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Of a PACKAGE: timed, per precision."
)
def _compile(
    recipe: Path, target: str | None, device: str | None, threads: int, seconds: float, **of_recipe: Any
) -> None:
    """Build up to the package of a RECIPE's last target, and print its folder; or compile a PACKAGE for this device.

    The latter needs neither torch nor transformers. The engine answers the package's probe examples and is timed; INT8
    that does not build, or is slower than float, is not taken. The report that is written beside it joins a run by
    mmcompress report RUN --add REPORT

    \b
    Example:
      mmcompress compile recipes/quickstart.yaml --out ./package
      mmcompress compile packages/onnxruntime --target openvino
    """
    if not recipe.is_dir():
        if target is not None or device is not None:
            raise UsageError("--target and --device concern the folder of a package; a recipe names its targets itself")
        assert _OF_RECIPE.callback is not None
        _OF_RECIPE.callback(recipe=recipe, **of_recipe)
        return
    if of_recipe["overrides"]:
        raise UsageError("-s changes a recipe; a package is compiled as it is")
    from mmcompress.device import compile_package

    with Progress(quiet=of_recipe["quiet"]) as progress:
        made = compile_package(
            recipe,
            target,
            of_recipe["out"],
            name=device,
            threads=threads,
            seconds=seconds,
            listen=lambda message, done, total: progress.listen("compile", message, done, total),
        )
    for note in made.notes:
        click.echo(f"note: {note}")
    click.echo(f"report: {made.report}")
    click.echo(made.package)


_command = click.command(name="compile")(_compile)
_command.params[:0] = _OF_RECIPE.params
cli.commands["compile"] = _command


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(as_json: bool) -> None:
    """Try what is installed: every runtime runs a tiny graph; what is broken or absent comes with its repair.

    Exits with 0 where all that is installed works, else with 1.

    \b
    Example:
      mmcompress doctor
    """
    from mmcompress.doctor import examine, healthy

    checks = examine()
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            click.echo(f"{check.status:<8} {check.name:<15} {check.detail}")
            if check.repair:
                click.echo("\n".join(f"{'':<24} {line.strip()}" for line in check.repair.splitlines()))
    sys.exit(0 if healthy(checks) else 1)
