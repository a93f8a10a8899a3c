"""Sensitivity: how far a model's outputs move when so much of a block is masked, or a whole layer is dropped.

Importance ranks the groups of one block. What all that goes matters together does not follow from it: the units of a
feed-forward layer stand in for each other, the first of many is missed less than the last, and a sum of importances says
neither. So each block is masked step by step, least important groups first, and the outputs are compared with those of the
whole model, as ZipLM and SPDY weigh layers by what their own cuts cost (arXiv:2302.04089, arXiv:2201.13096).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import StageError
from mmcompress.families import Family
from mmcompress.families._structure import layers_dropped
from mmcompress.stages._choice import Tower
from mmcompress.stages._pruning import Block, Layer, head_width_blocks
from mmcompress.stages._removing import least_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmcompress.stages._importance import Scores

    Batch = Mapping[str, Tensor]
    Floats = NDArray[np.float64]

SHARES = (0.25, 0.5, 0.7, 0.85, 0.95, 1.0)
"""Of what may go of a block. The last units are missed most, so the steps grow smaller towards the end."""
FEW = 8
"""Of so few options, such as a number of heads, every one is measured."""
Mask = Iterable[tuple[str, int, Sequence[int]]]
"""Parameters, an axis of each, and where along it they become zero."""
Sensitivity = dict[str, list[tuple[int, float]]]
"""By block (or layer, or width of heads) pairs of what is left and how far the outputs move then."""
Progress = Callable[[int, int], None]
"""Hears how much is done, of how much."""
OVERFLOW = 1e12
"""The most that outputs are said to move, and what those are said to that are no numbers any more."""


def silent(done: int, of: int) -> None:
    """Hears nothing."""


def measured(tower: Tower, scores: Scores, outputs: TaskOutputs, progress: Progress = silent) -> Sensitivity:
    """How far the outputs move with ever less of each block, of the widths of its heads, and without each layer.

    Args:
        tower: With what may go.
        scores: The order in which groups go.
        outputs: Of the model that shall be cut.
        progress: Called with how much is done.

    Raises:
        StageError: no output depends on the tower.
    """
    blocks = _counted(tower)
    layers = tower.all_layers() if tower.layers else []
    counts = {block.name: _steps(block.groups, tower.counts[block.name]) for block in blocks}
    narrowed = [block for block in tower.blocks if block.name in tower.sizes]
    sizes = {block.name: _steps(block.size, tower.sizes[block.name]) for block in narrowed}
    total = sum(map(len, counts.values())) + sum(map(len, sizes.values())) + len(layers)
    reached = outputs.reached_from(tower.blocks)
    done = 0

    def told(change: float) -> float:
        nonlocal done
        done += 1
        progress(done, total)
        return change

    def masked(mask: Mask) -> float:
        return told(outputs.change(mask, reached))

    found: Sensitivity = {}
    for block in blocks:
        if counts[block.name]:
            masks = ((gone, group_mask(block, least_of(scores[block.name], gone))) for gone in counts[block.name])
            found[block.name] = [(block.groups - gone, masked(mask)) for gone, mask in masks]
    for block in narrowed:
        masks = ((gone, head_width_mask(block, scores, gone)) for gone in sizes[block.name])
        found[_heads(block.name)] = [(block.size - gone, masked(mask)) for gone, mask in masks]
    return found | {_name(layer): [(0, told(outputs.change_without(layer, reached)))] for layer in layers}


def weighed(tower: Tower, found: Sensitivity) -> Tower:
    """A tower whose losses are what was found; its losses by importance tell what lies between measured counts."""

    def by_gone(name: str, whole: int) -> dict[int, float]:
        return {whole - left: change for left, change in found.get(name, ())}

    sizes = {block.name: block.size for block in tower.blocks}
    groups = {block.name: block.groups for block in _counted(tower)}
    return replace(
        tower,
        losses={name: curve(lost, by_gone(name, groups[name])) for name, lost in tower.losses.items()},
        size_losses={name: curve(lost, by_gone(_heads(name), sizes[name])) for name, lost in tower.size_losses.items()},
        layer_losses={layer: found[_name(layer)][0][1] for layer in tower.all_layers()} if tower.layers else None,
    )


def _counted(tower: Tower) -> list[Block]:
    """All of which groups go: the width too, where it may be cut."""
    return [*tower.blocks, *([tower.width] if tower.width is not None else [])]


def _heads(block: str) -> str:
    return f"{block}.head_width"


def _name(layer: Layer) -> str:
    return f"{layer.stack}.{layer.index}"


def _steps(whole: int, left: Sequence[int]) -> list[int]:
    """How many groups to mask, by growing numbers, for the counts that may be left, of which the first is all."""
    options = [whole - count for count in left[1:]]
    if len(options) <= FEW:
        return options
    return sorted({options[max(0, round(share * len(options)) - 1)] for share in SHARES})


def curve(importance: Floats, found: Mapping[int, float]) -> Floats:
    """The loss of every count of groups that go, [groups + 1], from that of some; it never falls.

    Args:
        importance: What is lost by importance when the k least important groups go, [groups + 1]: between two counts that
            were measured the loss grows as this does.
        found: The measured loss by the count that goes.
    """
    counts = [0, *sorted(found)]
    losses = np.maximum.accumulate([0.0, *(found[count] for count in counts[1:])])
    # What matters nothing still counts a little, so that the places differ.
    places = importance + np.arange(len(importance)) * 1e-9 * (importance[-1] or 1.0)
    made: Floats = np.interp(places, places[counts], losses)
    return made


# --- what is masked ------------------------------------------------------------------------------------------------


def group_mask(block: Block, gone: Iterable[int]) -> Mask:
    """Zeros that take groups of a block away."""
    channels = [group * block.size + offset for group in gone for offset in range(block.size)]
    if block.masked:
        return [(name, axis, channels) for name, axis in block.masked]
    starts = {name: block.columns(name).start for name in block.consumers}
    return [(f"{name}.weight", 1, [start + channel for channel in channels]) for name, start in starts.items()]


def head_width_mask(block: Block, scores: Scores, gone: int, *, values: bool = True) -> Mask:
    """All heads without their least important channels, as :func:`._removing.cut_head_width` takes them.

    Channels of queries and keys, and, with ``values``, of values.
    """
    mask: list[tuple[str, int, Sequence[int]]] = []
    for part in head_width_blocks(block)[: 2 if values else 1]:
        heads = np.reshape(scores[part.name], (-1, block.size))
        channels = [head * block.size + c for head, row in enumerate(heads) for c in least_of(row.tolist(), gone)]
        mask += group_mask(part, channels)
    return mask


def mask_parameters(model: nn.Module, mask: Mask) -> list[tuple[nn.Parameter, Tensor]]:
    """Set zeros in parameters; gives these with what they were. Biases that a layer has not are left out.

    Raises:
        KeyError: there is no such weight.
    """
    import torch

    known = dict(model.named_parameters(remove_duplicate=False))
    before: dict[int, tuple[nn.Parameter, Tensor]] = {}  # tied parameters are one, whatever they are called
    with torch.no_grad():
        for name, axis, places in mask:
            if name.endswith(".bias") and name not in known:
                continue
            parameter = known[name]
            before.setdefault(id(parameter), (parameter, parameter.detach().clone()))
            parameter.index_fill_(axis, torch.tensor(list(places), dtype=torch.long), 0.0)
    return list(before.values())


@contextmanager
def _masked(model: nn.Module, mask: Mask) -> Iterator[None]:
    import torch

    before = mask_parameters(model, mask)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


# --- how far outputs move ------------------------------------------------------------------------------------------


class TaskOutputs:
    """What a model gives for some examples of all that its task reads, and how far that moves when parts of it go."""

    def __init__(self, family: Family, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Outputs of each example are compared; of sequences, those of the tokens that their mask counts."""
        self.family, self.model = family, model
        self._batches = list(batches)
        self._whole = [self.given(batch, family.task_needs()) for batch in self._batches]
        names = sorted(set[str]().union(*self._whole))
        self._spread = {
            name: sum(_spread(name, given[name]) for given in self._whole if name in given) for name in names
        }

    def reached_from(self, blocks: Sequence[Block]) -> frozenset[str]:
        """The outputs that move when all of the blocks is masked: others need not be computed for them.

        Raises:
            StageError: there are none.
        """
        mask = [entry for block in blocks for entry in group_mask(block, range(block.groups))]
        with _masked(self.model, mask):
            moves = self._changes(frozenset(self._spread))
        names = frozenset(name for name, change in moves.items() if change > 0)
        if not names:
            raise StageError(
                f"prune: no output of the task depends on {blocks[0].prunable.tower}, so that nothing tells what may go"
                f"\n  Leave it whole (towers: {{{blocks[0].prunable.tower}: 1}}), or take importance: magnitude."
            )
        return names

    def change(self, mask: Mask, want: frozenset[str]) -> float:
        """How far a mask moves the wanted outputs, summed over outputs; 0 of a model that gives what it gave.

        Of logits the mean divergence of their softmax, KL(p || p') in nats. Of other outputs the share of their variance
        over examples that is lost, sum ||o' - o||^2 / sum ||o - mean o||^2, where the mean is over a batch: 1 of a model
        that gives the same for every example.
        """
        with _masked(self.model, mask):
            return sum(self._changes(want).values())

    def change_without(self, layer: Layer, want: frozenset[str]) -> float:
        """Likewise without a layer."""
        with without_layers(self.model, {layer}):
            return sum(self._changes(want).values())

    def given(self, batch: Batch, want: frozenset[str]) -> dict[str, Tensor]:
        """Run the model as it is now: the wanted outputs of examples, zero where their mask counts no token."""
        import torch

        masks = {name: f"{name.partition('.')[0]}.mask" for name in want if name.endswith(".logits")}
        masks = {name: mask for name, mask in masks.items() if mask in self.family.provides()}
        with torch.no_grad():
            found = self.family.outputs(self.model, batch, want | set(masks.values()))
        rows: dict[str, Any] = {name: found[name] for name in want if name in found}
        kept = {
            name: value
            for name, value in rows.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
        }
        for name, mask in masks.items():
            if name in kept and kept[name].shape[:2] == found[mask].shape and kept[name].dim() == 3:
                kept[name] = kept[name].masked_fill(found[mask].unsqueeze(-1) == 0, 0.0)
        return kept

    def _changes(self, want: Collection[str]) -> dict[str, float]:
        far = dict.fromkeys(want, 0.0)
        for batch, before in zip(self._batches, self._whole, strict=True):
            now = self.given(batch, frozenset(want))
            for name in far.keys() & now.keys():
                far[name] += _apart(name, now[name], before[name])
        return {name: min(value / (self._spread[name] or 1.0), OVERFLOW) for name, value in far.items()}


