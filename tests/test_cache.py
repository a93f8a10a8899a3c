"""What the cache holds is listed with its size and age, and removed when nobody used it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmcompress._cache import DAY, cached, remove, used
from mmcompress.cli import cli

pytestmark = pytest.mark.unit


def folder(store: Path, name: str, size: int, days: float) -> Path:
    made = store / "cache" / name
    made.mkdir(parents=True)
    for file, count in (("about.json", 10), ("part.bin", size - 10)):
        (made / file).write_bytes(b"x" * count)
        os.utime(made / file, (1e9 - days * DAY,) * 2)
    return made


def test_sizes_and_ages(tmp_path: Path) -> None:
    new = folder(tmp_path, "examples/b", 500, 1)
    old = folder(tmp_path, "teacher_outputs/a", 2000, 40)
    (tmp_path / "cache" / "examples" / "b.lock").touch()
    found = cached(tmp_path / "cache", now=1e9)
    assert [(one.folder, one.kind, one.size_bytes, one.unused_days) for one in found] == [
        (old, "teacher_outputs", 2000, 40),
        (new, "examples", 500, 1),
    ]
    remove(found[0])
    assert not old.exists() and [path.name for path in old.parent.iterdir()] == []
    used(new, "about.json")
    assert cached(tmp_path / "cache")[0].unused_days < 1


def test_the_command_lists_and_removes_when_told_to(tmp_path: Path) -> None:
    old = folder(tmp_path, "teacher_outputs/a", 2_000_000, 40)
    new = folder(tmp_path, "examples/b", 500_000, 1)
    used(new, "part.bin")
    arguments = ["gc", "--store", str(tmp_path), "--days", "30"]
    listed = CliRunner().invoke(cli, arguments)
    assert listed.exit_code == 0 and old.is_dir()
    assert "2.0 MB" in listed.output and listed.output.endswith("2.0 of 2.5 MB would be removed with --delete\n")
    removed = CliRunner().invoke(cli, [*arguments, "--delete"])
    assert removed.output.endswith("2.0 of 2.5 MB removed\n")
    assert not old.exists() and new.is_dir()
    assert CliRunner().invoke(cli, [*arguments]).output == "0.0 of 0.5 MB would be removed with --delete\n"
