"""What the parts of a model cost: MACs per example, parameters, or milliseconds; before a cut and after one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from mmcompress.families import Graph
from mmcompress.stages._pruning import Block, Dependencies, Layer, common_parent

if TYPE_CHECKING:
    from torch import nn

Unit = Literal["macs", "parameters", "milliseconds"]
Counting = Literal["macs", "parameters"]
COUNTED: tuple[Counting, ...] = ("macs", "parameters")


class Prices(Protocol):
    """What a tower costs is its rest, its layers and their blocks, each at the tower's width (channels)."""

    @property
    def towers(self) -> Mapping[str, float]:
        """All that a tower costs now, pruned or not."""
        ...

    def rest(self, tower: str, width: int | None) -> float:
        """What is neither a layer's nor a block's; ``width`` is None where it is not cut."""
        ...

    def layer(self, layer: Layer, width: int | None) -> float:
        """A layer besides its blocks."""
        ...

    def block(self, block: Block, groups: int, size: int, width: int | None) -> float:
        """A block with so many groups of so many channels."""
        ...


@dataclass(frozen=True)
class _Part:
    products: float
    """With weights that the model width makes longer or shorter."""
    other: float
    """What the width does not change: products of queries, keys and values, biases."""


@dataclass
class Counted:
    """MACs or parameters, counted on the model; those of a narrower one follow in proportion."""

    towers: dict[str, float]
    graphs: dict[str, int]
    parts: dict[str, _Part]
    layers: dict[Layer, float]
    rests: dict[str, float]
    widths: dict[str, int] = field(default_factory=dict)

    def _share(self, tower: str, width: int | None) -> float:
        return 1.0 if width is None else width / self.widths[tower]

    def rest(self, tower: str, width: int | None) -> float:
        """See :class:`Prices`: embeddings, projections, the norm at the end."""
        return self.rests[tower] * self._share(tower, width)

    def layer(self, layer: Layer, width: int | None) -> float:
        """See :class:`Prices`: its norms and the biases of what ends in the residual stream."""
        return self.layers.get(layer, 0.0)

    def block(self, block: Block, groups: int, size: int, width: int | None) -> float:
        """See :class:`Prices`."""
        part = self.parts[block.name]
        share = groups * size / block.channels
        return share * (part.products * self._share(block.prunable.tower, width) + part.other)


def count(found: Dependencies, unit: Counting, widths: Mapping[str, Block] | None = None) -> Counted:
    """Count a model as it is now."""
    per_graph = [_counts(graph, unit) for graph in found.graphs]
    parts = {block.name: _part(found.model, block, per_graph[block.graph], unit) for block in found.blocks}
    whole = {name: part.products + part.other for name, part in parts.items()}
    layers: dict[Layer, float] = {}
    for layer in sorted({block.layer for block in found.blocks if block.layer is not None}):
        if unit == "parameters":
            module = found.model.get_submodule(f"{layer.stack}.{layer.index}")
            inner = sum(whole[block.name] for block in found.blocks if block.layer == layer)
            layers[layer] = sum(p.numel() for p in module.parameters()) - inner
    towers: dict[str, float] = {}
    graphs: dict[str, int] = {}
    for index, counts in enumerate(per_graph):
        here = [block for block in found.blocks if block.graph == index]
        prunable = sum(whole[block.name] for block in here)
        for block in here:
            # Towers that one graph runs through share what none of their blocks costs, by what those do.
            share = whole[block.name] / prunable
            tower = block.prunable.tower
            graphs[tower] = index
            towers[tower] = towers.get(tower, 0.0) + share * counts[found.graphs[index].module]
    rests = {
        tower: total
        - sum(whole[block.name] for block in found.blocks if block.prunable.tower == tower)
        - sum(cost for layer, cost in layers.items() if layer in _layers(found.blocks, tower))
        for tower, total in towers.items()
    }
    channels = {tower: block.channels for tower, block in (widths or {}).items()}
    return Counted({tower: round(total) for tower, total in towers.items()}, graphs, parts, layers, rests, channels)


def _layers(blocks: Sequence[Block], tower: str) -> set[Layer]:
    return {block.layer for block in blocks if block.prunable.tower == tower and block.layer is not None}


def _part(model: nn.Module, block: Block, counts: Mapping[nn.Module, int], unit: str) -> _Part:
    producers = [model.get_submodule(name) for name in block.producers]
    linears = [*producers, *(model.get_submodule(name) for name in block.consumers)]
    if unit == "parameters":
        weights = sum(model.get_parameter(f"{name}.weight").numel() for name in (*block.producers, *block.consumers))
        made = sum(p.numel() for linear in producers for p in linear.parameters())
        biases = made - sum(model.get_parameter(f"{name}.weight").numel() for name in block.producers)
        return _Part(weights, biases)
    products = sum(counts[linear] for linear in linears)
    if block.prunable.heads is None:
        return _Part(products, 0.0)
    # The products of queries, keys and values happen in the module that holds the layers, not in the layers.
    inside = counts[model.get_submodule(common_parent([*block.producers, *block.consumers]))]
    return _Part(products, inside - products)


def _counts(graph: Graph, unit: str) -> dict[nn.Module, int]:
    from mmcompress.metrics._macs import macs_by_module

    if unit == "macs":
        named = macs_by_module(graph.module, graph.inputs)
        return {module: named[name] for name, module in graph.module.named_modules()}
    return {graph.module: sum(p.numel() for p in graph.module.parameters())}
