"""What the benchmarks that run recipes share: reading one for a change, a smoke run of it, and the reports of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from _claims import Claim

from mmcompress import runs
from mmcompress.report import Report, load_report


def movable(path: Path) -> dict[str, Any]:
    """A recipe with a CLIP folder as its teacher, whose path no longer depends on where the recipe lies."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    found["teacher"]["clip"]["path"] = str((path.parent / found["teacher"]["clip"]["path"]).resolve())
    return found


def write(recipe: dict[str, Any], path: Path) -> Path:
    """Write a recipe, with the folders above it; gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def smoke(recipe: Path, overrides: Sequence[str] = ()) -> list[Claim]:
    """The claim that every stage of a recipe runs, on a few examples."""
    passed = not runs.run(recipe, overrides=overrides, smoke=True).failures
    return [Claim(f"every arm of {recipe.stem} trains on 64 examples", float(passed), "", None, 1.0, True, passed)]


def reports(recipe: Path, work: Path, seeds: int, overrides: Sequence[str] = ()) -> list[Report]:
    """Run a recipe with seeds from 0 on, in the store and the runs of ``work`` (what is built is found)."""
    made = runs.run_seeds(recipe, seeds, overrides=overrides, store=work / "store", runs=work / "runs")
    return [load_report(outcome.folder) for outcome in made]
