"""``precision: auto``: what the target can run, timed in turn on this machine; the fastest that keeps within bounds wins."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcompress._accuracy import Promise, drops_of_float, promise_identity, promise_of
from mmcompress._environment import environment_facts
from mmcompress._probe import raw_values
from mmcompress.component import JSON
from mmcompress.data import Examples
from mmcompress.errors import StageError
from mmcompress.families import Family
from mmcompress.measure import alone
from mmcompress.metrics._statistics import block_weights, paired_ratio
from mmcompress.runtimes import Runtime, Session
from mmcompress.runtimes._search import Drop, Drops
from mmcompress.store import Artifact, Step

if TYPE_CHECKING:
    from mmcompress._steps import ModelStep
    from mmcompress.pipeline import Planner

THREADS = 2
ROUNDS = 6
BLOCK_SECONDS = 0.25
PAUSE_SECONDS = 0.02
FEWEST_CALLS, MOST_CALLS = 3, 200


@dataclass(frozen=True)
class Candidate:
    """A precision that a target may run in."""

    precision: str
    graphs: Path
    """Folder of ``<name>.onnx``."""
    runtime: Runtime
    refused: str | None = None
    """Why it may not win however fast it is."""
    drops: Drops | None = None
    asked: Mapping[str, JSON] = field(default_factory=dict)
    """What the quantizer told of its graphs."""


def machine_fingerprint() -> dict[str, JSON]:
    """What decides which precision is fastest: processor, its flags and cores."""
    facts = environment_facts(THREADS)
    return {name: facts[name] for name in ("cpu", "instruction_sets", "cores_usable")}


def fastest(
    family: Family,
    model: Path,
    candidates: Sequence[Candidate],
    example: Examples,
    seed: int,
    work: Path,
    listen: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Time the main request for one example at a time; gives the winner and what the others lost by.

    Blocks of calls are interleaved there and back in a random order, so drift meets all candidates alike.
    """
    request = family.requests[0]
    names = list(dict.fromkeys(request.graphs))
    processor = family.processor(model)
    values = raw_values([example[0]], request.inputs)
    runs: dict[str, Callable[[], object]] = {}
    sessions: list[Session] = []
    for candidate in candidates:
        folder = work / f"timed-{candidate.precision}"
        folder.mkdir(parents=True, exist_ok=True)
        candidate.runtime.compile({name: candidate.graphs / f"{name}.onnx" for name in names}, folder)
        session = candidate.runtime.open(folder, names, THREADS)
        sessions.append(session)
        feeds = processor.encode(values)
        runs[candidate.precision] = _caller(family, session, request.name, feeds, request.length)
    with alone(listen):
        listen(f"timing {', '.join(runs)} in turn", 0, 0)
        blocks = interleaved(runs, seed)
    for session in sessions:
        session.close()
    return decide(candidates, blocks, seed)


def _caller(family: Family, session: Session, request: str, feeds: Any, length: int | None) -> Callable[[], object]:
    return lambda: family.answer(session.run, request, feeds, length)


def interleaved(runs: Mapping[str, Callable[[], object]], seed: int) -> dict[str, list[list[float]]]:
    """Milliseconds of calls by name and block; block k of each was measured beside block k of the others."""
    chance = random.Random(seed)
    calls = {}
    for name, run in runs.items():
        run()
        started = time.perf_counter()
        run()
        calls[name] = max(FEWEST_CALLS, min(MOST_CALLS, int(BLOCK_SECONDS / (time.perf_counter() - started))))
    blocks: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        order = list(runs)
        chance.shuffle(order)
        for name in (*order, *order[::-1]):
            time.sleep(PAUSE_SECONDS)
            found = []
            for _ in range(calls[name]):
                started = time.perf_counter()
                runs[name]()
                found.append((time.perf_counter() - started) * 1000)
            blocks[name].append(found)
    return blocks


