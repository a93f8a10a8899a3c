"""Structured pruning: which channels hang together, how many of them a goal leaves, and the cut.

A *block* is one coupled set of channels (the heads of an attention, the units of a feed-forward layer). It falls into
*groups* that go or stay whole: the channels of a head, or one unit. Torch-Pruning's DependencyGraph finds which layers
make and take the channels of a block, and cuts them (Fang et al., "DepGraph", arXiv:2301.12900).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmcompress.errors import StageError, require
from mmcompress.families import Graph, Prunable

if TYPE_CHECKING:
    from torch import nn

Unit = Literal["macs", "parameters"]
Ranking = Literal["global", "local"]
TOLERANCE = 0.02
"""How far from a goal, relative to it, a cut may end without being told."""


@dataclass(frozen=True)
class Block:
    """One coupled set of channels, as the dependency graph sees it."""

    prunable: Prunable
    graph: int
    """Index of the graph that was traced through it."""
    producers: tuple[str, ...]
    """Linear layers whose output channels are the block's."""
    consumers: tuple[str, ...]
    """Linear layers that take the block's channels as inputs."""
    channels: int
    groups: int
    """Number of heads, or of channels."""

    @property
    def name(self) -> str:
        """Where it stands, for people."""
        return self.prunable.block

    @property
    def size(self) -> int:
        """Channels per group."""
        return self.channels // self.groups


@dataclass(frozen=True)
class Costs:
    """What the towers of a model cost, in MACs per example or in parameters."""

    towers: Mapping[str, int]
    """All that a tower costs, pruned or not."""
    groups: Mapping[str, float]
    """What one group of a block costs, by block."""


# --- tracing -------------------------------------------------------------------------------------------------------


