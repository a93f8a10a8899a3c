"""The command that judges a candidate against a baseline."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import click

from mmcompress._progress import Progress
from mmcompress.cli._group import cli
from mmcompress.errors import UsageError


@cli.command()
@click.argument("candidate", required=False, type=click.Path(path_type=Path))
@click.option("--baseline", "-b", type=click.Path(path_type=Path), help="What it is held against; mmcompress.lock too.")
@click.option("--like", type=click.Path(exists=True, path_type=Path), help="A package that lends bare graphs its task.")
@click.option("--recipe", type=click.Path(exists=True, path_type=Path), help="Whose test data judge quality.")
@click.option(
    "--budget", multiple=True, metavar="NAME=SHARE", help="latency=5%, quality=1%, size=1%, operators=0, int8=0."
)
@click.option("--threads", type=click.IntRange(1), help="Of each call [1: what decides apart from other programs].")
@click.option("--batch", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--limit", type=click.FloatRange(1), default=150.0, show_default=True, help="Seconds of timing.")
@click.option("--inconclusive", type=click.Choice(["pass", "fail"]), help="What an open verdict counts as [exit 4].")
@click.option("--accept", is_flag=True, help="Write mmcompress.lock: CANDIDATE is the baseline from now on.")
@click.option("--lock", type=click.Path(path_type=Path), default=Path("mmcompress.lock"), show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="verdict.json, .md, .xml and samples.")
@click.option("--json", "as_json", is_flag=True, help="Print verdict.json.")
@click.option("--selftest", is_flag=True, help="Plant a slowdown and a drop, and show that both are caught.")
def gate(candidate: Path | None, selftest: bool, **given: Any) -> None:
    """Judge a CANDIDATE (package, run or .onnx) against a baseline: passed 0, failed 1, inconclusive 4.

    \b
    Example:
      mmcompress gate new/packages/onnxruntime --baseline old/packages/onnxruntime
      mmcompress gate new/packages/onnxruntime --accept
      mmcompress gate new/packages/onnxruntime --baseline mmcompress.lock --inconclusive pass
    """
    if selftest:
        sys.exit(_selftest(given["limit"], quiet=given["as_json"]))
    if candidate is None:
        raise UsageError("gate takes a candidate: a package, a run or an .onnx file\n  Or --selftest.")
    if given["baseline"] is None and not given["accept"]:
        raise UsageError(
            "gate takes a baseline: --baseline PACKAGE, RUN, GRAPH or mmcompress.lock\n"
            "  --accept makes CANDIDATE the first one."
        )
    sys.exit(_gate(candidate, given))


def _gate(candidate: Path, given: dict[str, Any]) -> int:
    from mmcompress.gate import _show as show
    from mmcompress.gate._lock_file import is_lock, read_lock, write_lock
    from mmcompress.gate._run import BUDGETS, Options, run_gate
    from mmcompress.gate._sides import open_side

    baseline: Path = given["baseline"] if given["baseline"] is not None else candidate
    budgets, threads = dict(BUDGETS), given["threads"]
    if is_lock(baseline):
        lock = read_lock(baseline)
        baseline, threads = lock["baseline"], threads or lock["threads"]
        budgets |= lock["budgets"]
    budgets |= read_budgets(given["budget"])
    options = Options(budgets, threads or 1, given["batch"], given["limit"], given["recipe"])
    inconclusive: Literal["pass", "fail"] | None = given["inconclusive"]
    with tempfile.TemporaryDirectory(prefix="mmcompress-gate-") as work, Progress(quiet=given["as_json"]) as progress:
        sides = [
            open_side(path, name, like=given["like"], work=Path(work))
            for path, name in ((candidate, "candidate"), (baseline, "baseline"))
        ]
        outcome = run_gate(
            sides[0], sides[1], options, lambda message, done, total: progress.listen("gate", message, done, total)
        )
        if given["accept"]:
            write_lock(
                given["lock"],
                open_side(candidate, "candidate"),
                budgets=budgets,
                threads=options.threads,
                scores=outcome.scores,
                environment=outcome.environment,
            )
    code = show.exit_code(outcome.verdicts, inconclusive)
    if given["out"] is not None:
        show.write(outcome, given["out"], code, inconclusive)
    click.echo(
        json.dumps(show.as_json(outcome, code), indent=2) if given["as_json"] else "\n".join(show.lines(outcome))
    )
    if given["accept"]:
        click.echo(f"accepted: {given['lock']}; commit it, so that its diff is reviewed", err=given["as_json"])
        return 0
    return code


def read_budgets(given: tuple[str, ...]) -> dict[str, float]:
    """``latency=5%`` to a share by name.

    Raises:
        UsageError: an unknown name, or no share from 0 to 1.
    """
    from mmcompress.component import nearest
    from mmcompress.gate import parse_number
    from mmcompress.gate._run import BUDGETS

    found = {}
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if name not in BUDGETS or not equals:
            near = nearest(name, list(BUDGETS))
            raise UsageError(f"--budget {text}: expected NAME=SHARE, NAME one of {', '.join(BUDGETS)}{near}")
        share = parse_number(value)
        if not 0 <= share <= 1:
            raise UsageError(f"--budget {text}: expected a share from 0 to 1 (5% or 0.05)")
        found[name] = share
    return found


def _selftest(limit: float, *, quiet: bool) -> int:
    from mmcompress.gate._selftest import selftest

    with tempfile.TemporaryDirectory(prefix="mmcompress-selftest-") as folder, Progress(quiet=quiet) as progress:
        proofs = selftest(
            Path(folder), limit, lambda message, done, total: progress.listen("gate", message, done, total)
        )
    for proof in proofs:
        word = "ok" if proof.holds else "WRONG"
        click.echo(f"{word}: {proof.name}: {proof.found}, expected {proof.expected} ({proof.reason})")
    if all(proof.holds for proof in proofs):
        return 0
    return 4 if all(proof.holds or proof.found == "inconclusive" for proof in proofs) else 1
