"""Commands that keep the store small."""

from __future__ import annotations

from pathlib import Path

import click

from mmcompress.cli._group import cli


@cli.command()
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), help="[MMCOMPRESS_STORE or ~/.cache/mmcompress]"
)
@click.option("--days", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Unused for this long.")
@click.option("--delete", is_flag=True, help="Remove what is listed; without it nothing is changed.")
def gc(store: Path | None, days: float, delete: bool) -> None:
    """List what the store's cache holds and nobody used for some days; with --delete remove it.

    The cache holds encoded examples and teachers' answers, which are made again when they are needed. Models and packages
    are not touched.

    \b
    Example:
      mmcompress gc --days 14 --delete
    """
    from mmcompress._cache import cached, remove
    from mmcompress.store import Store, default_store

    found = cached(Store(store or default_store()).cache)
    old = [one for one in found if one.unused_days >= days]
    for one in old:
        if delete:
            remove(one)
        click.echo(f"{one.size_bytes / 1e6:10.1f} MB  {one.unused_days:6.1f} days  {one.kind}/{one.folder.name[:12]}")
    size, whole = (sum(one.size_bytes for one in some) / 1e6 for some in (old, found))
    what = "removed" if delete else "would be removed with --delete"
    click.echo(f"{size:.1f} of {whole:.1f} MB {what}")
