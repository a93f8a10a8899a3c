"""Structured pruning: which channels hang together, how many of them a goal leaves, and the cut.

A *block* is one coupled set of channels (the heads of an attention, the units of a feed-forward layer). It falls into
*groups* that go or stay whole: the channels of a head, or one unit. Torch-Pruning's DependencyGraph finds which layers
make and take the channels of a block, and cuts them (Fang et al., "DepGraph", arXiv:2301.12900).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmcompress.errors import StageError, require
from mmcompress.families import Graph, Prunable

if TYPE_CHECKING:
    from torch import nn

Part = Literal["heads", "head_width", "feed_forward", "width", "layers"]
ROUNDS = 10
"""How often channels may come back to the same operators, on average: what ends does so in a round or two."""
HEAD_WIDTHS = ("head_dim", "attention_head_size")
"""What attention modules call the channels of one head."""
MODEL_WIDTHS = ("embed_dim", "hidden_size", "d_model")
"""What modules call the channels of the residual stream."""


@dataclass(frozen=True, order=True)
class Layer:
    """One of a stack of layers that add to the residual stream, so that any of them can go."""

    stack: str
    """The module list, by its dotted name."""
    index: int


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
    layer: Layer | None = None
    """The layer that holds it and could go whole."""
    offsets: tuple[int, ...] = ()
    """Where the channels start among the inputs of each consumer, which may take more beside them; 0 where none are given."""
    masked: tuple[tuple[str, int], ...] = ()
    """Parameters with the axis of the channels: setting these to zero masks a channel (those that there are). The columns
    of the consumers where none are named."""

    @property
    def masks(self) -> tuple[tuple[str, int], ...]:
        """:attr:`masked`, or the columns of the consumers."""
        return self.masked or tuple((f"{name}.weight", 1) for name in self.consumers)

    def columns(self, consumer: str) -> slice:
        """The inputs of a consumer that are the block's channels."""
        start = dict(zip(self.consumers, self.offsets, strict=False)).get(consumer, 0)
        return slice(start, start + self.channels)

    @property
    def kind(self) -> str:
        """Its name without the numbers of layers: blocks of one kind run the same operators."""
        return re.sub(r"\.\d+", "", self.name)

    @property
    def name(self) -> str:
        """Where it stands, for people."""
        return self.prunable.block

    @property
    def size(self) -> int:
        """Channels per group."""
        return self.channels // self.groups


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
        consumers: dict[str, int] = {}
        for dependency, channels in self._items(prunable, index, range(root.out_features)):
            module, name = dependency.target.module, self._names.get(dependency.target.module)
            if name is None and not _is_parameter(module):  # an operator between the layers, such as a reshape
                continue
            makes = self._traced[index].is_out_channel_pruning_fn(dependency.handler)
            if not _is_linear(module) or len(channels) != root.out_features:
                raise StageError(
                    f"prune: {prunable.block}: cutting {prunable.root} would also cut {name or 'a parameter'}"
                )
            if makes:
                producers.append(str(name))
            else:
                consumers.setdefault(str(name), min(map(int, channels)))
        lost = {prunable.root, *prunable.together} - set(producers)
        if lost or not consumers:
            raise StageError(f"prune: {prunable.block}: matched nothing that takes the channels of {prunable.root}")
        groups = prunable.heads if prunable.heads is not None else root.out_features
        if root.out_features % groups:
            raise StageError(f"prune: {prunable.block}: {groups} heads do not divide {root.out_features} channels")
        layer = layer_of(self.model, prunable.root)
        offsets = tuple(consumers.values())
        return Block(prunable, index, tuple(producers), tuple(consumers), root.out_features, groups, layer, offsets)

    def width(self, tower: str) -> Block | None:
        """The model width of a tower: the channels of its residual stream, with all that makes and takes them.

        None where the tower has no layers that add to such a stream. Whether it can be cut is another matter: a graph may
        hand the stream on as it is. :func:`mmcompress.stages._cutting.cuttable_widths` tries.
        """
        from torch.nn.utils.parametrize import is_parametrized

        inner = next((b for b in self.blocks if b.prunable.tower == tower and b.layer is not None), None)
        if inner is None:
            return None
        root = inner.consumers[0]
        prunable = Prunable(f"{tower}.width", tower, root, None)
        channels = self._linear(root, prunable.block).out_features
        makers: list[str] = []
        takers: list[str] = []
        for dependency, indices in self._items(prunable, inner.graph, range(channels)):
            name = self._names.get(dependency.target.module)
            if name is not None and is_parametrized(dependency.target.module):
                raise StageError(f"prune: {prunable.block}: the weight of {name} is computed of others, and stays")
            if name is not None and _is_linear(dependency.target.module) and len(indices) == channels:
                makes = self._traced[inner.graph].is_out_channel_pruning_fn(dependency.handler)
                (makers if makes else takers).append(name)
        return Block(prunable, inner.graph, tuple(makers), tuple(takers), channels, channels) if takers else None

    def _replace(self, before: nn.Parameter, after: nn.Parameter) -> None:
        """Set a parameter that no layer holds (a class token) anew, under all its names."""
        for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            if parameter is before:
                owner, _, attribute = name.rpartition(".")
                setattr(self.model.get_submodule(owner), attribute, after)

    def touched(self, block: Block) -> set[str]:
        """The modules right above all that a block's channels run through."""
        modules = {dependency.target.module for dependency, _ in self._items(block.prunable, block.graph, [0])}
        return {name.rpartition(".")[0] for module, name in self._names.items() if module in modules}

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
            if not _ends(self._traced[graph], module, cut, indices):
                raise StageError(f"prune: {prunable.block}: what hangs together with {name} has no end in its graph")
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
            target = dependency.target.module
            if _is_parameter(target):
                self._replace(target, dependency(indices))
            else:
                dependency(indices)
        for name, attributes in (block.prunable.head_attributes or {}).items():
            module = self.model.get_submodule(name)
            for attribute in attributes:
                before = getattr(module, attribute)
                if before * left % block.groups:
                    raise StageError(f"prune: {block.name}: {name}.{attribute} = {before} cannot follow {left} heads")
                setattr(module, attribute, before * left // block.groups)


def _trace(graph: Graph) -> Any:
    import torch

    torch_pruning = require("torch_pruning", "compress")
    try:
        with torch.enable_grad():
            # Not verbose: that parameters stand alone (a class token) is nothing to tell of.
            return torch_pruning.DependencyGraph().build_dependency(graph.module, dict(graph.inputs), verbose=False)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise StageError(
            f"prune: graph {graph.name}: the forward of {type(graph.module).__name__} cannot be traced:"
            f" {type(error).__name__}: {error}"
        ) from error


def _ends(traced: Any, module: nn.Module, cut: Any, channels: Sequence[int]) -> bool:
    """Whether following channels comes to an end.

    Torch-Pruning takes any join of tensors for one of channels: where texts and patches are joined along the sequence and
    come back to the same layers, each round has new channels, and it would go on for hours.
    """
    from torch_pruning._helpers import _HybridIndex
    from torch_pruning.dependency.index_mapping import update_index_mapping

    update_index_mapping(traced)
    start = [_HybridIndex(idx=index, root_idx=index) for index in channels]
    waiting: list[tuple[Any, Any, Any]] = [(traced.module2node[module], cut, start)]
    seen: set[tuple[Any, Any, tuple[Any, ...]]] = set()
    while waiting:
        node, handler, indices = waiting.pop()
        for dependency in node.dependencies if len(indices) else ():
            if not dependency.is_triggered_by(handler):
                continue
            moved = indices
            for mapping in dependency.index_mapping:
                moved = moved if mapping is None else mapping(moved)
            step = (dependency.target, dependency.handler, tuple(moved))
            if step not in seen:
                seen.add(step)
                waiting.append((dependency.target, dependency.handler, moved))
        if len(seen) > ROUNDS * len(traced.module2node):
            return False
    return True


def _is_linear(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _is_parameter(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Parameter)


def common_parent(names: Sequence[str]) -> str:
    """The dotted name of the innermost module that holds all the named ones."""
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)


def layer_of(model: nn.Module, name: str) -> Layer | None:
    """The layer that holds a module: the entry of the innermost module list above it that holds attention too."""
    from torch import nn

    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        stack = model.get_submodule(".".join(parts[:end]))
        if isinstance(stack, nn.ModuleList) and len(stack) > 1:
            entry = stack[int(parts[end])]
            if any("attention" in type(module).__name__.lower() for module in entry.modules()):
                return Layer(".".join(parts[:end]), int(parts[end]))
            return None
    return None


def head_width_blocks(block: Block) -> tuple[Block, Block]:
    """The channels of an attention's queries and keys, and those of its values, each a group of its own.

    A channel of queries and keys is masked by the row of the query alone: their product is then zero.
    """
    query, key, value = (block.prunable.root, *block.prunable.together)
    scores = dataclasses.replace(
        block,
        prunable=dataclasses.replace(block.prunable, block=f"{block.name}.scores"),
        producers=(query, key),
        consumers=(),
        groups=block.channels,
        masked=((f"{query}.weight", 0), (f"{query}.bias", 0)),
    )
    values = dataclasses.replace(
        block,
        prunable=dataclasses.replace(block.prunable, block=f"{block.name}.values"),
        producers=(value,),
        groups=block.channels,
    )
    return scores, values


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
