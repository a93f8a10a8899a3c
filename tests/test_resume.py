"""A run that is killed while it distills goes on, and ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.small_recipe import RECIPE, write_project

DISTILL = RECIPE[: RECIPE.index("  - prune")] + RECIPE[RECIPE.index("quantize:") :]
DISTILL = DISTILL.replace("targets: [onnxruntime]\n", "").replace("demand: {size_ratio: 1.5}\n", "")
DISTILL = DISTILL.replace("steps: 6", "steps: 60\n      checkpoints: 20")


def start(recipe: Path, store: str) -> subprocess.Popen[str]:
    folder = recipe.parent
    command = [sys.executable, "-m", "mmcompress", "run", str(recipe), "--store", str(folder / store)]
    return subprocess.Popen(
        [*command, "--runs", str(folder / f"{store}-runs"), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result(recipe: Path, store: str) -> tuple[bytes, dict[str, Any], list[Any]]:
    """Weights of the student, facts of the stage, and the quality rows of the report."""
    artifact = next((recipe.parent / store / "artifacts" / "distill").iterdir())
    report = json.loads((recipe.parent / f"{store}-runs" / "small" / "latest" / "report.json").read_text())
    rows = [row for row in report["rows"] if "recall" in row["metric"]]
    facts: dict[str, Any] = json.loads((artifact / "artifact.json").read_text())["facts"]
    return (artifact / "model.safetensors").read_bytes(), facts, rows


def test_killed_while_distilling_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    recipe = write_project(tmp_path, DISTILL)
    whole = start(recipe, "whole")
    printed = whole.communicate(timeout=240)[0]
    assert whole.returncode == 0, printed

    killed = start(recipe, "killed")
    work = tmp_path / "killed" / "work"
    end = time.monotonic() + 240
    while len(list(work.glob("*/**/checkpoint-*/trainer_state.json"))) < 2:  # the newest may be half written
        assert killed.poll() is None and time.monotonic() < end, "it ended before it was killed"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "artifacts" / "distill").exists()

    again = start(recipe, "killed")
    printed = again.communicate(timeout=240)[0]
    assert again.returncode == 0, printed
    weights, facts, rows = result(recipe, "whole")
    weights_again, facts_again, rows_again = result(recipe, "killed")
    assert facts_again["resumed_from"] and not facts["resumed_from"]
    assert weights_again == weights
    assert rows_again == rows and len(rows) > 4
