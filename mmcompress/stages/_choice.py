"""How much of each block, layer and width goes, so that a tower costs what a goal leaves and loses as little as it can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import StageError
from mmcompress.stages._prices import Prices
from mmcompress.stages._pruning import Block, Layer

Ranking = Literal["global", "local", "isomorphic"]
TOLERANCE = 0.02
"""How far from a goal, relative to it, a cut may end without being told."""
BINS = 4000
"""Steps of the cost that the knapsack tells apart."""


@dataclass(frozen=True)
class Plan:
    """What is left of a tower."""

    groups: Mapping[str, int]
    """Heads or units, by block; blocks of layers that go are absent."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Channels of a head, by attention; those that are not named stay."""
    dropped: frozenset[Layer] = frozenset()
    width: int | None = None
    """Channels of the residual stream; None: as it is."""


@dataclass(frozen=True)
class Tower:
    """What a choice is made from. Losses are sums of importance, or measured (:mod:`._sensitivity`): one unit for all."""

    name: str
    blocks: tuple[Block, ...]
    losses: Mapping[str, NDArray[np.float64]]
    """Per block, what is lost when its k least important groups go, [groups + 1]."""
    counts: Mapping[str, tuple[int, ...]]
    """Per block, how many groups may be left, falling; the first is all of them."""
    size_losses: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Likewise of the channels of a head, where they may be cut."""
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    width: Block | None = None
    """The residual stream, where it may be cut."""
    layers: bool = False
    """Whether layers may go."""
    layer_losses: Mapping[Layer, float] | None = None
    """What a layer matters, where that was measured; else as much as all that is in it."""

    def all_layers(self) -> list[Layer]:
        """Its layers in order."""
        return sorted({block.layer for block in self.blocks if block.layer is not None})

    def layer_loss(self, layer: Layer) -> float:
        """What a layer matters as a whole."""
        if self.layer_losses is not None:
            return self.layer_losses[layer]
        return float(sum(self.losses[block.name][-1] for block in self.blocks if block.layer == layer))


def price(tower: Tower, plan: Plan, prices: Prices) -> float:
    """What a tower costs after a plan."""
    total = prices.rest(tower.name, plan.width)
    total += sum(prices.layer(layer, plan.width) for layer in tower.all_layers() if layer not in plan.dropped)
    for block in tower.blocks:
        if block.layer is None or block.layer not in plan.dropped:
            size = plan.sizes.get(block.name, block.size)
            total += prices.block(block, plan.groups[block.name], size, plan.width)
    return total


def choose(tower: Tower, prices: Prices, target: float, ranking: Ranking) -> Plan:
    """The plan whose price is as near to ``target`` as it can be, and at most 2 % above.

    Raises:
        StageError: the target lies below what the smallest plan costs (by more than :data:`TOLERANCE`).
    """
    least = price(tower, smallest(tower, ranking), prices)
    if least > target * (1 + TOLERANCE):
        now = price(tower, uncut(tower), prices)
        raise StageError(
            f"{target / now:.3f} of its cost cannot be reached: {least / now:.3f} is left with one head and one rounding"
            " unit per block\n  Ask for more than that, round to less, or let `parts` name layers or width too."
        )
    if ranking == "global":
        return _knapsack(tower, prices, max(target, least))
    sets = [[block] for block in tower.blocks] if ranking == "local" else _alike(tower.blocks)
    shares = np.linspace(0.0, 1.0, 401)
    plans = [by_share(tower, float(share), sets) for share in shares]
    return min(plans, key=lambda plan: abs(price(tower, plan, prices) - target))


def uncut(tower: Tower) -> Plan:
    """All that there is."""
    return by_share(tower, 0.0, [[block] for block in tower.blocks])


def smallest(tower: Tower, ranking: Ranking = "global") -> Plan:
    """The least that may be left: one layer, the smallest blocks, the narrowest width."""
    plan = by_share(tower, 1.0, [[block] for block in tower.blocks])
    if tower.width is None or ranking != "global":
        return plan
    return replace(plan, width=tower.counts[tower.width.name][-1])


# --- one share of everything ---------------------------------------------------------------------------------------


def _alike(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks whose groups are the same small graph of the same shapes (Fang et al., arXiv:2407.04616, 3.2)."""
    sets: dict[tuple[str, int, int, int], list[Block]] = {}
    for block in blocks:
        key = (block.kind, block.size, len(block.producers), len(block.consumers))
        sets.setdefault(key, []).append(block)
    return list(sets.values())


