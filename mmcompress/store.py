"""The store: artifacts by key, written whole or not at all.

::

    <store>/artifacts/<kind>/<key>/    a finished artifact: its files and artifact.json
    <store>/work/<key>/                private to the build that holds the lock; kept when it is killed, for resuming
    <store>/cache/                     stored teacher outputs, sensitivities, block times: each under its own key
    <store>/locks/<key>.lock
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from mmcompress import _processes
from mmcompress.component import JSON, digest_json, digest_path
from mmcompress.errors import InputError, MmcompressError, StageError

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
    together: bool = False
    """Whether all processes that train together build it; else the first one alone."""

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
        return Artifact(step.key, folder, read_json(manifest), built=False)

    def get(self, step: Step) -> Artifact:
        """Find the artifact, or build it; another process that builds the same one is waited for.

        Raises:
            StageError: disk or memory ran out; the work folder is kept, so that the next run goes on from it.
            InputError: the store cannot be written.
        """
        found = self.find(step) if _processes.count() == 1 else None
        if found is not None:
            return found
        with _Exhaustion(step.name, self.root):
            if _processes.rank():
                return self._follow(step)
            locks = self.root / "locks"
            try:
                locks.mkdir(parents=True, exist_ok=True)
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise InputError(
                    f"{self.root}: the store cannot be written ({error.strerror})\n"
                    "  Name another folder with --store or MMCOMPRESS_STORE."
                ) from error
            with FileLock(locks / f"{step.key}.lock"):
                found = self.find(step)
                _processes.told_by_first("build" if found is None else "found")
                found = found or self._build(step)
            _processes.wait()
            return found

    def _follow(self, step: Step) -> Artifact:
        """What the first process builds or finds. A stage that trains is run here too; the first one's result is kept."""
        if _processes.told_by_first("") == "build" and step.together:
            work = self.root / "work" / f"{step.key}-process-{_processes.rank()}"
            output = work / "output"
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir(parents=True)
            step.build(output, work)
            shutil.rmtree(work, ignore_errors=True)
        _processes.wait()
        found = self.find(step)
        if found is None:
            raise InputError(
                f"{self.root}: the first process wrote {step.name}, which this one does not see\n  Use a store that all processes share."
            )
        return found

    def _build(self, step: Step) -> Artifact:
        work = self.root / "work" / step.key
        output = work / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        started = time.monotonic()
        facts = step.build(output, work)
        if (output / MANIFEST).exists():
            raise RuntimeError(f"{step.name} wrote a {MANIFEST}, which is the store's")
        manifest = {
            "format": FORMAT,
            "kind": step.kind,
            "name": step.name,
            "key": step.key,
            "identity": step.identity,
            "facts": dict(facts),
            "seconds": round(time.monotonic() - started, 3),
            "files": {
                path.relative_to(output).as_posix(): {"sha256": digest_path(path), "bytes": path.stat().st_size}
                for path in sorted(output.rglob("*"))
                if path.is_file()
            },
        }
        write_json(output / MANIFEST, manifest)
        final = self.folder(step)
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)  # a folder that lost its manifest is no artifact
        os.replace(output, final)
        shutil.rmtree(work, ignore_errors=True)
        return Artifact(step.key, final, manifest, built=True)

    def verify(self) -> list[str]:
        """Hash every artifact again; gives the paths of what does not match its manifest, is missing or was added."""
        return [str(path) for folder in sorted(self.root.glob("artifacts/*/*")) for path in _wrong(folder)]


def _wrong(folder: Path) -> Iterator[Path]:
    manifest = read_json(folder / MANIFEST)
    key = digest_json({"kind": manifest["kind"], "identity": manifest["identity"], "format": manifest["format"]})
    if key != folder.name:
        yield folder / MANIFEST
    files: Mapping[str, Any] = manifest["files"]
    for name, entry in files.items():
        if digest_path(folder / name) != entry["sha256"]:
            yield folder / name
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    yield from (path for name, path in there.items() if name not in files and name != MANIFEST)


class _Exhaustion:
    """Tells the user when it was the disk or the memory that ended a build, however the library beneath put it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, MmcompressError) or not isinstance(error, Exception):
            return
        if _is_disk_full(error):
            raise StageError(
                f"{self.name}: no space left on the disk of {self.root}\n"
                "  Nothing finished was lost. Free space (`mmcompress gc`) and run the same command again."
            ) from error
        if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
            raise StageError(
                f"{self.name}: out of memory\n"
                "  Nothing finished was lost. Lower the stage's batch_size or close other programs, and run again."
            ) from error


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error) for text in _DISK_FULL)


_DISK_FULL = ("No space left on device", "StorageFull", "Disk quota exceeded", "PytorchStreamWriter failed")
"""What libraries that write files by themselves (safetensors, ONNX Runtime, torch) say instead of an OSError."""
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "std::bad_alloc", "Failed to allocate memory")


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
