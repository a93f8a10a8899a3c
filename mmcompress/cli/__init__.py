"""The command line. A user's mistake prints what, where, what was expected and what to do; never a traceback."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Sequence

import click

from mmcompress.cli import _build, _device, _gate, _measure, _show, _store
from mmcompress.cli._group import cli
from mmcompress.errors import MmcompressError

COMMANDS = (_build, _device, _measure, _gate, _show, _store)
"""Modules whose commands the group has, in the order of a user's work."""
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


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
