"""Write the README's tables from the stored results of the full runs.

python benchmarks/readme.py            (--check: exit 1 where the README differs)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def shown(value: float, name: str, unit: str = "") -> str:
    """A value as people read it."""
    if unit in ("s", "ms", "MB", "GiB"):
        return f"{value:.1f} {unit}"
    if unit == "1" or name.startswith("pages"):
        return f"{value:.0f}"
    if any(word in name for word in ("failed", "caught")):
        return f"{100 * value:.1f} %"
    if "difference" in name:
        return f"{value:.2g}"
    if unit == "times" or any(word in name for word in ("times", "bytes", " over ", "that gain")):
        return f"{value:.2f}"
    return f"{100 * value:.1f} {'points' if 'points' in name else '%'}"


def table(results: dict[str, Any]) -> str:
    """Claims as a Markdown table."""
    lines = ["| what | measured | 95 % interval | goal | |", "|---|---:|---:|---:|---|"]
    for claim in results["claims"]:
        name = claim["name"]
        unit = claim["unit"]
        interval = "" if unit in ("s", "ms", "GiB") else "exact"
        if claim["ci95"]:
            interval = " to ".join(shown(end, name, unit) for end in claim["ci95"])
        sign = "≥" if claim["higher_is_better"] else "≤"
        goal = "" if claim["goal"] is None else f"{sign} {shown(claim['goal'], name, unit)}"
        verdict = {True: "holds", False: "missed", None: "undecided"}[claim["holds"]] if goal else ""
        lines.append(f"| {name} | {shown(claim['value'], name, unit)} | {interval} | {goal} | {verdict} |")
    facts = results["environment"]
    return "\n".join([*lines, "", f"Measured on {facts['cpu']}, {facts['cores']} cores."])


MODELS = ("teacher", "without_teacher", "distill", "prune", "onnxruntime int8")
HEADINGS = ("teacher", "student, no teacher", "distilled", "pruned", "INT8 package")
PERCENT = ("accuracy", "vqa_accuracy", "zero_shot_top1", "recall_at_1", "wer")


def task_table(results: dict[str, Any]) -> str:
    """The tasks as a Markdown table: one line each, every number with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for claim in results["claims"]:
        task, _, rest = claim["name"].partition(": ")
        metric, _, model = rest.partition(" of ")
        found.setdefault(task, {})[f"{metric} of {model}"] = claim
    lines = ["| task | metric | " + " | ".join(HEADINGS) + " | times as fast | times smaller |"]
    lines.append("|---|---|" + "---:|" * (len(HEADINGS) + 2))
    for task, claims in found.items():
        metric = next(name.partition(" of ")[0] for name in claims if name.endswith(" of teacher"))
        cells = [with_interval(claims.get(f"{metric} of {model}"), metric) for model in MODELS]
        for name in ("speedup.latency_ms_p50", "size_ratio"):
            cells.append(with_interval(claims.get(f"{name} of {MODELS[-1]}"), name))
        lines.append(f"| {task.replace('_', ' ')} | {metric} | {' | '.join(cells)} |")
    facts = results["environment"]
    return "\n".join([*lines, "", f"Measured on {facts['cpu']}, {facts['cores']} cores."])


def temperature_table(results: dict[str, Any]) -> str:
    """Direction by temperature as a Markdown table: validation scores by task, then what the test said of the best."""
    scores: dict[tuple[str, str, str], dict[str, str]] = {}
    confirmed = []
    for claim in results["claims"]:
        place, _, rest = claim["name"].partition(": ")
        task, _, split = place.partition(", ")
        metric, _, arm = rest.partition(" of ")
        if split == "test":
            confirmed.append(
                f"{task.replace('_', ' ')}: {metric} of {arm.replace('_', ', T = ', 1)}: {with_interval(claim, metric)}"
            )
            continue
        direction, _, temperature = arm.partition("_")
        scores.setdefault((task, metric, direction), {})[temperature] = with_interval(claim, metric)
    temperatures = list(dict.fromkeys(t for found in scores.values() for t in found))
    lines = ["| validation | metric | direction | " + " | ".join(f"T = {t}" for t in temperatures) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(temperatures))
    for (task, metric, direction), found in scores.items():
        cells = " | ".join(found[t] for t in temperatures)
        lines.append(f"| {task.replace('_', ' ')} | {metric} | {direction} | {cells} |")
    return "\n".join([*lines, "", "On the test: " + "; ".join(confirmed) + "."])


