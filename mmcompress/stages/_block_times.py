"""Times of a model's blocks by width, measured on the runtime that it shall run on.

Shallow copies of the model (two layers, whatever it has) are cut to a coarse grid of widths, exported, compiled and timed
in turn; what a block costs is the difference to the whole copy, what a layer costs that between two depths. The weights do
not matter. Copies with all of their layers, cut in half, say how far the whole is from the sum of its parts. Tables are kept
per machine in the cache, so that a second cut of the same architecture measures nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress._cache import kept
from mmcompress._environment import environment_facts
from mmcompress.component import JSON
from mmcompress.errors import MissingExtra, StageError
from mmcompress.families import Family, Feeds
from mmcompress.families._structure import drop_layers
from mmcompress.runtimes import Runtime
from mmcompress.stages import Model
from mmcompress.stages._cutting import find
from mmcompress.stages._pruning import Block, Part
from mmcompress.stages._removing import Found
from mmcompress.stages._time_prices import TimePrices, scales
from mmcompress.stages._timing_rounds import Timed, time_in_turn

REVISION = 5
"""Raised when the same model and machine would give another table, or another cut by it."""
SHALLOW, DEEPER = 2, 4
HEAD_SHARES = (0.5, 0.0)
UNIT_SHARES = (0.5, 0.125)
WIDTH_SHARES = (1.0, 0.625, 0.25)
ROUND = 32
COMPILED = "compiled"
Progress = Callable[[str, int, int], None]


def fingerprint(runtime: Runtime, threads: int | None) -> dict[str, JSON]:
    """What times depend on besides the model: processor, cores, system, runtime and its version.

    Raises:
        MissingExtra: the runtime is not installed.
    """
    name = runtime.component_name()
    versions = dict(runtime.versions())
    if not versions or "absent" in versions.values():
        raise MissingExtra(name, runtime.extra)
    facts = environment_facts(threads or 0)
    keys = ("cpu", "architecture", "instruction_sets", "cores_usable", "os", "threads")
    return {**{key: facts[key] for key in keys}, "runtime": name, "versions": versions, "identity": runtime.identity()}


@dataclass(frozen=True)
class Times:
    """A table of times, and what it says of a model."""

    table: Mapping[str, Any]

    def prices(self, found: Found) -> TimePrices:
        """What the parts of the model cost in milliseconds."""
        return TimePrices(self.table, found.dependencies.blocks, found.widths)

    def main_ms(self, family: Family) -> float:
        """What the graphs of the main request take together; of a decoder as many steps as the request is timed with."""
        request = family.requests[0]
        whole: Mapping[str, float] = self.table["graphs"]
        steps = {name: request.length or 1 for name in request.graphs[1:]}
        return sum(whole[name] * steps.get(name, 1) for name in request.graphs)

    def beside(self, family: Family) -> list[str]:
        """Towers that the main request does not run."""
        return [name for name, facts in self.table["towers"].items() if facts["graph"] not in family.requests[0].graphs]


def table_of(
    source: Model,
    runtime: Runtime,
    *,
    threads: int | None,
    batch: int,
    parts: Sequence[Part],
    cache: Path,
    progress: Progress,
) -> Times:
    """The table for a model on this machine: found in the cache, or measured now.

    Raises:
        StageError: a graph cannot be exported, or several towers are one graph.
        MissingExtra: the runtime is not installed.
    """
    model = source.family.load(source.folder)
    widths = WIDTH_SHARES if "width" in parts else WIDTH_SHARES[:1]
    machine = fingerprint(runtime, threads)
    identity: JSON = {
        "machine": machine,
        "family": source.family.component_name(),
        "shapes": {name: list(p.shape) for name, p in model.named_parameters()},
        "grid": [SHALLOW, DEEPER, HEAD_SHARES, UNIT_SHARES, widths, ROUND],
        "batch": batch,
        "revision": REVISION,
    }
    wanted: tuple[Part, ...] = ("heads", "feed_forward", "width") if len(widths) > 1 else ("heads", "feed_forward")

    def measured() -> JSON:
        found = find(source.family, model, wanted)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            table = _measure(source, found, _Target(runtime, threads, batch), widths, Path(work), progress)
        return {"machine": machine, "batch": batch, **table}

    return Times(kept(cache, "block_times", identity, measured))


# --- what is measured ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    runtime: Runtime
    threads: int | None
    batch: int


@dataclass(frozen=True)
class _Spec:
    """A model to time: how wide, how deep, and the channels left of the blocks of some kinds."""

    name: str
    width: float
    depth: int | None
    """All layers where it is None."""
    kinds: Mapping[str, float]
    """Share of the groups that is left, by kind."""


def _specs(found: Found, widths: Sequence[float]) -> list[_Spec]:
    per_graph: dict[int, list[Block]] = {}
    for block in found.dependencies.blocks:
        kinds = per_graph.setdefault(block.graph, [])
        if block.kind not in {other.kind for other in kinds}:
            kinds.append(block)
    specs = []
    for width in widths:
        specs += [_Spec(f"{width}-shallow", width, SHALLOW, {}), _Spec(f"{width}-deeper", width, DEEPER, {})]
        for index in range(max(len(kinds) for kinds in per_graph.values())):
            one = [kinds[index] for kinds in per_graph.values() if index < len(kinds)]
            for point in range(len(UNIT_SHARES)):
                shares = {block.kind: _shares(block)[point] for block in one}
                specs.append(_Spec(f"{width}-{index}-{point}", width, SHALLOW, shares))
        every = {block.kind: _shares(block)[0] for kinds in per_graph.values() for block in kinds}
        specs.append(_Spec(f"{width}-joint", width, None, every))
    return specs


def _shares(block: Block) -> tuple[float, ...]:
    return UNIT_SHARES if block.prunable.heads is None else HEAD_SHARES


def _measure(
    source: Model, found: Found, target: _Target, widths: Sequence[float], work: Path, progress: Progress
) -> dict[str, Any]:
    specs = _specs(found, widths)
    names = [graph.name for graph in found.dependencies.graphs]
    sides: list[Timed] = []
    facts: list[dict[str, Any]] = []
    for depth in (SHALLOW, DEEPER):
        shallow(source, found, depth, work / f"depth-{depth}")
    for done, spec in enumerate(specs):
        progress("exporting models to time", done, len(specs) + 1)
        folder = work / spec.name
        base = source.folder if spec.depth is None else work / f"depth-{spec.depth}"
        facts.append(_build(source.family, base, spec, folder))
        sides += opened(source.family, folder, spec.name, target.runtime, target.threads, target.batch)
        shutil.rmtree(folder)
    progress("exporting models to time", len(specs), len(specs) + 1)
    whole = opened(source.family, source.folder, "whole", target.runtime, target.threads, target.batch, work / "whole")
    progress("timing blocks in turn", 0, 0)
    times = time_in_turn([*sides, *whole])
    missing = [name for name in names if ("whole", name) not in times]
    if missing:
        raise StageError(
            f"prune: goals of time need a graph for each tower; {', '.join(missing)} is part of another graph"
            "\n  Set a goal of macs, parameters or size."
        )
    points = [
        {**fact, "graphs": {name: times[spec.name, name] for name in names}}
        for spec, fact in zip(specs, facts, strict=True)
    ]
    blocks = found.dependencies.blocks
    towers = {
        block.prunable.tower: {"graph": names[block.graph], "ms": times["whole", names[block.graph]]}
        for block in blocks
    }
    graphs_ms = {side.graph: times["whole", side.graph] for side in whole}
    table: dict[str, Any] = {"graphs": graphs_ms, "towers": towers, "points": points}
    return {**table, "scales": scales(table, blocks, found.widths)}


def shallow(source: Model, found: Found, depth: int, folder: Path) -> None:
    """Write a copy of a model with so many layers in each stack, fewer where there are fewer."""
    model = source.family.load(source.folder)
    for stack in sorted({block.layer.stack for block in found.dependencies.blocks if block.layer is not None}):
        have = len(model.get_submodule(stack))  # type: ignore[arg-type]
        if have > depth:
            drop_layers(model, stack, range(depth))
    source.family.save(model, source.folder, folder)


def _build(family: Family, base: Path, spec: _Spec, folder: Path) -> dict[str, Any]:
    """Cut and write a shallow model; gives its width, its layers and what is left of its blocks."""
    model = family.load(base)
    parts: tuple[Part, ...] = ("heads", "feed_forward", "width") if spec.width < 1 else ("heads", "feed_forward")
    found = find(family, model, parts)
    widths: dict[str, int] = {}
    for tower, block in found.widths.items():
        widths[tower] = max(ROUND, round(block.channels * spec.width / ROUND) * ROUND)
        if widths[tower] < block.channels:
            found.dependencies.cut(block, range(block.channels - widths[tower]))
        else:
            widths[tower] = block.channels
    left: dict[str, list[int]] = {}
    for block in found.dependencies.blocks:
        groups = block.groups
        if block.kind in spec.kinds:
            step = 1 if block.prunable.heads is not None else min(ROUND, block.groups)
            groups = max(step, round(block.groups * spec.kinds[block.kind] / step) * step)
            found.dependencies.cut(block, range(block.groups - groups))
        left.setdefault(block.kind, []).append(groups * block.size)
    layers: dict[str, int] = {}
    for block in {b.layer: b for b in found.dependencies.blocks if b.layer is not None}.values():
        layers[block.prunable.tower] = layers.get(block.prunable.tower, 0) + 1
    family.save(model, base, folder)
    return {
        "name": spec.name,
        "share": spec.width,
        "widths": widths,
        "layers": layers,
        "channels": left,
        "cut": sorted(spec.kinds),
        "joint": spec.depth is None,
    }


def opened(
    family: Family, folder: Path, name: str, runtime: Runtime, threads: int | None, batch: int, work: Path | None = None
) -> list[Timed]:
    """Every graph of a model folder, exported, compiled and opened, with a batch of its sample inputs."""
    place = work or folder
    return open_compiled(name, place, compiled(family, folder, runtime, batch, place), runtime, threads)


def compiled(family: Family, folder: Path, runtime: Runtime, batch: int, place: Path) -> dict[str, Feeds]:
    """Export and compile every graph of a model folder below ``place``; gives a batch of sample inputs for each."""
    from mmcompress._export import export_graph

    exported, engines = place / "exported", place / COMPILED
    exported.mkdir(parents=True)
    engines.mkdir()
    graphs = family.graphs(family.load(folder, attention="eager"))
    for graph in graphs:
        export_graph(graph, exported / f"{graph.name}.onnx")
    runtime.compile({graph.name: exported / f"{graph.name}.onnx" for graph in graphs}, engines)
    return {graph.name: {key: _rows(value, batch) for key, value in graph.inputs.items()} for graph in graphs}


def open_compiled(
    name: str, place: Path, feeds: Mapping[str, Feeds], runtime: Runtime, threads: int | None
) -> list[Timed]:
    """Open what :func:`compiled` made: one session for all of its graphs."""
    session = runtime.open(place / COMPILED, list(feeds), threads)
    return [Timed(name, graph, session, values) for graph, values in feeds.items()]


def _rows(value: Any, batch: int) -> Any:
    rows = [index % len(value) for index in range(batch)]
    return value[rows].contiguous().numpy()
