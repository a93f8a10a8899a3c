"""The cache below a store: what stages share, each folder under its own key. What is removed is made again when it is needed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.component import JSON, digest_json
from mmcompress.store import read_json, write_json

DAY = 86400.0
FOUND = "found.json"
"""The file of a folder that :func:`kept` made."""
_GONE = ".gone"


@dataclass(frozen=True)
class Cached:
    """A folder of the cache: ``<cache>/<kind>/<key>``."""

    folder: Path
    kind: str
    """``teacher_outputs``, ``sensitivity``, ``block_times``, ..."""
    size_bytes: int
    unused_days: float
    """Since it was written, or opened by a stage that tells so."""


def cached(cache: Path, now: float | None = None) -> list[Cached]:
    """The folders of a cache, those that were unused longest first."""
    moment = time.time() if now is None else now
    found = []
    for folder in sorted(path for path in cache.glob("*/*") if path.is_dir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        last = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        size = sum(path.stat().st_size for path in files)
        found.append(Cached(folder, folder.parent.name, size, max(0.0, (moment - last) / DAY)))
    return sorted(found, key=lambda one: -one.unused_days)


def kept(cache: Path, kind: str, identity: JSON, find: Callable[[], JSON]) -> Any:
    """What was found for an identity before; where it was not, what ``find`` finds now, which is kept.

    As JSON: numbers come back as they went, pairs as lists. Two who look for it at once both find it.

    Raises:
        InputError: what was kept is no JSON any more.
    """
    folder = cache / kind / digest_json(identity)
    if (folder / FOUND).is_file():
        used(folder, FOUND)
    else:
        found = find()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FOUND, found)
    return read_json(folder / FOUND)


def used(folder: Path, name: str) -> None:
    """Note that a folder of the cache is used now, by the time of one of its files."""
    os.utime(folder / name)


def remove(one: Cached) -> None:
    """Remove a folder, whole or not at all for those who look for it; who has it open reads on."""
    gone = one.folder if one.folder.name.endswith(_GONE) else one.folder.with_name(one.folder.name + _GONE)
    os.replace(one.folder, gone)
    shutil.rmtree(gone)
