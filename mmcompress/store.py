"""The store: artifacts by key, written whole or not at all.

::

    <store>/artifacts/<kind>/<key>/    a finished artifact: its files and artifact.json
    <store>/work/<key>/                private to the build that holds the lock; kept when it is killed, for resuming
    <store>/cache/                     stored teacher outputs, calibration tables: each under its own key
    <store>/locks/<key>.lock
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mmcompress.component import JSON, digest_json, digest_path
from mmcompress.errors import InputError, StageError

MANIFEST = "artifact.json"
FORMAT = 1


@dataclass(frozen=True)
class Step:
    """Something to build: its key is known before it is built."""

    kind: str
    """``teacher``, ``finetune``, ``distill``, ``prune``, ``export``, ``quantize``, ``compile``."""
    name: str
    """For people: ``stages.0 distill``."""
    identity: JSON
    """Everything that shapes the result: components, keys of inputs, digests of external data, library versions."""
    build: Callable[[Path, Path], Mapping[str, Any]]
    """``build(output, work)`` fills the folder ``output`` and gives facts for the manifest."""

    @property
    def key(self) -> str:
        """The SHA-256 of the identity."""
        return digest_json({"kind": self.kind, "identity": self.identity, "format": FORMAT})


@dataclass(frozen=True)
class Artifact:
    """A finished folder in the store."""

    key: str
    folder: Path
    manifest: Mapping[str, Any]
    built: bool
    """True when this call built it, False when it was found."""


def default_store() -> Path:
    """``MMCOMPRESS_STORE``, or ``~/.cache/mmcompress``."""
    return Path(os.environ.get("MMCOMPRESS_STORE") or Path.home() / ".cache" / "mmcompress")


class Store:
    """A folder of artifacts that several processes share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cache(self) -> Path:
        """The folder of what stages share."""
        return self.root / "cache"

    def folder(self, step: Step) -> Path:
        """Where the artifact of a step lies or will lie."""
        return self.root / "artifacts" / step.kind / step.key

    def find(self, step: Step) -> Artifact | None:
        """The finished artifact of a step, or None."""
        folder = self.folder(step)
        manifest = folder / MANIFEST
        if not manifest.is_file():
            return None
        return Artifact(step.key, folder, json.loads(manifest.read_text(encoding="utf-8")), built=False)

    def get(self, step: Step) -> Artifact:
        """Find the artifact, or build it; another process that builds the same one is waited for.

        Raises:
            StageError: the disk is full; the work folder is kept, so that the next run goes on from it.
        """
        found = self.find(step)
        if found is not None:
            return found
        locks = self.root / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"{step.key}.lock"):
                return self.find(step) or self._build(step)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise StageError(
                    f"{step.name}: no space left on the disk of {self.root}\n"
                    "  Nothing finished was lost. Free space (`mmcompress gc`) and run the same command again."
                ) from error
            raise

    def _build(self, step: Step) -> Artifact:
        work = self.root / "work" / step.key
        output = work / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        started = time.time()
        facts = step.build(output, work)
        if (output / MANIFEST).exists():
            raise RuntimeError(f"{step.name} wrote a {MANIFEST}, which is the store's")
        files = {p.relative_to(output).as_posix(): p for p in sorted(output.rglob("*")) if p.is_file()}
        manifest = {
            "format": FORMAT,
            "kind": step.kind,
            "name": step.name,
            "key": step.key,
            "identity": step.identity,
            "facts": dict(facts),
            "seconds": round(time.time() - started, 3),
            "files": {
                name: {"sha256": digest_path(path), "bytes": path.stat().st_size} for name, path in files.items()
            },
        }
        write_json(output / MANIFEST, manifest)
        final = self.folder(step)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(output, final)
        shutil.rmtree(work, ignore_errors=True)
        return Artifact(step.key, final, manifest, built=True)

    def verify(self) -> list[str]:
        """Hash every artifact again; gives what does not match its manifest."""
        wrong = []
        for manifest in sorted(self.root.glob(f"artifacts/*/*/{MANIFEST}")):
            for name, entry in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
                if digest_path(manifest.parent / name) != entry["sha256"]:
                    wrong.append(str(manifest.parent / name))
        return wrong


_NO_SPACE = {28, 122}
"""ENOSPC and EDQUOT."""


def write_json(path: Path, value: JSON) -> None:
    """Write JSON whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
