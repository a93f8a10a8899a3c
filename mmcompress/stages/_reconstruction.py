"""Reconstruction: what a layer gave of all channels it gives, as nearly as it can, of those that are left.

The heads and units of a block stand in for each other, so that much of what the ones that go added can be had from the ones
that stay. Before channels go, the weights of the layers that take them are set anew by least squares (He et al.,
arXiv:1707.06168, section 3.1), from the front to the back of a tower, each on what the layers before it give by then, so that
errors do not pile up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmcompress.stages._choice import Plan
from mmcompress.stages._pruning import Block
from mmcompress.stages._removing import Found, least_of
from mmcompress.stages._sensitivity import (
    Progress,
    TaskOutputs,
    head_width_mask,
    mask_parameters,
    silent,
    without_layers,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmcompress.stages._importance import Scores
    from mmcompress.stages._sensitivity import Batch

ROWS = 8192
"""Tokens that a layer is fitted on at least, where the examples have as many."""
EXAMPLES = 128
"""Examples that they are taken from at least, evenly from each batch: those of one hour-long sound would tell little."""
RIDGE = 0.01
"""How strongly weights are drawn to what they were, in mean squares of an input: what the tokens do not tell stays."""


def reconstruct(
    found: Found,
    plans: Mapping[str, Plan],
    scores: Scores,
    outputs: TaskOutputs,
    batches: Iterable[Batch],
    progress: Progress = silent,
) -> None:
    """Set the weights of the layers that take what the plans leave; those of what goes become zero.

    What a layer is to give is what it gave in the whole model. The width of the residual stream is not made up for: what it
    loses is an input of nearly every layer. Layers that are not called as modules (attention of one fused operator) or whose
    weights are tied stay as they are, which the notes tell.

    Args:
        found: The blocks of the model, whose weights are changed in place.
        plans: What is left of each tower.
        scores: The order in which groups go.
        outputs: Of the model: those that a tower moves are what is computed of it.
        batches: Examples to fit on; of more than are needed the last are not read.
        progress: Called with how much is done.

    Raises:
        StageError: no output depends on a tower.
    """
    model = found.dependencies.model
    towers = {name: [b for b in found.dependencies.blocks if b.prunable.tower == name] for name in plans}
    reached = {name: outputs.reached_from(blocks) for name, blocks in towers.items()}
    stay = {name: [b for b in blocks if b.layer not in plans[name].dropped] for name, blocks in towers.items()}
    layers = {name: model.get_submodule(name) for blocks in stay.values() for b in blocks for name in b.consumers}
    everything = frozenset[str]().union(*reached.values())
    whole, seen = _run(layers, outputs, everything, batches, inputs=False, until_enough=True)
    total, done = sum(map(len, stay.values())), 0
    tied = _tied(model)
    for name, plan in plans.items():
        for block in stay[name]:
            if plan.sizes.get(block.name, block.size) < block.size:
                mask = head_width_mask(block, scores, block.size - plan.sizes[block.name], values=False)
                mask_parameters(model, mask)
        left = [b for b in stay[name] if all(c in whole and f"{c}.weight" not in tied for c in b.consumers)]
        if len(left) < len(stay[name]):
            others = ", ".join(block.name for block in stay[name] if block not in left)
            found.notes.append(f"not reconstructed, as layers are tied or not called as modules: {others}")
        changed = bool(plan.dropped)
        order = list(whole)
        with without_layers(model, plan.dropped):
            for block in sorted(left, key=lambda block: order.index(block.consumers[0])):
                kept = _kept(block, plan, scores)
                changed = changed or len(kept) < block.channels or plan.sizes.get(block.name, block.size) < block.size
                if changed:
                    consumers = {consumer: layers[consumer] for consumer in block.consumers}
                    now, _ = _run(consumers, outputs, reached[name], seen, inputs=True)
                    for consumer in block.consumers:
                        _fit(layers[consumer], block.columns(consumer), kept, now[consumer], whole[consumer])
                done += 1
                progress(done, total)


def _tied(model: nn.Module) -> set[str]:
    """The names of parameters that have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for some in names.values() if len(some) > 1 for name in some}


def _kept(block: Block, plan: Plan, scores: Scores) -> list[int]:
    """The channels of a block that a plan leaves, of those that its consumers take."""
    gone = set(least_of(scores[block.name], block.groups - plan.groups[block.name]))
    size = plan.sizes.get(block.name, block.size)
    kept = []
    for group in range(block.groups):
        start = group * block.size
        narrowed: set[int] = set()
        if size < block.size:
            values = scores[f"{block.name}.values"][start : start + block.size]
            narrowed = set(least_of(values, block.size - size))
        if group not in gone:
            kept += [start + channel for channel in range(block.size) if channel not in narrowed]
    return kept


def _fit(layer: nn.Module, columns: slice, kept: Sequence[int], inputs: Tensor, outputs: Tensor) -> None:
    """Weights of the kept ones of some columns that give outputs [n, o] of inputs [n, c] by least squares.

    Weights of the other ones of these columns become zero, those of columns beside them stay.
    """
    import torch

    weight, bias = layer.get_parameter("weight"), dict(layer.named_parameters()).get("bias")
    own = [columns.start + channel for channel in kept]
    beside = [index for index in range(weight.shape[1]) if not columns.start <= index < columns.stop]
    taken, before = inputs[:, own].double(), weight.detach()[:, own].T.double()
    wanted = outputs.double() - inputs[:, beside].double() @ weight.detach()[:, beside].T.double()
    # By mean squares about zero: of inputs that hardly change, noise would else be made large to tell what it cannot.
    ridge = RIDGE * float(taken.square().sum(dim=0).mean())
    if ridge == 0:
        return  # inputs that are zero tell nothing
    means = (taken.mean(dim=0), wanted.mean(dim=0)) if bias is not None else None
    if means is not None:
        taken, wanted = taken - means[0], wanted - means[1]
    products = taken.T @ taken
    damped = products + ridge * torch.eye(len(own), dtype=torch.float64)
    made = torch.linalg.solve(damped, taken.T @ wanted + ridge * before)
    with torch.no_grad():
        weight[:, columns] = 0
        weight[:, own] = made.T.to(weight.dtype)
        if bias is not None and means is not None:
            bias.copy_(means[1] - means[0] @ made)


# --- running -------------------------------------------------------------------------------------------------------


def _run(
    layers: Mapping[str, nn.Module],
    outputs: TaskOutputs,
    want: frozenset[str],
    batches: Iterable[Batch],
    *,
    inputs: bool,
    until_enough: bool = False,
) -> tuple[dict[str, Tensor], list[Batch]]:
    """What layers take, or give, in the order in which they are called, [n, c]; with the batches that were run.

    Tokens are taken evenly from all of a call, the same ones in each run.
    """
    import torch

    rows: dict[str, list[Tensor]] = {}
    seen: list[Batch] = []
    examples = 0

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], made: Tensor) -> None:
            values = ((*given, *named.values())[0] if inputs else made).detach()
            flat = values.reshape(-1, values.shape[-1])
            most = max(1, ROWS * _size(seen[-1]) // EXAMPLES)
            rows.setdefault(name, []).append(flat[torch.linspace(0, len(flat) - 1, min(most, len(flat))).long()])

        return hook

    handles = [layer.register_forward_hook(keep(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        for batch in batches:
            seen.append(batch)
            outputs.given(batch, want)
            examples += _size(batch)
            fewest = min((sum(map(len, found)) for found in rows.values()), default=0)
            if until_enough and examples >= EXAMPLES and fewest >= ROWS:
                break
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(found) for name, found in rows.items()}, seen


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))
