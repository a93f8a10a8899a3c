"""Checkpoints of a training: complete, or not there."""

from __future__ import annotations

import os
from pathlib import Path

from mmcompress.store import read_json, write_json

COMPLETE = "complete.json"
"""Written last into a checkpoint: the sizes of its files."""


def seal(checkpoint: Path) -> None:
    """Bring a checkpoint to the disk and say that it is complete."""
    for file in checkpoint.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    write_json(checkpoint / COMPLETE, {file.name: file.stat().st_size for file in checkpoint.iterdir()})


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if _complete(path)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The steps that were done when it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _complete(checkpoint: Path) -> bool:
    if not (checkpoint / COMPLETE).is_file():
        return False
    sizes = read_json(checkpoint / COMPLETE)
    return all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == size for n, size in sizes.items())