@contextmanager
def without_layers(model: nn.Module, layers: Collection[Layer]) -> Iterator[None]:
    """A model without some layers, for a while."""
    with ExitStack() as dropped:
        for stack in sorted({layer.stack for layer in layers}):
            count = len(model.get_submodule(stack))  # type: ignore[arg-type]
            kept = [index for index in range(count) if Layer(stack, index) not in layers]
            dropped.enter_context(layers_dropped(model, stack, kept))
        yield


def _spread(name: str, values: Tensor) -> float:
    """What distances are told in: the number of distributions, or the squared distance from the mean over a batch."""
    if _distributions(name, values):
        return float((values != 0).any(dim=-1).sum())  # rows that do not count are zero
    return _apart(name, values, values.mean(dim=0, keepdim=True).expand_as(values))


def _apart(name: str, now: Tensor, before: Tensor) -> float:
    """A sum over rows; infinite where one is finite and the other is not, as of a model that overflows."""
    both = now.isfinite()
    if bool((both != before.isfinite()).any()):
        return math.inf
    if _distributions(name, before):
        wanted, found = before.log_softmax(dim=-1), now.log_softmax(dim=-1)
        return float((wanted.exp() * (wanted - found))[both].double().sum())
    return float((now - before)[both].double().square().sum())


def _distributions(name: str, values: Tensor) -> bool:
    """Whether an output is logits of several classes: those of one are numbers."""
    return name.endswith(".logits") and values.shape[-1] > 1