class Dependencies:
    """The dependency graphs of a model's graphs, and the blocks that they show."""

    def __init__(self, model: nn.Module, graphs: Sequence[Graph], prunables: Sequence[Prunable]) -> None:
        """Trace the graphs with their sample inputs.

        Raises:
            StageError: there is nothing to prune, or a block that no graph runs through, or one whose channels reach
                beyond linear layers (into the residual stream, an output).
        """
        if not prunables:
            raise StageError("prune: the family names nothing that can be pruned in this model")
        self.model = model
        self.graphs = list(graphs)
        self._traced = [_trace(graph) for graph in graphs]
        self._names = {module: name for name, module in model.named_modules()}
        self.blocks = [self._block(prunable) for prunable in prunables]

    def _block(self, prunable: Prunable) -> Block:
        root = self._linear(prunable.root, prunable.block)
        index = next((index for index, traced in enumerate(self._traced) if root in traced.module2node), None)
        if index is None:
            raise StageError(f"prune: {prunable.block}: no graph of the model runs through {prunable.root!r}")
        producers: list[str] = []
        consumers: list[str] = []
        for dependency, channels in self._items(prunable, index, range(root.out_features)):
            module, name = dependency.target.module, self._names.get(dependency.target.module)
            if name is None and not _is_parameter(module):  # an operator between the layers, such as a reshape
                continue
            makes = self._traced[index].is_out_channel_pruning_fn(dependency.handler)
            if not _is_linear(module) or len(channels) != root.out_features:
                raise StageError(
                    f"prune: {prunable.block}: cutting {prunable.root} would also cut {name or 'a parameter'}"
                )
            (producers if makes else consumers).append(str(name))
        lost = {prunable.root, *prunable.together} - set(producers)
        if lost or not consumers:
            raise StageError(f"prune: {prunable.block}: matched nothing that takes the channels of {prunable.root}")
        groups = prunable.heads if prunable.heads is not None else root.out_features
        if root.out_features % groups:
            raise StageError(f"prune: {prunable.block}: {groups} heads do not divide {root.out_features} channels")
        return Block(prunable, index, tuple(producers), tuple(consumers), root.out_features, groups)

    def _items(self, prunable: Prunable, graph: int, channels: Iterable[int]) -> list[Any]:
        """What has to be cut at the channels: (dependency, channels) pairs, each layer's side once."""
        import torch_pruning

        cut = torch_pruning.prune_linear_out_channels
        indices = list(channels)
        found: dict[tuple[Any, Any], Any] = {}
        for name in (prunable.root, *prunable.together):
            module = self._linear(name, prunable.block)
            if module not in self._traced[graph].module2node:
                raise StageError(f"prune: {prunable.block}: the graph through {prunable.root} misses {name}")
            if any(target.module is module for target, _ in found):
                continue
            for item in self._traced[graph].get_pruning_group(module, cut, indices).items:
                found.setdefault((item.dep.target, item.dep.handler), item)
        return list(found.values())

    def _linear(self, name: str, block: str) -> nn.Linear:
        try:
            module: Any = self.model.get_submodule(name)
        except AttributeError:
            raise StageError(f"prune: {block}: the model has no module {name!r}") from None
        if not _is_linear(module):
            raise StageError(f"prune: {block}: {name} is no linear layer but {type(module).__name__}")
        linear: nn.Linear = module
        return linear

    def cut(self, block: Block, removed: Sequence[int]) -> None:
        """Remove groups of a block from the model, in place; the attributes that count them follow.

        Raises:
            ValueError: nothing would be left.
        """
        left = block.groups - len(set(removed))
        if left < 1:
            raise ValueError(f"{block.name}: all {block.groups} groups would go")
        if left == block.groups:
            return
        channels = sorted(group * block.size + offset for group in set(removed) for offset in range(block.size))
        for dependency, indices in self._items(block.prunable, block.graph, channels):
            dependency(indices)
        for name, attributes in (block.prunable.head_attributes or {}).items():
            module = self.model.get_submodule(name)
            for attribute in attributes:
                before = getattr(module, attribute)
                if before * left % block.groups:
                    raise StageError(f"prune: {block.name}: {name}.{attribute} = {before} cannot follow {left} heads")
                setattr(module, attribute, before * left // block.groups)

    def costs(self, unit: Unit) -> Costs:
        """What towers and groups cost now. Call it before the cut: blocks keep the widths that they were found with."""
        per_graph = [_graph_costs(graph, unit) for graph in self.graphs]
        groups = {
            block.name: self._block_cost(block, per_graph[block.graph], unit) / block.groups for block in self.blocks
        }
        towers: dict[str, float] = {}
        for index, counts in enumerate(per_graph):
            here = [block for block in self.blocks if block.graph == index]
            prunable = sum(groups[block.name] * block.groups for block in here)
            for block in here:
                # Towers that one graph runs through share what none of their blocks costs, by what those do.
                share = groups[block.name] * block.groups / prunable
                towers[block.prunable.tower] = (
                    towers.get(block.prunable.tower, 0.0) + share * counts[self.graphs[index].module]
                )
        return Costs({tower: round(cost) for tower, cost in towers.items()}, groups)

    def _block_cost(self, block: Block, counts: Mapping[nn.Module, int], unit: Unit) -> float:
        linears = [self.model.get_submodule(name) for name in (*block.producers, *block.consumers)]
        if unit == "parameters":
            made = sum(p.numel() for name in block.producers for p in self.model.get_submodule(name).parameters())
            return made + sum(self._linear(name, block.name).weight.numel() for name in block.consumers)
        if block.prunable.heads is None:
            return sum(counts[linear] for linear in linears)
        # The products of queries, keys and values happen in the module that holds the layers, not in the layers.
        return counts[self.model.get_submodule(_common_parent([*block.producers, *block.consumers]))]


def _trace(graph: Graph) -> Any:
    import torch

    torch_pruning = require("torch_pruning", "compress")
    with torch.enable_grad():
        # Not verbose: parameters that stand alone (a class token) are none of the channels that we cut.
        return torch_pruning.DependencyGraph().build_dependency(graph.module, dict(graph.inputs), verbose=False)


def _is_linear(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _is_parameter(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Parameter)


def _graph_costs(graph: Graph, unit: Unit) -> dict[nn.Module, int]:
    from mmcompress.metrics._macs import macs_by_module

    if unit == "macs":
        named = macs_by_module(graph.module, graph.inputs)
        return {module: named[name] for name, module in graph.module.named_modules()}
    return {graph.module: sum(p.numel() for p in graph.module.parameters())}


def _common_parent(names: Sequence[str]) -> str:
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)


# --- choosing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Groups of a block that go together: a head, or as many units as widths are rounded to."""

    block: str
    groups: tuple[int, ...]
    cost: float
    density: float
    """Importance per cost: what is lost by what is saved."""


def chunks_of(block: Block, importance: Sequence[float], cost: float, round_to: int) -> list[Chunk]:
    """The removable chunks of a block, the least important first; one head or one rounding unit always stays.

    Widths become multiples of ``round_to``: where they are none, the first chunk is what stands over.
    """
    order = sorted(range(block.groups), key=lambda group: (importance[group], group))
    step = 1 if block.prunable.heads is not None else round_to
    over = block.groups % step
    starts = ([0] if over and block.groups > step else []) + list(range(over, block.groups - step, step))
    chunks = []
    for start in starts:
        groups = tuple(order[start : over if start < over else start + step])
        price = cost * len(groups)
        chunks.append(Chunk(block.name, groups, price, sum(importance[group] for group in groups) / price))
    return chunks


def choose(chunks: Mapping[str, Sequence[Chunk]], total: float, target: float, ranking: Ranking) -> dict[str, int]:
    """How many chunks to remove from each block of a tower, so that its cost comes as near to ``target`` as it can.

    ``global`` removes by density over the whole tower, ``local`` the same share of every block.

    Raises:
        StageError: the target lies below what the smallest blocks leave (by more than :data:`TOLERANCE`).
    """
    floor = total - sum(chunk.cost for some in chunks.values() for chunk in some)
    if floor > target * (1 + TOLERANCE):
        raise StageError(
            f"{target / total:.3f} of its cost cannot be reached: {floor / total:.3f} is left with one head and one rounding"
            " unit per block\n  Ask for more than that, round to less, or remove layers (a student from the teacher)."
        )
    return _choose_global(chunks, total, target) if ranking == "global" else _choose_local(chunks, total, target)


def _choose_global(chunks: Mapping[str, Sequence[Chunk]], total: float, target: float) -> dict[str, int]:
    removed = dict.fromkeys(chunks, 0)
    cost = total
    # Within a block densities rise, so that a block's chunks come in their order; ties go by block and order.
    order = sorted((chunk.density, name, index) for name, some in chunks.items() for index, chunk in enumerate(some))
    for _, name, index in order:
        after = cost - chunks[name][index].cost
        if removed[name] == index and abs(after - target) < abs(cost - target):
            removed[name], cost = index + 1, after
    return removed


def _choose_local(chunks: Mapping[str, Sequence[Chunk]], total: float, target: float) -> dict[str, int]:
    shares = sorted({(index + 1) / (len(some) + 1) for some in chunks.values() for index in range(len(some))} | {0.0})

    def at(share: float) -> dict[str, int]:
        return {name: min(len(some), int(share * (len(some) + 1) + 1e-9)) for name, some in chunks.items()}

    def cost(removed: Mapping[str, int]) -> float:
        return total - sum(chunk.cost for name, count in removed.items() for chunk in chunks[name][:count])

    return min((at(share) for share in shares), key=lambda removed: abs(cost(removed) - target))


# --- ties ----------------------------------------------------------------------------------------------------------


def tied_parameters(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one tensor under several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def tie_again(model: nn.Module, tied: Sequence[Sequence[str]]) -> None:
    """Tie parameters that were one tensor before the cut, which gives every layer its own.

    Raises:
        StageError: they were cut differently.
    """
    import torch

    for group in tied:
        kept = model.get_parameter(group[0])
        for name in group[1:]:
            other = model.get_parameter(name)
            if other is kept:
                continue
            if other.shape != kept.shape or not torch.equal(other, kept):
                raise StageError(f"prune: {group[0]} and {name} are tied and would be cut differently")
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, kept)
