"""From importance and a budget to a cut model: what may be cut, what is chosen, and the cut itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcompress.errors import InputError, StageError
from mmcompress.families import Family, Graph
from mmcompress.stages._choice import TOLERANCE, Plan, Ranking, Tower, choose, cumulated, options_of, price, uncut
from mmcompress.stages._prices import COUNTED, Counting, Prices, Unit, count
from mmcompress.stages._pruning import (
    Block,
    Dependencies,
    Part,
    head_width_blocks,
)
from mmcompress.stages._removing import Found, cut, knows_head_width

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.stages._importance import Scores

Score = Callable[[Sequence[Block]], "Scores"]
Sense = Callable[[Tower, "Scores"], Tower]
"""Gives a tower the losses that were measured (see :mod:`._sensitivity`)."""
Refit = Callable[[Found, Mapping[str, Plan], "Scores"], None]
"""Sets weights anew before channels go (see :mod:`._reconstruction`)."""


@dataclass(frozen=True)
class Budget:
    """The share of each tower's cost to keep."""

    unit: Unit
    ratio: float
    towers: Mapping[str, float] = field(default_factory=dict)
    """The share of the towers named here instead; 1 keeps a tower as it is."""

    def keep(self, tower: str) -> float:
        """The share of a tower, above 0 and at most 1."""
        return self.towers.get(tower, self.ratio)


@dataclass(frozen=True)
class Choosing:
    """How a budget is met."""

    parts: Sequence[Part] = ("heads", "feed_forward")
    relative: bool = False
    """Scores compare within a block alone (norms), so they are weighed by what a group costs."""
    ranking: Ranking = "global"
    round_to: int = 8
    """Feed-forward widths and the model width become multiples of it."""
    sense: Sense | None = None
    """Measures what a cut of a block matters; sums of importance say it where there is none."""


def find(family: Family, model: nn.Module, parts: Sequence[Part]) -> Found:
    """Trace a model and find what the parts name.

    Raises:
        StageError: nothing matched.
    """
    dependencies = trace(family, model, parts)
    widths: dict[str, Block] = {}
    notes: list[str] = []
    if "width" in parts:
        widths, notes = cuttable_widths(family, dependencies)
        if not widths and set(parts) == {"width"}:
            raise StageError("prune: no tower's width can be cut\n  " + "\n  ".join(notes or ["no layers were found"]))
    if set(parts) == {"layers"} and not any(block.layer for block in dependencies.blocks):
        raise StageError("prune: the model has no stack of layers that add to a residual stream\n  Name other parts.")
    return Found(dependencies, widths, notes)


def trace(family: Family, model: nn.Module, parts: Sequence[Part]) -> Dependencies:
    """The blocks that the parts concern: layers and widths are made of heads and feed-forward units."""
    kinds = {True: {"heads", "head_width", "width", "layers"}, False: {"feed_forward", "width", "layers"}}
    wanted = [item for item in family.prunable(model) if kinds[item.heads is not None] & set(parts)]
    return Dependencies(model, family.traced(model), wanted)