def by_share(tower: Tower, share: float, sets: Sequence[Sequence[Block]]) -> Plan:
    """A share of the removable steps of each set of blocks goes, the least important of the set; width and layers likewise."""
    groups: dict[str, int] = {}
    for blocks in sets:
        steps = sorted(
            (_step_loss(tower, block, index), block.name, index)
            for block in blocks
            for index in range(1, len(tower.counts[block.name]))
        )
        gone = dict.fromkeys((block.name for block in blocks), 0)
        for _, name, _ in steps[: round(share * len(steps))]:
            gone[name] += 1
        groups.update({block.name: tower.counts[block.name][gone[block.name]] for block in blocks})
    sizes = {name: options[round(share * (len(options) - 1))] for name, options in tower.sizes.items()}
    layers = tower.all_layers()
    ranked = sorted(layers, key=lambda layer: (tower.layer_loss(layer), layer))
    dropped = frozenset(ranked[: round(share * (len(layers) - _stacks(layers)))]) if tower.layers else frozenset()
    dropped = _one_left(layers, dropped)
    width = None
    if tower.width is not None:
        options = tower.counts[tower.width.name]
        width = _as_heads(tower, groups, sizes) or options[round(share * (len(options) - 1))]
    kept = {name: left for name, left in groups.items() if _layer(tower, name) not in dropped}
    return Plan(kept, sizes, dropped, width)


def _step_loss(tower: Tower, block: Block, index: int) -> float:
    """What the step to the next smaller count loses, per group."""
    before, after = (block.groups - tower.counts[block.name][at] for at in (index - 1, index))
    lost = tower.losses[block.name]
    return float(lost[after] - lost[before]) / (after - before)


def _as_heads(tower: Tower, groups: Mapping[str, int], sizes: Mapping[str, int]) -> int | None:
    """The width of all heads together, where all attentions agree on it: then a configuration can tell the cut."""
    assert tower.width is not None
    attentions = [block for block in tower.blocks if block.prunable.heads is not None]
    before = {block.channels for block in attentions}
    after = {groups[block.name] * sizes.get(block.name, block.size) for block in attentions}
    wholes = all(len(tower.counts[block.name]) > 1 for block in attentions)
    return after.pop() if wholes and len(after) == 1 and before == {tower.width.channels} else None


def _stacks(layers: Iterable[Layer]) -> int:
    return len({layer.stack for layer in layers})


def _one_left(layers: Sequence[Layer], dropped: frozenset[Layer]) -> frozenset[Layer]:
    kept = set(dropped)
    for stack in {layer.stack for layer in layers}:
        of_stack = [layer for layer in layers if layer.stack == stack]
        if all(layer in kept for layer in of_stack):
            kept.discard(of_stack[0])
    return frozenset(kept)


def _layer(tower: Tower, name: str) -> Layer | None:
    return next(block.layer for block in tower.blocks if block.name == name)


# --- the knapsack --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    cost: float
    loss: float
    groups: tuple[tuple[str, int, int], ...]
    """Block, groups and channels per group; none for a layer that goes."""


def _knapsack(tower: Tower, prices: Prices, target: float) -> Plan:
    """One option per layer (or block that is in none), so that the least is lost at a cost of ``target`` or less.

    A multiple-choice knapsack by dynamic programming over the cost, once per width, as HALP chooses channels by a table of
    latencies (Shen et al., arXiv:2110.10811).
    """
    best: tuple[float, Plan] | None = None
    widths: Sequence[int | None] = [None] if tower.width is None else tower.counts[tower.width.name]
    for width in widths:
        lost = 0.0
        if tower.width is not None and width is not None:
            lost = float(tower.losses[tower.width.name][tower.width.channels - width])
        classes = _classes(tower, prices, width)
        found = solve(
            [[(o.cost, o.loss) for o in options] for options in classes], target - prices.rest(tower.name, width)
        )
        if found is None:
            continue
        taken = [options[index] for options, index in zip(classes, found, strict=True)]
        lost += sum(option.loss for option in taken)
        if best is None or lost < best[0]:
            best = lost, _plan(tower, taken, width)
    if best is None:
        raise StageError(f"no structure costs {target:.4g} or less\n  Ask for more, or let `parts` name more.")
    return best[1]


