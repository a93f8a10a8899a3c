"""A gate's outcome: lines, Markdown for a job's summary, JUnit XML, ``verdict.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from mmcompress import gate
from mmcompress._report_text import STATUS_WORDS, escape_markdown, verdict_line
from mmcompress.gate import Verdict
from mmcompress.gate._run import Outcome
from mmcompress.store import write_json

Inconclusive = Literal["pass", "fail"]
_ORDER = ("failed", "inconclusive", "not_measured", "passed")


def exit_code(verdicts: Sequence[Verdict], inconclusive: Inconclusive | None = None) -> int:
    """0 passed, 1 failed, 4 inconclusive; an inconclusive one counts as ``inconclusive`` says where it says something."""
    code = gate.exit_code(verdicts)
    if code == gate.EXIT_INCONCLUSIVE and inconclusive is not None:
        return gate.EXIT_PASSED if inconclusive == "pass" else gate.EXIT_FAILED
    return code


def headline(outcome: Outcome) -> str:
    """The whole in one line."""
    counts = {status: sum(item.status == status for item in outcome.verdicts) for status in _ORDER}
    worst = next((status for status in _ORDER if counts[status]), "not_measured")
    told = ", ".join(f"{count} {STATUS_WORDS[status]}" for status, count in counts.items() if count)
    return f"gate {STATUS_WORDS[worst]}: {told}"


def lines(outcome: Outcome) -> list[str]:
    """For a terminal: the whole, the verdicts with the worst first, why, what improved, what was left out."""
    ordered = sorted(outcome.verdicts, key=lambda verdict: _ORDER.index(verdict.status))
    return [
        headline(outcome),
        *(f"  {verdict_line(verdict)}" for verdict in ordered),
        *(f"  why: {line}" for line in outcome.why),
        *(f"  improved: {line}" for line in outcome.improvements),
        *(f"  note: {line}" for line in outcome.notes),
    ]


def summary(outcome: Outcome) -> str:
    """Markdown for a job's summary."""
    parts = [f"## mmcompress {headline(outcome)}", "", gate.markdown(outcome.verdicts)]
    for title, told in (("Why", outcome.why), ("Improved", outcome.improvements), ("Notes", outcome.notes)):
        if told:
            parts += [f"**{title}**", "", *(f"- {escape_markdown(line)}" for line in told), ""]
    for metric, ids in outcome.flips.items():
        if ids:
            shown = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
            parts += [f"**Worse in {escape_markdown(metric)}**: {escape_markdown(shown)}", ""]
    return "\n".join(parts)


def junit(outcome: Outcome, inconclusive: Inconclusive | None = None) -> str:
    """JUnit XML; an inconclusive verdict is an error, or skipped where it is to pass."""
    root = ElementTree.fromstring(gate.junit_xml(outcome.verdicts, "mmcompress gate"))
    if inconclusive == "pass":
        skipped = 0
        for case in root.iter("testcase"):
            for error in case.findall("error"):
                error.tag = "skipped"
                skipped += 1
        root.set("errors", "0")
        root.set("skipped", str(skipped))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def as_json(outcome: Outcome, code: int) -> dict[str, Any]:
    """``verdict.json``: everything but the raw samples."""
    value = asdict(outcome)
    value.pop("samples")
    value["verdicts"] = [{**asdict(verdict), "holds": verdict.holds} for verdict in outcome.verdicts]
    found: dict[str, Any] = json.loads(json.dumps({"format": 1, "exit_code": code, **value}))
    return found


def write(outcome: Outcome, folder: Path, code: int, inconclusive: Inconclusive | None = None) -> None:
    """``verdict.json``, ``verdict.md``, ``verdict.xml`` and the raw blocks, ``samples.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "verdict.json", as_json(outcome, code))
    (folder / "verdict.md").write_text(summary(outcome), encoding="utf-8")
    (folder / "verdict.xml").write_text(junit(outcome, inconclusive), encoding="utf-8")
    blocks = (json.dumps(record, allow_nan=False) + "\n" for record in outcome.samples)
    (folder / "samples.jsonl").write_text("".join(blocks), encoding="utf-8")
