"""One gate from end to end: read both sides, compare what is exact, what was answered and what takes time, and say why."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmcompress._answers import Listen, silent
from mmcompress._environment import environment_facts, machine_state
from mmcompress.errors import InputError
from mmcompress.gate import Verdict
from mmcompress.gate import _graphs as graphs
from mmcompress.gate._accuracy import Drop, judge_drop, paired_drop
from mmcompress.gate._decide import CANDIDATE, Rule, holm
from mmcompress.gate._quality import package_scores
from mmcompress.gate._rows import MACHINE, Scores, other_machine, paired_scores, reported_times
from mmcompress.gate._sample import Quantities, Recorder, Sampled, check_budget, level_of, pilot, sample
from mmcompress.gate._sides import Side, check_comparable
from mmcompress.measure import alone
from mmcompress.metrics import Row
from mmcompress.metrics._timing import Block, Job, Opens, opens_graph, opens_subject, write_inputs
from mmcompress.report import Report, read_samples

BUDGETS = {"latency": 0.05, "quality": 0.01, "size": 0.01, "operators": 0.0, "int8": 0.0}
"""What may be lost where nothing else is said: shares, of quality and INT8 coverage points."""


_RUNS = {"first": "timing in fresh processes", "rerun": "confirming in fresh processes"}


@dataclass(frozen=True)
class Options:
    """How a gate measures and what it allows."""

    budgets: Mapping[str, float] = field(default_factory=lambda: dict(BUDGETS))
    threads: int = 1
    batches: tuple[int, ...] = (1,)
    limit_seconds: float = 150.0
    """Of timing; what is undecided then is inconclusive."""
    recipe: Path | None = None
    """Whose test data and metrics judge the quality of packages."""
    seed: int = 0


@dataclass
class Outcome:
    """What a gate found."""

    verdicts: list[Verdict] = field(default_factory=list)
    improvements: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    """Of a red verdict: operators, time, stage or library that differ."""
    notes: list[str] = field(default_factory=list)
    """What was not compared."""
    flips: dict[str, list[str]] = field(default_factory=dict)
    """Ids of examples that got worse, by quality."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """What the candidate reaches, for a lock file."""
    environment: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


def run_gate(candidate: Side, baseline: Side, options: Options, listen: Listen = silent) -> Outcome:
    """Judge a candidate against a baseline.

    Raises:
        UsageError: the sides are of kinds that cannot be compared, or the budget cannot be resolved.
        InputError: the sides are of different tasks, or one does not load.
    """
    check_comparable(baseline, candidate)
    outcome = Outcome()
    if baseline.report is not None and candidate.report is not None:
        _compare_reports(candidate.report, baseline.report, options, outcome)
        return outcome
    rule = Rule(options.budgets["latency"])
    check_budget(rule)
    drops = _exact_and_quality(candidate, baseline, options, outcome, listen)
    before = environment_facts(options.threads)
    with tempfile.TemporaryDirectory(prefix="mmcompress-gate-") as folder, alone(listen):
        recorder, quantities = _recorder(candidate, baseline, options, Path(folder))
        hopeless = pilot(recorder, quantities, rule)
        if hopeless:
            outcome.verdicts += [_timed(name, candidate, rule, reason=hopeless) for name in quantities]
        else:
            # What drops are told as failed is corrected for times and the other way round.
            sampled = sample(
                recorder,
                quantities,
                rule,
                others=[drop.p for _, drop in drops],
                limit_seconds=options.limit_seconds,
                told=lambda rounds, run: listen(f"{_RUNS[run]}: {rounds} rounds", 0, 0),
            )
            _tell_times(sampled, quantities, candidate, rule, outcome)
    outcome.environment = {**before, "state_after": machine_state()}
    _tell_drops(drops, options, outcome, _p_of_times(outcome))
    if any(verdict.status == "failed" for verdict in outcome.verdicts):
        outcome.why = explain(candidate, baseline, options)
    return outcome


def _exact_and_quality(
    candidate: Side, baseline: Side, options: Options, outcome: Outcome, listen: Listen
) -> list[tuple[Scores, Drop]]:
    target = candidate.subject.target if candidate.subject else "onnxruntime"
    if candidate.graphs and baseline.graphs:
        outcome.verdicts += exact_verdicts(
            graphs.graph_facts(candidate.graphs), graphs.graph_facts(baseline.graphs), options.budgets, target
        )
    else:
        outcome.notes.append(f"size, operators and int8 coverage: not compared: {target} has no ONNX graphs")
    if candidate.subject is None or baseline.subject is None:
        outcome.notes.append("quality: not compared: a bare graph has no task; lend it one with --like PACKAGE")
        return []
    scores, notes = package_scores(candidate.subject, baseline.subject, options.recipe, options.threads, listen)
    outcome.notes += notes
    return [(item, _drop(item, options)) for item in scores]


def _drop(item: Scores, options: Options) -> Drop:
    return paired_drop(
        item.baseline, item.candidate, options.budgets["quality"], options.seed, span=item.span, what=item.metric
    )


def exact_verdicts(
    candidate: graphs.GraphFacts, baseline: graphs.GraphFacts, budgets: Mapping[str, float], target: str
) -> list[Verdict]:
    """Size, number of operators and INT8 coverage: compared exactly."""
    counts = [sum(facts.operators.values()) for facts in (baseline, candidate)]
    found = [
        ("size_bytes", "growth.size_bytes", budgets["size"], candidate.bytes / baseline.bytes - 1),
        ("operators", "growth.operators", budgets["operators"], counts[1] / counts[0] - 1),
    ]
    old, new = baseline.int8_coverage, candidate.int8_coverage
    if old is not None and new is not None and (old or new):
        found.append(("int8_coverage", "drop.int8_coverage", budgets["int8"], old - new))
    return [
        Verdict(
            name,
            metric,
            target,
            budget,
            "failed" if change > budget + 1e-12 else "passed",
            subject=CANDIDATE,
            value=change,
            unit="ratio",
            higher_is_better=False,
        )
        for name, metric, budget, change in found
    ]


def _recorder(
    candidate: Side, baseline: Side, options: Options, folder: Path
) -> tuple[Recorder, dict[str, tuple[Job, str]]]:
    """What measures both sides, and the quantities: each request, and the main one from end to end."""
    opens: list[Opens]
    if baseline.subject is None or candidate.subject is None:
        jobs = [Job("graph", batch) for batch in options.batches]
        opens = [opens_graph(side.path) for side in (baseline, candidate)]
    else:
        from mmcompress._probe import read_probe

        asked = {item.name: item.inputs for item in baseline.subject.family.requests}
        jobs = [Job(request, batch) for request in asked for batch in options.batches]
        columns = read_probe(baseline.subject.folder / "probe")
        write_inputs({name: columns[name] for inputs in asked.values() for name in inputs}, folder)
        opens = [opens_subject(side, folder, asked) for side in (baseline.subject, candidate.subject)]
    quantities = {_quantity(job, "engine"): (job, "engine") for job in jobs}
    if baseline.subject is not None:
        quantities[_quantity(jobs[0], "end_to_end")] = (jobs[0], "end_to_end")
    return Recorder(opens[0], opens[1], jobs, options.threads, options.seed), quantities


def _quantity(job: Job, scope: str) -> str:
    batch = f", batch={job.batch}" if job.batch > 1 else ""
    return f"latency_ms_p50[{job.request}, {scope}{batch}]"


def _timed(name: str, candidate: Side, rule: Rule, **fields: Any) -> Verdict:
    base = Verdict(
        name,
        "slowdown.latency_ms_p50",
        candidate.subject.target if candidate.subject else "onnxruntime",
        rule.budget,
        "inconclusive",
        subject=CANDIDATE,
        unit="ratio",
        higher_is_better=False,
    )
    return replace(base, **fields)


def _tell_times(sampled: Sampled, quantities: Quantities, candidate: Side, rule: Rule, outcome: Outcome) -> None:
    for name, (job, scope) in quantities.items():
        found = sampled.decision.first[name].interval
        ends = (math.expm1(found.low), math.expm1(found.high)) if math.isfinite(found.low) else None
        outcome.verdicts.append(
            _timed(
                name,
                candidate,
                rule,
                status=sampled.decision.status[name],
                reason=sampled.decision.reason[name],
                value=math.expm1(found.mean) if found.n else None,
                one_sided95=ends,
                n=found.n,
                conditions={"request": job.request, "batch": job.batch, "scope": scope},
            )
        )
        if found.n >= rule.looks[0] and found.high < 0:
            outcome.improvements.append(
                f"{name}: {-math.expm1(found.mean):.1%} faster (at least {-math.expm1(found.high):.1%})"
            )
        level = level_of(sampled.first, job, scope, CANDIDATE)
        again = sampled.decision.first[name].again
        if not math.isfinite(level.low) or not math.isfinite(again.deviation):
            continue  # too few rounds for an interval; the verdict says so
        outcome.scores.append(
            {
                "metric": name,
                "value": round(math.exp(level.mean), 4),
                "unit": "ms",
                "ends": [round(math.exp(end), 4) for end in (level.low, level.high)],
                "n": level.n,
                "of": "processes",
                "process_deviation": round(again.deviation / math.sqrt(2), 5),
            }
        )
    outcome.samples = [_record(block, run) for run in ("first", "rerun") for block in getattr(sampled, run)]


def _record(block: Block, run: str) -> dict[str, Any]:
    return {"run": run, **asdict(block)}


def _p_of_times(outcome: Outcome) -> int:
    return sum(verdict.metric.startswith("slowdown.") for verdict in outcome.verdicts)


def _tell_drops(drops: Sequence[tuple[Scores, Drop]], options: Options, outcome: Outcome, others: int = 0) -> None:
    """Verdicts of qualities; ``others`` is how many times are judged beside them, each a p-value of at most 1."""
    budget = options.budgets["quality"]
    adjusted = holm({f"{index}": drop.p for index, (_, drop) in enumerate(drops)}, [1.0] * others)
    for index, (item, drop) in enumerate(drops):
        status, reason, needed = judge_drop(drop, budget, adjusted[f"{index}"])
        outcome.verdicts.append(
            Verdict(
                item.metric,
                f"drop.{item.metric}",
                item.target,
                budget,
                status,  # type: ignore[arg-type]
                subject=CANDIDATE,
                value=drop.value,
                one_sided95=(drop.low, drop.high),
                unit="ratio",
                higher_is_better=False,
                n=drop.n,
                needed_n=needed,
                reason=reason,
            )
        )
        outcome.flips[item.metric] = list(drop.flips)
        if drop.high < 0:
            outcome.improvements.append(
                f"{item.metric}: {-100 * drop.value:.1f} points better (at least {-100 * drop.high:.1f})"
            )
        mean = sum(item.candidate.values()) / drop.n
        outcome.scores.append(
            {"metric": item.metric, "value": round(mean, 5), "unit": "ratio", "n": drop.n, "of": "examples"}
        )


def explain(candidate: Side, baseline: Side, options: Options) -> list[str]:
    """Three lines: operators that changed, where the time went, stage or library that differs."""
    lines = []
    if candidate.graphs and baseline.graphs:
        old, new = graphs.graph_facts(baseline.graphs), graphs.graph_facts(candidate.graphs)
        lines.append("operators: " + ("; ".join(graphs.changed_operators(old, new)) or "the same in type and number"))
        slower = []
        for name in candidate.graphs:
            if name in baseline.graphs or len(candidate.graphs) == 1:
                before = baseline.graphs.get(name) or next(iter(baseline.graphs.values()))
                times = [
                    graphs.operator_times(path, options.threads, options.batches[0])
                    for path in (before, candidate.graphs[name])
                ]
                slower += graphs.changed_times(times[0], times[1])
        lines.append("time: " + ("; ".join(slower[:3]) or "no operator takes longer when profiled alone"))
    one, two = (
        {key: (side.manifest or {}).get(key) for key in ("precision", "target", "preprocessing", "provenance")}
        for side in (baseline, candidate)
    )
    differ = graphs.differing(one, two)
    lines.append("built: " + ("; ".join(differ[:3]) or "nothing in the manifests differs"))
    return lines


def _compare_reports(candidate: Report, baseline: Report, options: Options, outcome: Outcome) -> None:
    """Qualities pair by example id; times only where one machine measured both."""
    other = other_machine(baseline.environment, candidate.environment)
    targets = list(dict.fromkeys(row.target for row in candidate.rows if row.role == "package"))
    drops: list[tuple[Scores, Drop]] = []
    for target in targets:
        old, new = (_package_rows(report, target) for report in (baseline, candidate))
        if not old:
            outcome.notes.append(f"{target}: not compared: the baseline has no package for it")
            continue
        reads = [lambda name, report=report: read_samples(report, name) for report in (baseline, candidate)]
        scores, notes = paired_scores(old, reads[0], new, reads[1], target)
        outcome.notes += notes
        drops += [(item, _drop(item, options)) for item in scores]
        if other:
            times = sorted({row.metric for row in new if row.interval_of == "block"})
            outcome.notes.append(f"{', '.join(times) or 'times'} ({target}): refused: two machines ({other})")
        else:
            outcome.verdicts += reported_times(old, reads[0], new, reads[1], options.budgets["latency"])
        outcome.verdicts += _exact_rows(old, new, options.budgets["size"])
    _tell_drops(drops, options, outcome)
    if not outcome.verdicts:
        raise InputError("the reports have nothing in common that can be compared\n" + "\n".join(outcome.notes))
    outcome.environment = {name: candidate.environment.get(name) for name in MACHINE}
    if any(verdict.status == "failed" for verdict in outcome.verdicts):
        outcome.why = _explain_reports(candidate, baseline)


def _explain_reports(candidate: Report, baseline: Report) -> list[str]:
    """What differs of the steps' own facts (blocks that were cut, operators in INT8), the recipes and the libraries."""
    from mmcompress import _yaml

    pairs = {
        "steps": [{step.name: dict(step.facts) for step in side.steps} for side in (baseline, candidate)],
        "recipe": [_yaml.loads(side.recipe) or {} for side in (baseline, candidate)],
        "libraries": [side.environment.get("libraries", {}) for side in (baseline, candidate)],
    }
    return [
        f"{name}: " + ("; ".join(graphs.differing(old, new)[:3]) or "nothing differs")
        for name, (old, new) in pairs.items()
    ]


def _package_rows(report: Report, target: str) -> list[Row]:
    return [row for row in report.rows if row.role == "package" and row.target == target]


def _exact_rows(baseline: Sequence[Row], candidate: Sequence[Row], budget: float) -> list[Verdict]:
    old, new = ({row.metric: row.value for row in side} for side in (baseline, candidate))
    found = []
    for metric in ("size_bytes", "package_bytes"):
        before, after = old.get(metric), new.get(metric)
        if before and after:
            status: Any = "failed" if after / before - 1 > budget else "passed"
            fields: dict[str, Any] = {"value": after / before - 1, "unit": "ratio", "higher_is_better": False}
            target = candidate[0].target
            found.append(Verdict(metric, f"growth.{metric}", target, budget, status, candidate[0].name, **fields))
    return found
