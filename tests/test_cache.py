"""What the cache holds is listed with its size and age, and removed when nobody used it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmcompress._cache import DAY, FOUND, cached, kept, remove, used
from mmcompress.cli import cli
from mmcompress.errors import InputError

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


def test_what_was_found_is_found_again_and_listed(tmp_path: Path) -> None:
    asked: list[str] = []

    def find(value: float) -> dict[str, list[float]]:
        asked.append("once")
        return {"units": [value, 1e-17]}

    for value in (0.1 + 0.2, 7.0):
        assert kept(tmp_path, "sensitivity", {"seed": 0}, lambda value=value: find(value)) == {
            "units": [0.1 + 0.2, 1e-17]
        }
    assert kept(tmp_path, "sensitivity", {"seed": 1}, lambda: find(7.0)) == {"units": [7.0, 1e-17]}
    assert len(asked) == 2
    found = cached(tmp_path)
    assert [one.kind for one in found] == ["sensitivity"] * 2
    for one in found:
        (one.folder / FOUND).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        kept(tmp_path, "sensitivity", {"seed": 0}, lambda: find(7.0))


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
