"""Write the README's tables from the stored results of the full runs.

python benchmarks/readme.py            (--check: exit 1 where the README differs)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def shown(value: float, unit: str) -> str:
    """A value as people read it."""
    return f"{100 * value:.1f} %" if unit == "ratio" and value < 2 else f"{value:.2f}"


def table(results: dict[str, Any]) -> str:
    """Claims as a Markdown table."""
    lines = ["| what | measured | 95 % interval | goal |", "|---|---:|---:|---:|"]
    for claim in results["claims"]:
        interval = " to ".join(shown(end, claim["unit"]) for end in claim["ci95"]) if claim["ci95"] else "exact"
        goal = (
            ""
            if claim["goal"] is None
            else f"{'≥' if claim['higher_is_better'] else '≤'} {shown(claim['goal'], claim['unit'])}"
        )
        lines.append(f"| {claim['name']} | {shown(claim['value'], claim['unit'])} | {interval} | {goal} |")
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
