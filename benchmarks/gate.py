"""The gate on real times: how often it cries wolf, how often it sleeps, and what simpler gates would have said.

    python benchmarks/gate.py --out benchmarks/results/gate.json      (about an hour on two cores)

Rounds are recorded to ``--recording`` as they come (``.cache/gate_rounds.jsonl``), and a recording that is whole is
not made again: stop it at any time and go on later. ``--quick`` records for two minutes and gates three times.

1. Record: fresh processes of A, its copies B and C, A + 7 % and A + 10 % (more layers), which take turns; half of the rounds
   with two other programs that keep both cores busy.
2. Replay: the gate's own decision over contiguous windows of the recording, and beside it a threshold on the mean and a t-test
   over calls, as most gates in use decide.
3. Whole gates, as a user runs them.
4. Accuracy: the gate's verdicts over resamplings of 5,000 answers of which 5 % differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _claims import Claim, share_claim, write_and_print

from mmcompress.gate import _accuracy as accuracy
from mmcompress.gate._decide import AGAIN, BASELINE, CANDIDATE, Pairs, Rule, decide, pairs_of
from mmcompress.gate._run import BUDGETS, Options, run_gate
from mmcompress.gate._sample import BLOCK_SECONDS, VISITS
from mmcompress.gate._selftest import write_graph
from mmcompress.gate._sides import open_side
from mmcompress.measure import alone
from mmcompress.metrics._timing import Block, Job, Plan, opens_graph, time_processes

JOB = Job("graph", 1)
LAYERS = {"A": 100, "B": 100, "C": 100, "A7": 107, "A10": 110}
ROUNDS, RECORD_SECONDS = 360, 2400.0
ROOM = 20
"""Rounds that a window must have before it: verdicts are mostly there after 5 or 10."""
WINDOWS, RESAMPLINGS = 1000, 1000
RULE = Rule(BUDGETS["latency"])
POWER = tuple(range(5, 21))


# --- recording -----------------------------------------------------------------------------------------------------


@contextmanager
def other_programs(count: int) -> Iterator[None]:
    """Programs that keep cores busy."""
    busy = [multiprocessing.Process(target=_work, daemon=True) for _ in range(count)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def _work() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 300))
    while True:
        matrix = np.tanh(matrix @ matrix * 0.01)


def record(path: Path, rounds: int, seconds: float, graphs: Path) -> list[dict[str, Any]]:
    """Rounds in time order, half of them under load in stretches; what the file holds already is kept."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    sides = {name: opens_graph(graphs / f"{name}.onnx") for name in LAYERS}
    calls: dict[tuple[str, Job], int] = {}
    chance = random.Random(len(done))
    spent = sum(item["seconds"] for item in done)
    with path.open("a", encoding="utf-8") as file:
        while len(done) < rounds and spent < seconds:
            number = len(done)
            # Quiet until half of the rounds or of the time is there, then loaded.
            loaded = number >= rounds // 2 or spent >= seconds / 2
            started = time.monotonic()
            with other_programs(2 if loaded else 0), alone():
                plan = Plan(1, VISITS, BLOCK_SECONDS, 0)
                blocks = time_processes(sides, [JOB], 1, plan, number, chance, calls, {})
            item = {
                "round": number,
                "loaded": loaded,
                "seconds": round(time.monotonic() - started, 2),
                "blocks": [[b.block, b.side, _rounded(b.engine), _rounded(b.waited)] for b in blocks],
            }
            spent += item["seconds"]
            done.append(item)
            file.write(json.dumps(item) + "\n")
            file.flush()
            print(f"\rround {number + 1}, {spent:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return done


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


class Recording:
    """Logarithms of ratios by round, for every choice of baseline, its copy and the candidate."""

    def __init__(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        self.loaded = np.array([item["loaded"] for item in rounds])
        self.rounds = rounds
        self._pairs: dict[tuple[str, str, str], Pairs] = {}

    def pairs(self, baseline: str, again: str, candidate: str) -> Pairs:
        """All rounds, in order."""
        key = (baseline, again, candidate)
        if key not in self._pairs:
            names = dict(zip(key, (BASELINE, AGAIN, CANDIDATE), strict=True))
            blocks = [
                Block(item["round"], number, names[side], JOB, tuple(engine), (), tuple(waited))
                for item in self.rounds
                for number, side, engine, waited in item["blocks"]
                if side in names
            ]
            self._pairs[key] = pairs_of(blocks, JOB)
        return self._pairs[key]

    def calls(self, side: str, start: int, count: int) -> np.ndarray:
        """Wall clock of all calls of some rounds, as a simple gate times them."""
        return np.concatenate(
            [
                engine
                for item in self.rounds[start : start + count]
                for _, name, engine, _ in item["blocks"]
                if name == side
            ]
        )


# --- replaying -----------------------------------------------------------------------------------------------------


def replay(pairs: Pairs, start: int, added: float = 0.0) -> tuple[str, int]:
    """The gate's verdict over the rounds from ``start`` on, and how many it took; ``added`` slows the candidate down."""
    empty = np.empty(0)
    runs = {"first": (start, start), "rerun": (start, start)}
    while True:
        found = {
            name: {"x": Pairs(pairs.candidate[a:b] + added if b > a else empty, pairs.again[a:b])}
            for name, (a, b) in runs.items()
        }
        end = max(b for _, b in runs.values())
        decision = decide(found["first"], found["rerun"], RULE, exhausted=end >= len(pairs.candidate))
        if decision.next == "nothing":
            return decision.status["x"], end - start
        a, b = runs[decision.next]
        if decision.next == "rerun" and a == b:
            a = b = runs["first"][1]
        wanted = next(look for look in RULE.looks if look > b - a)
        runs[decision.next] = (a, min(a + wanted, len(pairs.candidate)))


def windows(recording: Recording, roles: Sequence[tuple[str, str, str]], count: int) -> list[tuple[Any, int]]:
    """Contiguous windows: starts spread over the recording, for each choice of roles, with room for the looks."""
    rounds = len(recording.rounds)
    starts = [start for start in range(rounds) if rounds - start >= min(ROOM, max(10, rounds // 2))]
    found = [(role, start) for start in starts for role in roles]
    step = max(1, len(found) // count)
    return found[::step][:count] if len(found) > count else found


SAME = [("A", "B", "C"), ("B", "C", "A"), ("C", "A", "B")]


def verdicts(recording: Recording, candidates: Mapping[tuple[str, str, str], str | None], count: int) -> list[str]:
    return [
        replay(recording.pairs(role[0], role[1], candidates[role] or role[2]), start)[0]
        for role, start in windows(recording, SAME, count)
    ]


def replay_claims(recording: Recording, count: int) -> tuple[list[Claim], dict[str, Any]]:
    """False alarms, open verdicts and power over windows, and what simpler gates would have said of the same ones."""
    claims: list[Claim] = []
    told: dict[str, Any] = {}
    for name, side, wanted, goal in (
        ("A/A windows failed", None, "failed", 0.01),
        ("A/A windows inconclusive", None, "inconclusive", 0.05),
        ("A + 10 % caught", "A10", "failed", 0.95),
        ("A + 7 % caught", "A7", "failed", None),
    ):
        found = verdicts(recording, dict.fromkeys(SAME, side), count)
        hits = sum(verdict == wanted for verdict in found)
        claims.append(share_claim(name, hits, len(found), goal, higher_is_better=side is not None))
    for name, decide_simply in (("a threshold on the mean", by_threshold), ("a t-test over calls", by_t_test)):
        for what, side in (("A/A", None), ("A + 10 %", "A10")):
            found = [
                decide_simply(recording.calls(role[0], start, 5), recording.calls(side or role[2], start, 5))
                for role, start in windows(recording, SAME, count)
            ]
            claims.append(share_claim(f"{what} failed by {name}", sum(found), len(found), None, higher_is_better=False))
    told["power"] = power_curve(recording, count)
    told["deviation"] = deviations(recording)
    for name, value in told["deviation"].items():
        claims.append(Claim(f"deviation between processes, {name}", value, "ratio", None, None, False, None))
    for side, planted in (("A7", 0.07), ("A10", 0.10)):
        pairs = recording.pairs("A", "B", side)
        value = float(np.expm1(np.median(pairs.candidate)))
        claims.append(Claim(f"measured slowdown of + {planted:.0%}", value, "ratio", None, None, False, None))
    return claims, told


def by_threshold(baseline: np.ndarray, candidate: np.ndarray) -> bool:
    """The mean is more than the budget above."""
    return bool(candidate.mean() > baseline.mean() * (1 + RULE.budget))


def by_t_test(baseline: np.ndarray, candidate: np.ndarray) -> bool:
    """The means differ at one-sided p < 0.05 over calls (thousands of them: the normal distribution)."""
    error = np.sqrt(baseline.var(ddof=1) / len(baseline) + candidate.var(ddof=1) / len(candidate))
    return bool((candidate.mean() - baseline.mean()) / error > 1.645)


def power_curve(recording: Recording, count: int) -> dict[str, dict[str, float]]:
    """Shares of verdicts where A/A windows are slowed down by 5 to 20 %."""
    curve = {}
    for percent in POWER:
        added = float(np.log1p(percent / 100))
        found = [
            replay(recording.pairs(*role), start, added)[0] for role, start in windows(recording, SAME, count // 4)
        ]
        curve[str(percent)] = {
            status: found.count(status) / len(found) for status in ("failed", "inconclusive", "passed")
        }
    return curve


def deviations(recording: Recording) -> dict[str, float]:
    """Standard deviation between processes, quiet and loaded, as the gate sees it and of the wall clock."""
    found = {}
    for name, chosen in (("quiet", ~recording.loaded), ("loaded", recording.loaded)):
        if chosen.sum() > 2:
            again = np.concatenate([recording.pairs(*role).again[chosen] for role in SAME])
            found[name] = float(again.std(ddof=1) / np.sqrt(2))
            medians = np.log(
                [
                    [np.median(recording.calls(side, int(number), 1)) for side in ("A", "B")]
                    for number in np.flatnonzero(chosen)
                ]
            )
            found[f"{name}, wall clock"] = float((medians[:, 1] - medians[:, 0]).std(ddof=1) / np.sqrt(2))
    return found


# --- whole gates ---------------------------------------------------------------------------------------------------


def whole_gates(graphs: Path, each: int, path: Path) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Gates as a user runs them: A/A, + 10 %, A/A under load; what the file holds already is kept."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    kinds = (("A/A", "B", 0), ("+10 %", "A10", 0), ("A/A under load", "B", 2))
    loose = Options(budgets={**BUDGETS, "operators": 1.0, "size": 1.0})
    with path.open("a", encoding="utf-8") as file:
        for kind, side, load in kinds:
            for _ in range(each - sum(item["kind"] == kind for item in done)):
                sides = [open_side(graphs / f"{name}.onnx", "side") for name in (side, "A")]
                started = time.monotonic()
                with other_programs(load):
                    outcome = run_gate(sides[0], sides[1], loose)
                (verdict,) = [item for item in outcome.verdicts if item.metric.startswith("slowdown.")]
                item = {"kind": kind, "status": verdict.status, "seconds": round(time.monotonic() - started, 1)}
                item |= {"value": verdict.value, "n": verdict.n, "reason": verdict.reason}
                done.append(item)
                file.write(json.dumps(item) + "\n")
                file.flush()
                print(f"{kind}: {item['status']} in {item['seconds']} s", file=sys.stderr)
    same = [item for item in done if item["kind"] != "+10 %"]
    slower = [item for item in done if item["kind"] == "+10 %"]
    seconds = [item["seconds"] for item in done if item["kind"] == "A/A"]
    alarms, misses = (
        sum(item["status"] == "failed" for item in same),
        sum(item["status"] != "failed" for item in slower),
    )
    median = float(np.median(seconds))
    return [
        Claim(f"whole gates: false alarms of {len(same)}", alarms, "1", None, 0, False, alarms == 0),
        Claim(f"whole gates: + 10 % missed of {len(slower)}", misses, "1", None, 1, False, misses <= 1),
        Claim("whole gates: A/A takes, median", median, "s", None, 60, False, median <= 60),
        Claim(
            "whole gates: inconclusive A/A",
            sum(item["status"] == "inconclusive" for item in same),
            "1",
            None,
            None,
            False,
            None,
        ),
    ], done


# --- accuracy ------------------------------------------------------------------------------------------------------


def accuracy_claims(resamplings: int, examples: int = 5000, discordance: float = 0.05) -> list[Claim]:
    """Verdicts over resamplings of answers of which 5 % differ between the sides: unchanged, and 1.2 points beyond the budget."""
    random_ = np.random.default_rng(0)
    budget = BUDGETS["quality"]
    claims = []
    for name, drop, wanted, goal, higher in (
        ("a drop 1.2 points beyond the budget caught", budget + 0.012, "failed", 0.95, True),
        ("an unchanged model failed", 0.0, "failed", 0.01, False),
        ("an unchanged model inconclusive", 0.0, "inconclusive", None, False),
    ):
        worse = round((discordance + drop) / 2 * examples)
        better = round((discordance - drop) / 2 * examples)
        lost = np.repeat([1.0, -1.0, 0.0], [worse, better, examples - worse - better])
        hits = 0
        for seed in range(resamplings):
            drawn = random_.choice(lost, examples)
            hits += accuracy.judge_drop(accuracy.drop_of(drawn, budget, seed), budget)[0] == wanted
        claims.append(share_claim(name, hits, resamplings, goal, higher_is_better=higher))
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes of recording, three whole gates")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    here = Path(__file__).parents[1] / ".cache"
    parser.add_argument(
        "--recording", type=Path, help="where rounds are kept, to go on from [.cache/gate_rounds.jsonl]"
    )
    parser.add_argument("--minutes", type=float, default=RECORD_SECONDS / 60, help="of recording at most [40]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmcompress-gate-benchmark-") as folder:
        graphs = Path(folder)
        for name, layers in LAYERS.items():
            write_graph(graphs / f"{name}.onnx", layers)
        kept = arguments.recording or (graphs if arguments.quick else here) / "gate_rounds.jsonl"
        kept.parent.mkdir(parents=True, exist_ok=True)
        rounds = record(
            kept, 24 if arguments.quick else ROUNDS, 120.0 if arguments.quick else arguments.minutes * 60, graphs
        )
        recording = Recording(rounds)
        claims, told = replay_claims(recording, 30 if arguments.quick else WINDOWS)
        processes = len(rounds) * len(LAYERS)
        claims.insert(0, Claim("process blocks recorded", processes, "1", None, 600, True, processes >= 600))
        more, gates = whole_gates(graphs, 1 if arguments.quick else 10, kept.with_name(f"{kept.stem}_gates.jsonl"))
    claims += more + accuracy_claims(100 if arguments.quick else RESAMPLINGS)
    samples = {**told, "gates": gates, "rule": asdict(RULE), "rounds": [summary(item) for item in rounds]}
    return write_and_print(claims, samples, arguments.out, quick=arguments.quick)


def summary(item: Mapping[str, Any]) -> dict[str, Any]:
    """A round without its calls: medians of the blocks, less waiting."""
    blocks = [
        [number, side, round(float(np.median(np.array(engine) - np.array(waited))), 4)]
        for number, side, engine, waited in item["blocks"]
    ]
    return {"round": item["round"], "loaded": item["loaded"], "seconds": item["seconds"], "blocks": blocks}


if __name__ == "__main__":
    sys.exit(main())
