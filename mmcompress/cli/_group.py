"""The command line's group, and the options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import mmcompress
from mmcompress import component

F = TypeVar("F", bound=Callable[..., Any])


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


def recipe_options(command: F) -> F:
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