def cuttable_widths(family: Family, found: Dependencies) -> tuple[dict[str, Block], list[str]]:
    """The residual stream of each tower where a trial cut leaves all graphs running with outputs as wide as before."""
    import torch

    widths: dict[str, Block] = {}
    notes = []
    for tower in dict.fromkeys(block.prunable.tower for block in found.blocks):
        try:
            block = found.width(tower)
        except StageError as error:
            notes.append(f"{tower}: its width stays: {error}")
            continue
        if block is None:
            notes.append(f"{tower}: its width stays: it has no layers that add to a residual stream")
            continue
        model, graphs = copy.deepcopy((found.model, found.graphs))
        trial = Dependencies(model, graphs, [next(b.prunable for b in found.blocks if b.prunable.tower == tower)])
        try:
            trial.cut(block, range(block.channels // 2))
            with torch.no_grad():
                for before, after in zip(found.graphs, graphs, strict=True):
                    made = _outputs(after)
                    for name, value in _outputs(before).items():
                        got = made[name]
                        if got.shape != value.shape:
                            raise ValueError(
                                f"{before.name}.{name} would be {list(got.shape)}, not {list(value.shape)}"
                            )
        except (StageError, RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            notes.append(f"{tower}: its width stays: other parts of the model depend on it ({reason})")
            continue
        widths[tower] = block
    return widths, notes


def _outputs(graph: Graph) -> dict[str, Any]:
    """What a graph gives; traced ones may give one tensor without a name."""
    found = graph.module(**graph.inputs)
    return dict(found) if isinstance(found, Mapping) else {graph.outputs[0]: found}


# --- choosing ------------------------------------------------------------------------------------------------------


def decide(found: Found, budget: Budget, scores: Scores, prices: Prices, choosing: Choosing) -> dict[str, Plan]:
    """What is left of each tower.

    Raises:
        InputError: the budget names a tower that the model has not.
        StageError: a tower cannot become as small as its budget.
    """
    unknown = set(budget.towers) - set(prices.towers)
    if unknown:
        known = ", ".join(prices.towers)
        raise InputError(f"prune: towers: the model has no {', '.join(sorted(unknown))}; its towers: {known}")
    plans = {}
    for name in prices.towers:
        keep = budget.keep(name)
        if keep >= 1:
            continue
        tower = tower_of(found, name, scores, prices, choosing)
        if not _cuttable(tower):
            found.notes.append(f"{name}: stays whole: {', '.join(choosing.parts)} cannot be cut in it")
            continue
        if choosing.sense is not None:
            tower = choosing.sense(tower, scores)
        try:
            # A share of what the prices say that all of it costs: times of parts need not add up to that of the whole.
            plans[name] = choose(tower, prices, keep * price(tower, uncut(tower), prices), choosing.ranking)
        except StageError as error:
            raise StageError(f"prune: {name}: {budget.unit}: {error}") from None
    return plans


def _cuttable(tower: Tower) -> bool:
    options = (*tower.counts.values(), *tower.sizes.values())
    return any(len(some) > 1 for some in options) or (tower.layers and len(tower.all_layers()) > 1)


def tower_of(found: Found, name: str, scores: Scores, prices: Prices, choosing: Choosing) -> Tower:
    """A tower with the importance of all that may go."""
    blocks = tuple(block for block in found.dependencies.blocks if block.prunable.tower == name)
    width = found.widths.get(name) if "width" in choosing.parts else None
    losses, counts, sizes, size_losses = {}, {}, {}, {}
    for block in blocks:
        weight = prices_per_group(prices, block) if choosing.relative else 1.0
        losses[block.name] = cumulated(scores[block.name]) * weight
        part: Part = "feed_forward" if block.prunable.heads is None else "heads"
        step = 1 if part == "heads" else _step(block, choosing, 32)
        counts[block.name] = options_of(block.groups, step) if part in choosing.parts else (block.groups,)
        if part == "heads" and "head_width" in choosing.parts and knows_head_width(found.dependencies.model, block):
            ranked = _size_scores(scores, block) * weight * block.groups / block.size
            sizes[block.name] = options_of(block.size, min(choosing.round_to, max(1, block.size // 2)))
            size_losses[block.name] = cumulated(ranked.tolist())
    if width is not None:
        half = width.channels // 2
        saved = prices.rest(name, width.channels) - prices.rest(name, half)
        saved += sum(
            prices.block(b, b.groups, b.size, width.channels) - prices.block(b, b.groups, b.size, half) for b in blocks
        )
        weight = saved / half if choosing.relative else 1.0
        losses[width.name] = cumulated(scores[width.name]) * weight
        counts[width.name] = options_of(width.channels, _step(width, choosing, 16))
    return Tower(name, blocks, losses, counts, size_losses, sizes, width, "layers" in choosing.parts)


def _step(block: Block, choosing: Choosing, most: int) -> int:
    """How coarse widths are: where they multiply with widths or layers to choose from, about ``most`` of them are tried."""
    if not {"width", "layers"} & set(choosing.parts):
        return choosing.round_to
    return choosing.round_to * max(1, block.groups // (most * choosing.round_to))


def prices_per_group(prices: Prices, block: Block) -> float:
    """What the groups of a block cost on average, beyond the first."""
    full = prices.block(block, block.groups, block.size, None)
    least = prices.block(block, 1, block.size, None)
    return (full - least) / (block.groups - 1) if block.groups > 1 else full


def _size_scores(scores: Scores, block: Block) -> np.ndarray[Any, Any]:
    """What the k-th least important channels of all heads matter together, rising, [size]."""
    both = [np.sort(np.reshape(scores[f"{block.name}.{what}"], (block.groups, block.size)), axis=1) for what in _SIDES]
    return np.asarray((both[0] + both[1]).sum(axis=0) / 2)


_SIDES = ("scores", "values")


def scored(found: Found, choosing: Choosing) -> list[Block]:
    """All that importance is asked of."""
    blocks = list(found.dependencies.blocks)
    if "head_width" in choosing.parts:
        for block in found.dependencies.blocks:
            if block.prunable.heads is not None:
                blocks += head_width_blocks(block)
    return [*blocks, *found.widths.values()]


# --- the whole way -------------------------------------------------------------------------------------------------


def prune_model(
    family: Family,
    model: nn.Module,
    budget: Budget,
    score: Score,
    *,
    parts: Sequence[Part] = ("heads", "feed_forward"),
    relative: bool = False,
    ranking: Ranking = "global",
    round_to: int = 8,
    prices: Callable[[Found], Prices] | None = None,
    sense: Sense | None = None,
    refit: Refit | None = None,
) -> dict[str, Any]:
    """Prune a model in place; gives facts: blocks, MACs and parameters before and after, the ratios reached.

    Args:
        family: Knows what can be pruned, and the graphs to trace.
        model: Cut in place.
        budget: What to keep.
        score: Gives the importance of every group of the blocks.
        parts: What may be cut.
        relative: Scores compare within a block alone (norms), so they are weighed by what a group costs.
        ranking: ``global``, ``local`` or ``isomorphic``.
        round_to: Feed-forward and model widths become multiples of it.
        prices: What the budget counts, where that is time.
        sense: Measures what cuts of a tower's blocks matter.
        refit: Makes up for what goes in the weights of what stays.

    Raises:
        InputError: the budget names a tower that the model has not.
        StageError: nothing matched, nothing would go, or the budget is too small.
    """
    choosing = Choosing(parts, relative, ranking, round_to, sense)
    found = find(family, model, parts)
    counted = {unit: count(found.dependencies, unit, found.widths) for unit in COUNTED}
    used: Prices = prices(found) if prices is not None else counted["macs" if budget.unit == "macs" else "parameters"]
    scores = score(scored(found, choosing))
    plans = decide(found, budget, scores, used, choosing)
    before = {unit: counted[unit].towers for unit in COUNTED}
    if not any(_changes(found, name, plan) for name, plan in plans.items()):
        raise StageError(
            "prune: nothing would go: the goal keeps all, or heads and rounded widths are too coarse for it"
        )
    whole = sum(parameter.numel() for parameter in model.parameters())
    if refit is not None:
        refit(found, plans, scores)
    cut(found, plans, scores)
    left = trace(family, model, parts)
    after = {unit: count(left, unit).towers for unit in COUNTED}
    facts = {
        **_reached(budget, before, after),
        "parameters": [whole, sum(parameter.numel() for parameter in model.parameters())],
        "blocks": {
            block.name: _block_facts(block, plans.get(block.prunable.tower)) for block in found.dependencies.blocks
        },
        **_tower_facts(found, plans, used if prices is not None else None),
    }
    facts["notes"] += found.notes
    return facts


def _changes(found: Found, name: str, plan: Plan) -> bool:
    blocks = [block for block in found.dependencies.blocks if block.prunable.tower == name]
    return any(_block_facts(b, plan) != _block_facts(b, None) for b in blocks) or plan.width is not None


def _block_facts(block: Block, plan: Plan | None) -> dict[str, list[int]]:
    """Heads or width of a block before and after; 0 of a layer that went."""
    groups = block.groups if plan is None else plan.groups.get(block.name, 0)
    facts = {"width" if block.prunable.heads is None else "heads": [block.groups, groups]}
    if plan is not None and plan.sizes.get(block.name, block.size) != block.size:
        facts["head_width"] = [block.size, plan.sizes[block.name]]
    return facts


def _tower_facts(found: Found, plans: Mapping[str, Plan], prices: Prices | None) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    widths = {n: [found.widths[n].channels, p.width] for n, p in plans.items() if n in found.widths and p.width}
    layers: dict[str, list[int]] = {}
    for plan in plans.values():
        for stack in {layer.stack for layer in plan.dropped}:
            have = len(found.dependencies.model.get_submodule(stack)) + sum(x.stack == stack for x in plan.dropped)  # type: ignore[arg-type]
            gone = {layer.index for layer in plan.dropped if layer.stack == stack}
            layers[stack] = [index for index in range(have) if index not in gone]
    if widths:
        facts["widths"] = widths
    if layers:
        facts["kept_layers"] = layers
    return facts


def _reached(
    budget: Budget, before: Mapping[Counting, Mapping[str, float]], after: Mapping[Counting, Mapping[str, float]]
) -> dict[str, Any]:
    """Costs before and after, counted on the models themselves, and where they miss the budget."""
    notes = []
    unit: Counting = "parameters" if budget.unit == "parameters" else "macs"
    for tower, cost in before[unit].items():
        goal, reached = budget.keep(tower), after[unit][tower] / cost
        if budget.unit == unit and abs(reached - goal) > TOLERANCE * goal:
            notes.append(
                f"{tower}: {reached:.3f} of its {unit} is the nearest to {goal:.3f} that whole heads and rounded widths give"
            )
    return {
        "ratio": sum(after[unit].values()) / sum(before[unit].values()),
        "macs": [sum(before["macs"].values()), sum(after["macs"].values())],
        "towers": {tower: {u: [before[u][tower], after[u][tower]] for u in COUNTED} for tower in before["macs"]},
        "notes": notes,
    }