def _plan(tower: Tower, taken: Sequence[_Option], width: int | None) -> Plan:
    groups = {name: count for option in taken for name, count, _ in option.groups}
    sizes = {name: size for option in taken for name, _, size in option.groups if name in tower.sizes}
    dropped = {block.layer for block in tower.blocks if block.name not in groups and block.layer is not None}
    full = tower.width is not None and width == tower.width.channels
    return Plan(groups, sizes, frozenset(dropped), None if full else width)


def _classes(tower: Tower, prices: Prices, width: int | None) -> list[list[_Option]]:
    layers: dict[Layer | str, list[Block]] = {}
    for block in tower.blocks:
        layers.setdefault(block.layer if tower.layers and block.layer else block.name, []).append(block)
    classes = []
    for place, blocks in layers.items():
        options = [_Option(0.0, 0.0, ())]
        for block in blocks:
            options = [_joined(one, other) for one in options for other in _of_block(tower, prices, block, width)]
            options = _undominated(options)
        if isinstance(place, Layer):
            own = prices.layer(place, width)
            options = [_Option(option.cost + own, option.loss, option.groups) for option in options]
            if place.index > 0:  # of a stack the first stays, which knows the embeddings
                options.append(_Option(0.0, tower.layer_loss(place), ()))
        classes.append(options)
    if not tower.layers:
        own = sum(prices.layer(layer, width) for layer in tower.all_layers())
        classes.append([_Option(own, 0.0, ())])
    return classes


def _of_block(tower: Tower, prices: Prices, block: Block, width: int | None) -> list[_Option]:
    lost, options = tower.losses[block.name], []
    spare = 1e-9 * (sum(float(losses[-1]) for losses in tower.losses.values()) or 1.0)
    for size in tower.sizes.get(block.name, (block.size,)):
        narrower = float(tower.size_losses[block.name][block.size - size]) if block.name in tower.size_losses else 0.0
        for count in tower.counts[block.name]:
            cost = prices.block(block, count, size, width)
            loss = float(lost[block.groups - count]) + narrower * count / block.groups
            loss += spare * (1 - count * size / block.channels)  # of what matters nothing no more goes than must
            options.append(_Option(cost, loss, ((block.name, count, size),)))
    return _undominated(options)


def _joined(one: _Option, other: _Option) -> _Option:
    return _Option(one.cost + other.cost, one.loss + other.loss, one.groups + other.groups)


def _undominated(options: Iterable[_Option]) -> list[_Option]:
    """Those that no other option betters in cost and loss."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def solve(classes: Sequence[Sequence[tuple[float, float]]], limit: float) -> list[int] | None:
    """The index of one (cost, loss) per class, of the least loss in all at a cost of ``limit`` or less; None: there is none.

    Costs are rounded up to :data:`BINS` steps, so that the limit holds. Costs may be negative.
    """
    floors = [min(cost for cost, _ in options) for options in classes]
    room = limit - sum(floors)
    if room < -1e-9 * max(1.0, abs(limit)):
        return None
    step = max(room, 1e-12) / BINS
    best = np.zeros(BINS + 1)
    picks: list[NDArray[np.int32]] = []
    bins: list[list[int]] = []
    for options, floor in zip(classes, floors, strict=True):
        needs = [int(np.ceil((cost - floor) / step - 1e-9)) for cost, _ in options]
        after, pick = np.full(BINS + 1, np.inf), np.full(BINS + 1, -1, np.int32)
        for index, (need, (_, loss)) in enumerate(zip(needs, options, strict=True)):
            if need > BINS:
                continue
            candidate = np.full(BINS + 1, np.inf)
            candidate[need:] = best[: BINS + 1 - need] + loss
            better = candidate < after
            after[better], pick[better] = candidate[better], index
        best = after
        picks.append(pick)
        bins.append(needs)
    place = BINS
    chosen = []
    for pick, needs in zip(reversed(picks), reversed(bins), strict=True):
        index = int(pick[place])
        chosen.append(index)
        place -= needs[index]
    return chosen[::-1]


# --- what may be left ----------------------------------------------------------------------------------------------


def options_of(groups: int, step: int) -> tuple[int, ...]:
    """Counts that may be left, falling: all, then multiples of ``step``; of a number of groups at most that, all alone."""
    return (groups, *range((groups - 1) // step * step, 0, -step)) if groups > step else (groups,)


def cumulated(importance: Sequence[float]) -> NDArray[np.float64]:
    """The importance lost when the k least important groups go, [groups + 1]."""
    return np.concatenate([[0.0], np.cumsum(np.sort(np.asarray(importance, np.float64)))])
