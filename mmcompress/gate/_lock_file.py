"""``mmcompress.lock``: the baseline of a repository. Renewing it is a diff that someone reviews."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.component import digest_path
from mmcompress.errors import InputError
from mmcompress.gate._rows import MACHINE
from mmcompress.gate._sides import Side
from mmcompress.package import MANIFEST
from mmcompress.store import read_json, write_json

FORMAT = 1
NAME = "mmcompress.lock"
_KEYS = {"baseline", "kind", "digest", "budgets", "machine", "scores"}


def write_lock(
    path: Path,
    side: Side,
    *,
    budgets: Mapping[str, float],
    threads: int,
    scores: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> None:
    """Write what was accepted: where it lies (relative to the lock), its digest, what it reaches, where, and the budgets."""
    write_json(
        path,
        {
            "format": FORMAT,
            "baseline": os.path.relpath(side.path.resolve(), path.resolve().parent),
            "kind": side.kind,
            "digest": side.digest,
            "budgets": dict(budgets),
            "threads": threads,
            "machine": {name: environment.get(name) for name in MACHINE},
            "scores": [dict(score) for score in scores],
        },
    )


def read_lock(path: Path) -> dict[str, Any]:
    """A lock, its baseline found and of the digest that was accepted; ``baseline`` becomes a path.

    Raises:
        InputError: it is no lock, of another format, or its baseline is missing or another one.
    """
    lock = read_json(path)
    found = lock.get("format") if isinstance(lock, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: a lock of format {found!r}; this version reads format {FORMAT}\n"
            "  Write it again: mmcompress gate PACKAGE --accept"
        )
    missing = sorted(_KEYS - set(lock))
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing\n  Write it again: mmcompress gate PACKAGE --accept")
    baseline = (path.resolve().parent / lock["baseline"]).resolve()
    if not baseline.exists():
        raise InputError(
            f"{path}: its baseline is not at {baseline}\n"
            "  Fetch the package to where the lock says, or accept another one with --accept."
        )
    sealed = baseline / MANIFEST if lock["kind"] == "package" else baseline
    digest = digest_path(sealed)
    if digest != lock["digest"]:
        raise InputError(
            f"{path}: {baseline} is not the baseline that was accepted (sha256 {digest[:12]}, accepted "
            f"{lock['digest'][:12]})\n  Fetch that one, or accept this one with --accept and have the diff reviewed."
        )
    return {**lock, "baseline": baseline}


def is_lock(path: Path) -> bool:
    """Whether a path is a lock: a file of that ending, or JSON that says so."""
    if not path.is_file():
        return False
    if path.suffix == ".lock":
        return True
    if path.suffix != ".json":
        return False
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(value, dict) and {"digest", "budgets", "baseline"} <= set(value)
