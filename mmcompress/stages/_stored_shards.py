"""Rows by key in files that are whole or not there, which several processes read and write at once.

::

    <folder>/about.json        what the rows are, for people and for :class:`Shards`
    <folder>/<name>.bin        arrays one after the other, read as memory maps; the name is the start of its SHA-256
    <folder>/<name>.json       written last: rows, size and digest of the file, and where each array lies in it
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import StageError
from mmcompress.stages._stored_rows import Arrays
from mmcompress.store import read_json, write_json

KEY_BYTES = 16
KEY = np.dtype(f"V{KEY_BYTES}")
Keys = NDArray[np.void]
"""One key per row, [n]: the start of a SHA-256."""
ABANDONED_SECONDS = 3600.0
"""Nobody takes that long to write a shard."""
_ALIGNED = 64
_CHECKED: set[tuple[str, int, int]] = set()
"""Files whose digest this process has checked, by path, size and time of change."""


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    path: Path
    rows: int
    arrays: Mapping[str, NDArray[Any]]


class Shards:
    """The rows of one folder. What another process writes is seen after :meth:`refresh`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Shard] = []
        self.damaged: list[str] = []
        """Files that were not as they had been written, and were removed."""
        self._known: set[str] = set()
        self._firsts = np.zeros(1, np.int64)
        self._keys = np.zeros(0, KEY)
        self._order = np.zeros(0, np.int64)

    def refresh(self) -> None:
        """Open the shards that were added since; each is compared with its size and digest, once per process."""
        new = sorted(path for path in self.folder.glob("*.json") if path.stem not in self._known)
        found = [shard for path in new if path.name != "about.json" and (shard := self._open(path)) is not None]
        if not found:
            return
        self.shards += found
        self._known |= {shard.path.stem for shard in found}
        self._firsts = np.concatenate([[0], np.cumsum([shard.rows for shard in self.shards])])
        keys = np.concatenate([np.asarray(shard.arrays["keys"]) for shard in self.shards])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def _open(self, note: Path) -> Shard | None:
        path = note.with_suffix(".bin")
        about = read_json(note)
        if not _as_written(path, about["bytes"], about["sha256"]):
            self.damaged.append(str(path))
            note.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return None
        arrays = {
            name: np.memmap(path, kind, "r", offset, tuple(shape)) if 0 not in shape else np.zeros(shape, kind)
            for name, (kind, offset, shape) in about["arrays"].items()
        }
        arrays["keys"] = np.asarray(arrays["keys"]).view(KEY).reshape(-1)
        return Shard(path, about["rows"], arrays)

    def tidy(self) -> None:
        """Remove what killed processes left half-written, once nobody can be writing it any more."""
        for part in self.folder.glob("*.part"):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink(missing_ok=True)

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Where rows lie, [n]: by shard and row in it, one number; -1 for those that are not there."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        return np.where(self._keys[places] == keys, self._order[places], -1)

    def split(self, positions: NDArray[np.int64]) -> list[tuple[Shard, NDArray[np.int64], NDArray[np.int64]]]:
        """Positions by shard: the shard, the rows in it, and where in ``positions`` they stand."""
        numbers = np.searchsorted(self._firsts, positions, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        return [
            (self.shards[numbers[part[0]]], positions[part] - self._firsts[numbers[part[0]]], part)
            for part in np.split(order, cuts)
        ]

    def write(self, keys: Keys, arrays: Arrays) -> None:
        """Add a shard: whole or not at all.

        Raises:
            StageError: the disk is full; finished shards stay.
        """
        parts = {"keys": keys.view(np.uint8).reshape(-1, KEY_BYTES), **arrays}
        where: dict[str, tuple[str, int, list[int]]] = {}
        content = bytearray()
        for name, array in parts.items():
            content += bytes(-len(content) % _ALIGNED)
            where[name] = (array.dtype.str, len(content), list(array.shape))
            content += np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{digest[:32]}.bin"
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            note = {"rows": len(keys), "bytes": len(content), "sha256": digest, "arrays": where}
            write_json(path.with_suffix(".json"), note)
        except OSError as error:
            note_file = path.with_suffix(".json")
            for half in (part, note_file.with_name(f"{note_file.name}.part"), *([] if note_file.is_file() else [path])):
                half.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StageError(
                f"no space left on the disk of {self.folder} for the teacher's outputs ({len(content)} bytes were to be"
                " written)\n  What was finished is kept. Free space (`mmcompress gc`) and run the same command again."
            ) from error


def _as_written(path: Path, size: int, digest: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    status = path.stat()
    seen = (str(path), status.st_size, status.st_mtime_ns)
    if seen in _CHECKED:
        return True
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            return False
    _CHECKED.add(seen)
    return True


def row_digests(array: NDArray[Any]) -> Keys:
    """The start of each row's SHA-256, [n], with the shape and type that its bytes are read with."""
    head = f"{array.dtype.str} {array.shape[1:]}".encode()
    digests = b"".join(hashlib.sha256(head + np.ascontiguousarray(row).tobytes()).digest()[:KEY_BYTES] for row in array)
    return np.frombuffer(digests, KEY)


def combined(*parts: NDArray[Any]) -> Keys:
    """The keys of rows that are told apart by several things, [n] of any type each."""
    joined = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts]
    rows = np.concatenate(joined, axis=1)
    return np.frombuffer(b"".join(hashlib.sha256(row.tobytes()).digest()[:KEY_BYTES] for row in rows), KEY)
