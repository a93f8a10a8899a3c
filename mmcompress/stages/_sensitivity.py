"""Sensitivity: how far a model's outputs move when so much of a block, or a whole layer, is masked.

Importance ranks the groups of one block. What all that goes matters together does not follow from it: the units of a
feed-forward layer stand in for each other, the first of many is missed less than the last, and a sum of importances says
neither. So each block is masked step by step, least important groups first, and the outputs are compared with those of the
whole model, as ZipLM and SPDY weigh layers by what their own cuts cost (arXiv:2302.04089, arXiv:2201.13096).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmcompress.families import Family
from mmcompress.stages._choice import Tower
from mmcompress.stages._pruning import Block, Layer, head_width_blocks
from mmcompress.stages._removing import least_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmcompress.stages._importance import Scores

    Batches = Sequence[Mapping[str, Tensor]]
    Floats = NDArray[np.float64]

SHARES = (0.25, 0.5, 0.7, 0.85, 0.95, 1.0)
"""Of what may go of a block. The last units are missed most, so the steps grow smaller towards the end."""
FEW = 8
"""Of so few options, such as a number of heads, every one is measured."""
Zeros = Iterable[tuple[str, int, Sequence[int]]]
"""A parameter, an axis of it, and what is zero along it."""
Told = Callable[[int, int], None]
"""Hears how much is done, of how much."""


def silent(done: int, of: int) -> None:
    """Hears nothing."""


def measured(tower: Tower, scores: Scores, outputs: Outputs, told: Told = silent) -> Tower:
    """A tower whose losses are what its blocks, the widths of its heads and its layers were measured to matter.

    Args:
        tower: With what may go, and its losses by importance, which tell what lies between measured counts.
        scores: The order in which groups go.
        outputs: Of the model that shall be cut.
        told: Called with how much is done.
    """
    blocks = [*tower.blocks, *([tower.width] if tower.width is not None else [])]
    layers = tower.all_layers() if tower.layers else []
    counts = {block.name: _steps(block.groups, tower.counts[block.name]) for block in blocks}
    narrowed = [block for block in tower.blocks if block.name in tower.sizes]
    sizes = {block.name: _steps(block.size, tower.sizes[block.name]) for block in narrowed}
    total = sum(map(len, counts.values())) + sum(map(len, sizes.values())) + len(layers)
    outputs = outputs.reached_from(tower.blocks)
    done = 0

    def moved(zeros: Zeros) -> float:
        nonlocal done
        done += 1
        told(done, total)
        return outputs.moved(zeros)

    losses = {
        block.name: curve(
            tower.losses[block.name],
            {k: moved(_masks(block, least_of(scores[block.name], k))) for k in counts[block.name]},
        )
        for block in blocks
    }
    size_losses = {
        block.name: curve(
            tower.size_losses[block.name], {k: moved(narrower(block, scores, k)) for k in sizes[block.name]}
        )
        for block in narrowed
    }
    return replace(
        tower,
        losses=losses,
        size_losses=size_losses,
        layer_losses={layer: moved(without(layer, tower.blocks)) for layer in layers} if layers else None,
    )


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


def _masks(block: Block, gone: Sequence[int]) -> Zeros:
    channels = [group * block.size + offset for group in gone for offset in range(block.size)]
    return [(name, axis, channels) for name, axis in block.masks]


def narrower(block: Block, scores: Scores, gone: int, *, values: bool = True) -> Zeros:
    """All heads without their least important channels, as :func:`._removing.cut_head_width` takes them.

    Channels of queries and keys, and, with ``values``, of values.
    """
    zeros: list[tuple[str, int, Sequence[int]]] = []
    for part in head_width_blocks(block)[: 2 if values else 1]:
        heads = np.reshape(scores[part.name], (-1, block.size))
        channels = [head * block.size + c for head, row in enumerate(heads) for c in least_of(row.tolist(), gone)]
        zeros += _masks(part, channels)
    return zeros


def without(layer: Layer, blocks: Iterable[Block]) -> Zeros:
    """All that a layer adds to the residual stream, with the biases of what adds it."""
    zeros: list[tuple[str, int, Sequence[int]]] = []
    for block in blocks:
        if block.layer == layer:
            zeros += _masks(block, range(block.groups))
            zeros += [(f"{name}.bias", 0, ()) for name in block.consumers]
    return zeros


def zero(model: nn.Module, zeros: Zeros) -> dict[str, Tensor]:
    """Set zeros in parameters (all of one where no place is named); gives what these were.

    Names of biases that a layer has not do nothing.
    """
    import torch

    known = dict(model.named_parameters(remove_duplicate=False))
    before: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, axis, places in zeros:
            if name not in known:
                continue
            before.setdefault(name, known[name].detach().clone())
            if places:
                known[name].index_fill_(axis, torch.tensor(places), 0.0)
            else:
                known[name].zero_()
    return before


@contextmanager
def _zeroed(model: nn.Module, zeros: Zeros) -> Iterator[None]:
    import torch

    before = zero(model, zeros)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in before.items():
                model.get_parameter(name).copy_(values)


# --- how far outputs move ------------------------------------------------------------------------------------------


class Outputs:
    """What a model gives for some examples, and how far that moves when parameters are masked."""

    def __init__(self, family: Family, model: nn.Module, batches: Batches) -> None:
        """Of the outputs that the family's task reads, those of each example are compared."""
        self._family, self._model, self._batches = family, model, batches
        self._spread = dict.fromkeys(family.task_needs(), 0.0)
        self._whole = list(self.passes())
        names = sorted(set[str]().union(*self._whole))
        self._spread = {name: sum(_spread(given[name]) for given in self._whole if name in given) for name in names}

    def reached_from(self, blocks: Iterable[Block]) -> Outputs:
        """Those alone that move when all of the blocks is masked, so that towers beside theirs need not run."""
        moves = self._moves([zero for block in blocks for zero in _masks(block, range(block.groups))])
        limited = copy.copy(self)
        limited._spread = {name: self._spread[name] for name, far in moves.items() if far > 0}
        return limited

    def over(self, batches: Batches) -> Outputs:
        """The same of other examples, of which the model can be run and nothing is compared."""
        other = copy.copy(self)
        other._batches, other._whole = batches, []
        return other

    def passes(self) -> Iterator[dict[str, Tensor]]:
        """Run the model as it is now, batch by batch; gives what it gives."""
        import torch

        for batch in self._batches:
            with torch.no_grad():
                given = self._family.outputs(self._model, batch, frozenset(self._spread))
            rows = {name: value for name, value in given.items() if isinstance(value, torch.Tensor) and value.dim() > 1}
            yield {name: value for name, value in rows.items() if value.is_floating_point()}

    def moved(self, zeros: Zeros) -> float:
        """The share of the outputs' variance over examples that is lost, summed over outputs.

        Per output sum ||o' - o||^2 / sum ||o - mean o||^2, where the mean is over a batch: 0 of a model that gives what it
        gave, 1 of one that gives the same for every example.
        """
        return sum(self._moves(zeros).values())

    def _moves(self, zeros: Zeros) -> dict[str, float]:
        with _zeroed(self._model, zeros):
            far = dict.fromkeys(self._spread, 0.0)
            for now, before in zip(self.passes(), self._whole, strict=True):
                for name in far.keys() & now.keys():
                    far[name] += _apart(now[name], before[name])
        return {name: value / (self._spread[name] or 1.0) for name, value in far.items()}


def _spread(values: Tensor) -> float:
    """Sum of squared distances from the mean over a batch."""
    return _apart(values, values.mean(dim=0, keepdim=True).expand_as(values))


def _apart(one: Tensor, other: Tensor) -> float:
    """Sum of squared differences, of what is finite in both: masked logits are not."""
    both = one.isfinite() & other.isfinite()
    return float((one - other)[both].double().square().sum())