def decide(
    candidates: Sequence[Candidate], blocks: Mapping[str, Sequence[Sequence[float]]], seed: int
) -> dict[str, Any]:
    """The fastest candidate that is not refused, and of each its p50 and how many times the winner's it is."""
    allowed = [candidate for candidate in candidates if candidate.refused is None]
    medians = {name: float(np.median(np.concatenate(found))) for name, found in blocks.items()}
    winner = min(allowed, key=lambda candidate: medians[candidate.precision])
    arrays = {name: [[np.asarray(block) for block in found]] for name, found in blocks.items()}
    weights = block_weights(1, len(arrays[winner.precision][0]), seed)
    table: dict[str, Any] = {}
    for candidate in candidates:
        name = candidate.precision
        ratio, replicates = paired_ratio(arrays[name], arrays[winner.precision], weights)
        table[name] = {
            "p50_ms": round(medians[name], 4),
            "times_the_winner": round(ratio, 4),
            "ci95": [round(float(end), 4) for end in np.quantile(replicates, (0.025, 0.975))],
            "refused": candidate.refused,
            "drop": _told(candidate.drops),
        }
    return {"precision": winner.precision, "threads": THREADS, "batch": 1, "candidates": table}


def _told(drops: Drops | None) -> dict[str, JSON] | None:
    if drops is None:
        return None
    return {
        name: {"value": drop.value, "upper95": drop.upper if math.isfinite(drop.upper) else None}
        for name, drop in drops.items()
    }


# --- the step ------------------------------------------------------------------------------------------------------


def choose_step(planner: Planner, model: ModelStep, exported: Step, quantized: Step, target: Runtime) -> Step:
    """The step that chooses between the FP32 and the INT8 graphs of a model."""
    where = f"{target.component_name()} choose ({model.name})"

    def build(output: Path, work: Path) -> Mapping[str, Any]:
        return choose(
            model=planner.get(model.step).folder,
            exported=planner.get(exported).folder,
            quantized=lambda: planner.get(quantized),
            example=planner.examples("validation", 1),
            output=output,
            promise=promise_of(planner, target, where, work),
            family=model.family,
        )

    identity = {
        "graphs": [exported.key, quantized.key],
        "promise": promise_identity(planner.recipe, target),
        "validation": planner.splits.validation_identity,
        "here": machine_fingerprint(),
    }
    return Step("choose", where, identity, build)


def choose(
    model: Path,
    exported: Path,
    quantized: Callable[[], Artifact],
    example: Examples,
    output: Path,
    promise: Promise,
    family: Family,
) -> dict[str, Any]:
    """Copy the graphs of the winner to ``output``; gives its precision and what the others lost by.

    INT8 that cannot keep within bounds, and a float that cannot either, are told and not chosen.

    Raises:
        StageError: the runtime refuses the FP32 graphs.
    """
    candidates = []
    for precision, runtime in promise.runtime.floats().items():
        drops = None if precision == "fp32" else drops_of_float(family, model, exported, promise, runtime)
        candidates.append(Candidate(precision, exported, runtime, _over(drops, promise), drops))
    unbuilt = {}
    try:
        made = quantized()
    except StageError as error:
        unbuilt["int8"] = str(error)
    else:
        kept = made.manifest["facts"]["accuracy"]["drop"]
        drops = {name: Drop(drop["value"], drop["upper95"]) for name, drop in kept.items()}
        told = made.manifest["facts"]["graphs"]
        candidates.append(Candidate("int8", made.folder, promise.runtime, None, drops, told))
    facts = fastest(family, model, candidates, example, promise.seed, promise.work, promise.listen)
    winner = next(candidate for candidate in candidates if candidate.precision == facts["precision"])
    for path in sorted(winner.graphs.glob("*.onnx*")):
        shutil.copyfile(path, output / path.name)
    changed = winner.runtime.model_dump(mode="json")
    before = promise.runtime.model_dump(mode="json")
    facts["runtime_fields"] = {name: value for name, value in changed.items() if value != before[name]}
    return {**facts, "unbuilt": unbuilt, "graphs": winner.asked}


def _over(drops: Drops | None, promise: Promise) -> str | None:
    limits, proof = promise.settings.max_drop, promise.settings.proof
    over = [name for name, limit in limits.items() if drops is not None and drops[name].at(proof) > limit]
    return f"loses more {', '.join(over)} than max_drop allows" if over else None