def curve_table(results: dict[str, Any]) -> str:
    """Quality kept at the speed reached, a line per importance and goal, then the claims that compare them."""
    claims = {claim["name"]: claim for claim in results["claims"]}
    series: dict[str, list[str]] = {}
    for name, claim in claims.items():
        cut, _, what = name.partition(": ")
        if what == "recall@1 kept":
            kept = with_interval(claim, "recall_at_1")
            cell = f"{kept} at {claims[f'{cut}: times as fast']['value']:.2f}"
            series.setdefault(cut.rpartition("_")[0], []).append(cell)
    columns = max(len(cells) for cells in series.values())
    lines = ["| importance | goal in |" + " |" * columns, "|---|---|" + "---:|" * columns]
    for name, cells in series.items():
        importance, _, term = name.replace("random_measured", "random order, measured widths").partition("_")
        row = cells + [""] * (columns - len(cells))
        shown_term = term.replace("speedup", "time").replace("_or_layers", ", layers too")
        lines.append(f"| {importance} | {shown_term} | {' | '.join(row)} |")
    rest = [claim for name, claim in claims.items() if claim["goal"] is not None or ", paired" in name]
    return "\n".join([*lines, "", table({**results, "claims": rest})])


def engines_table(results: dict[str, Any]) -> str:
    """Median milliseconds of every engine by batch size, then the claims that compare them."""
    found: dict[str, dict[str, str]] = {}
    for claim in results["claims"]:
        beginning, _, name = claim["name"].partition(": ")
        if beginning.startswith("p50, "):
            found.setdefault(name, {})[beginning.removeprefix("p50, ")] = f"{claim['value']:.1f}"
    batches = sorted({batch for cells in found.values() for batch in cells}, key=lambda batch: int(batch.split()[1]))
    lines = [f"| p50 in ms | {' | '.join(batches)} |", "|---|" + "---:|" * len(batches)]
    for name, cells in found.items():
        lines.append(f"| {name} | {' | '.join(cells.get(batch, '') for batch in batches)} |")
    rest = [claim for claim in results["claims"] if not claim["name"].startswith("p50, ")]
    return "\n".join([*lines, "", table({**results, "claims": rest})])


TABLES = {
    "engines": engines_table,
    "tasks": task_table,
    "distillation_temperature": temperature_table,
    "pruning_curve": curve_table,
}


def with_interval(claim: dict[str, Any] | None, metric: str) -> str:
    """A value with its 95 % interval."""
    if claim is None or claim["value"] is None:
        return ""
    scale, digits = (100, 1) if metric in PERCENT else (1, 2)
    value = f"{claim['value'] * scale:.{digits}f}"
    if not claim["ci95"]:
        return value
    low, high = (f"{end * scale:.{digits}f}" for end in claim["ci95"])
    return f"{value} [{low}, {high}]"


def main() -> int:
    """Fill every ``<!-- results:NAME -->`` block from ``benchmarks/results/NAME.json``."""
    path = ROOT / "README.md"
    before = after = path.read_text(encoding="utf-8")
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        start, end = f"<!-- results:{file.stem} -->", f"<!-- /results:{file.stem} -->"
        if start in after:
            head, _, rest = after.partition(start)
            tail = rest.partition(end)[2]
            results = json.loads(file.read_text(encoding="utf-8"))
            after = f"{head}{start}\n{TABLES.get(file.stem, table)(results)}\n{end}{tail}"
    if "--check" in sys.argv:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
