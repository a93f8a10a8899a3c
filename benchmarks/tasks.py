"""Every kind of model on real data: a teacher trained for minutes, its student with and without it, and the INT8 package.

    python benchmarks/tasks.py DATA WORK --out benchmarks/results/tasks.json    (about two hours on two cores when nothing is built)

DATA holds the public sets that ``_task_data.py`` names. WORK gets the tables that are made of them, the recipes of
``benchmarks/tasks/`` and a store, so that a second call goes on where the first ended. ``--only NAME`` runs some of them;
``--quick`` drives every recipe on 64 examples. Results are shown as they come out: nothing is demanded of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _task_data as task_data
import _task_models as task_models
from _claims import Claim, main, only

from mmcompress import runs
from mmcompress.metrics import Row
from mmcompress.report import Report, load_report, read_samples

RECIPES = Path(__file__).parent / "tasks"
PACKAGE = "onnxruntime int8"
SPEED, SIZE = "speedup.latency_ms_p50", "size_ratio"


@dataclass(frozen=True)
class Task:
    """A recipe, the data that it reads, and the row that tells how well it does."""

    name: str
    what: str
    metric: str
    data: Callable[[Path, Path], None] | None = None
    """Writes the tables; None for data that the product generates."""
    conditions: Mapping[str, Any] | None = None


TASKS = (
    Task("digit_strings", "spoken digit strings, Whisper-like", "wer", task_data.digit_strings),
    Task("digit_strings_ctc", "spoken digit strings, CTC", "wer", task_data.digit_strings),
    Task("av_digits", "digits seen and heard, both degraded, fused", "accuracy", task_data.degraded_digits),
    Task("scenes_vqa", "questions about scenes, ViLT", "vqa_accuracy"),
    Task("emoji_naming", "names of emoji, captioner", "cider", task_data.emoji),
    Task("nlvr", "sentences about three boxes, ViLT", "accuracy", task_data.sentences),
    Task("grocery_fusion", "groceries by photo and words, fused", "accuracy", task_data.groceries),
    Task("grocery_zero_shot", "groceries by their names, CLIP", "zero_shot_top1", task_data.groceries),
    Task("scenes_films", "films of moving shapes, CLIP over frames", "recall_at_1", conditions={"direction": "mean"}),
)


def prepare(task: Task, data: Path, work: Path) -> Path:
    """The recipe of a task in a folder of its own, with its tables, its model's configuration and tokenizer; gives the recipe's path."""
    folder = work / task.name
    if task.data is not None and not (folder / "test.jsonl").is_file():
        task.data(data, folder)
    shutil.copytree(RECIPES / task.name, folder, dirs_exist_ok=True)
    getattr(task_models, task.name)(folder)
    return folder / "recipe.yaml"


def rows_of(report: Report, task: Task) -> list[Claim]:
    """The quality of every model, and what the package costs, as claims without goals."""
    claims = []
    for row in report.rows:
        if row.metric == task.metric and _plain(row, task):
            claims.append(_claim(f"{task.name}: {row.metric} of {row.name}", row))
    for metric in (f"drop.{task.metric}", SPEED, SIZE):
        found = [row for row in report.rows if row.metric == metric and row.name == PACKAGE and _plain(row, task)]
        if found:
            claims.append(_claim(f"{task.name}: {metric} of {PACKAGE}", found[0]))
    return claims


def _plain(row: Row, task: Task) -> bool:
    """A row of undamaged, whole data, of the engine, one example at a time."""
    conditions = row.conditions
    if any(conditions.get(name) for name in ("subset", "damage", "masked")):
        return False
    if conditions.get("scope", "engine") != "engine" or conditions.get("batch", 1) != 1:
        return False
    return row.metric != task.metric or all(conditions.get(k) == v for k, v in (task.conditions or {}).items())


def _claim(name: str, row: Row) -> Claim:
    return Claim(name, row.value, row.unit, row.ci95, None, row.higher_is_better, None)


def measure(quick: bool, data: Path, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Run the recipes (what is built is found) and read their reports."""
    chosen = [task for task in TASKS if not ONLY or task.name in ONLY]
    claims: list[Claim] = []
    samples: dict[str, Any] = {}
    for task in chosen:
        recipe = prepare(task, data.resolve(), work.resolve())
        outcome = runs.run(recipe, store=work / "store", runs=work / "runs", smoke=quick)
        if quick:
            claims.append(
                Claim(f"{task.name} runs", float(not outcome.failures), "", None, 1.0, True, not outcome.failures)
            )
            continue
        report = load_report(outcome.folder)
        claims += rows_of(report, task)
        samples.update(
            {
                f"{task.name}/{name}": [record["score"] for record in read_samples(report, name) if "score" in record]
                for name in report.samples
                if name.startswith(f"{task.metric}/")
            }
        )
        print(json.dumps({"task": task.name, "folder": str(outcome.folder)}), flush=True)
    return claims, samples


ONLY: list[str] = []

if __name__ == "__main__":
    ONLY.extend(only())
    sys.exit(main(__doc__ or "", measure, paths=("data", "work")))
