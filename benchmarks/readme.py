"""Write the README's tables from the stored results of the full runs.

python benchmarks/readme.py            (--check: exit 1 where the README differs)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def shown(value: float, name: str) -> str:
    """A value as people read it."""
    if "times" in name:
        return f"{value:.2f}"
    return f"{100 * value:.1f} {'points' if 'points' in name else '%'}"


def table(results: dict[str, Any]) -> str:
    """Claims as a Markdown table."""
    lines = ["| what | measured | 95 % interval | goal | |", "|---|---:|---:|---:|---|"]
    for claim in results["claims"]:
        name = claim["name"]
        interval = " to ".join(shown(end, name) for end in claim["ci95"]) if claim["ci95"] else "exact"
        sign = "≥" if claim["higher_is_better"] else "≤"
        goal = "" if claim["goal"] is None else f"{sign} {shown(claim['goal'], name)}"
        verdict = {True: "holds", False: "missed", None: "undecided"}[claim["holds"]] if goal else ""
        lines.append(f"| {name} | {shown(claim['value'], name)} | {interval} | {goal} | {verdict} |")
    facts = results["environment"]
    return "\n".join([*lines, "", f"Measured on {facts['cpu']}, {facts['cores']} cores."])


def main() -> int:
    """Fill every ``<!-- results:NAME -->`` block from ``benchmarks/results/NAME.json``."""
    path = ROOT / "README.md"
    before = after = path.read_text(encoding="utf-8")
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        start, end = f"<!-- results:{file.stem} -->", f"<!-- /results:{file.stem} -->"
        if start in after:
            head, _, rest = after.partition(start)
            tail = rest.partition(end)[2]
            after = f"{head}{start}\n{table(json.loads(file.read_text(encoding='utf-8')))}\n{end}{tail}"
    if "--check" in sys.argv:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
