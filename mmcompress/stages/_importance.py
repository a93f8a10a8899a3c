"""How much each group of channels (an attention head, a feed-forward unit) matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcompress.data import Examples
from mmcompress.families import Family, Processor
from mmcompress.stages._pruning import Block

if TYPE_CHECKING:
    from torch import Tensor, nn

Scores = dict[str, list[float]]
"""Per block, one number per group; higher matters more."""


def magnitude(model: nn.Module, blocks: Sequence[Block]) -> Scores:
    """The L2 norm of all weights that make or take the channels of a group (without biases).

    Norms of different blocks do not compare: each block's are divided by their mean, so that a ranking over a tower
    weighs how uneven a block is.
    """
    import torch

    scores = {}
    with torch.no_grad():
        for block in blocks:
            squares = torch.zeros(block.groups, dtype=torch.float64)
            for name in block.producers:
                squares += _per_group(_weight(model, name).double().square().sum(dim=1), block)
            for name in block.consumers:
                squares += _per_group(_weight(model, name)[:, block.columns(name)].double().square().sum(dim=0), block)
            scores[block.name] = _relative(squares.sqrt().tolist())
    return scores


def uniform(blocks: Sequence[Block], seed: int) -> Scores:
    """Random numbers, the same for the same seed: the baseline that an importance has to beat."""
    generator = np.random.default_rng(seed)
    return {block.name: _relative((0.5 + generator.random(block.groups)).tolist()) for block in blocks}


def taylor(blocks: Sequence[Block], model: nn.Module, losses: Iterable[Tensor]) -> Scores:
    """The first-order change of the loss when a group is masked to zero, as an absolute value per example, mean over batches.

    Masking a group takes its channels a_g from the layers that take them, so the change is that of sum(a_g * dL/da_g) over
    an example's tokens and these layers, where dL/da_g is by way of the layer alone: Michel et al., arXiv:1905.10650, equation 2. Examples of a batch are told apart by the first axis of
    activations (of films, frames are); what one of them changes is a change of the loss of all, which contrastive losses
    are. No gradient is left anywhere.

    Args:
        blocks: The blocks to score.
        model: The model whose losses these are.
        losses: One scalar per batch, each with its graph; the model is run when the next is asked for.

    Raises:
        ValueError: there is no batch, or the model was run before.
    """
    import torch

    totals = {block.name: torch.zeros(block.groups, dtype=torch.float64) for block in blocks}
    batches = 0
    seen: list[tuple[Block, Tensor]] = []

    def keep(block: Block, values: Tensor) -> None:
        seen.append((block, values))

    with _activations(blocks, model, keep):
        for loss in losses:
            if not seen:
                raise ValueError("losses were computed before they were asked for, or depend on no activation")
            gradients = torch.autograd.grad(loss, [values for _, values in seen], allow_unused=True)
            changes: dict[tuple[str, int], Tensor] = {}
            for (block, values), gradient in zip(seen, gradients, strict=True):
                if gradient is not None:
                    product = (values.detach() * gradient).double()
                    change = product.reshape(len(product), -1, block.groups, block.size).sum(dim=(1, 3))
                    key = block.name, len(change)
                    changes[key] = changes[key] + change if key in changes else change
            for (name, _), change in changes.items():
                totals[name] += change.abs().sum(dim=0)
            seen.clear()
            batches += 1
    if batches == 0:
        raise ValueError("no batch to take gradients of")
    return {name: (total / batches).tolist() for name, total in totals.items()}


def obd(blocks: Sequence[Block], model: nn.Module, losses: Iterable[Tensor]) -> Scores:
    """The second-order change of the loss when a group is masked: half the sum of h_kk * w_k^2 over its weights.

    LeCun et al., Optimal Brain Damage, 1990, equation 3, with each h_kk by the empirical Fisher information, the mean
    square of the gradient over batches. Weights are those that :func:`taylor` sets to zero.

    Raises:
        ValueError: there is no batch.
    """
    import torch

    totals = {block.name: torch.zeros(block.groups, dtype=torch.float64) for block in blocks}
    batches = 0
    for gradients in _gradients(blocks, model, losses):
        for block in blocks:
            for _, axis, weight, gradient in _masks(block, model, gradients):
                totals[block.name] += _per_group(_over_others((weight * gradient).square() / 2, axis), block)
        batches += 1
    if batches == 0:
        raise ValueError("no batch to take gradients of")
    return {name: (total / batches).tolist() for name, total in totals.items()}


def activation(blocks: Sequence[Block], model: nn.Module, losses: Iterable[Tensor]) -> Scores:
    """The root mean square, over tokens, of the activations of a group's channels, relative to the block's mean.

    Activations are what the layers that take the channels are given; of queries and keys, what the query layer gives.
    ``losses`` drives the forward passes: their values are not read.

    Raises:
        ValueError: there is no batch.
    """
    import torch

    sums = {block.name: torch.zeros(block.groups, dtype=torch.float64) for block in blocks}
    counts = dict.fromkeys(sums, 0)

    def add(block: Block, values: Tensor) -> None:
        squares = values.detach().reshape(-1, values.shape[-1]).double().square()
        sums[block.name] += _per_group(squares.sum(dim=0), block)
        counts[block.name] += len(squares)

    with _activations(blocks, model, add):
        batches = sum(1 for _ in losses)
    if batches == 0:
        raise ValueError("no batch to run")
    return {name: _relative((total / max(1, counts[name])).sqrt().tolist()) for name, total in sums.items()}


@contextmanager
def _activations(blocks: Sequence[Block], model: nn.Module, hear: Callable[[Block, Tensor], None]) -> Iterator[None]:
    """While a model runs, each block with its activations, [..., channels]: what each layer that takes them is given.

    Of queries and keys, what the query layer gives. What is heard belongs to one layer alone, and so does its gradient.
    """
    import torch

    def taken(block: Block, columns: slice) -> Callable[..., Any]:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            first = given[0]
            if first.shape[-1] == block.channels:
                own = first.view_as(first)
                hear(block, own)
                return (own, *given[1:])
            before, after = first[..., : columns.start], first[..., columns.stop :]
            own = first[..., columns].clone()
            hear(block, own)
            return (torch.cat([before, own, after], dim=-1), *given[1:])

        return hook

    def made(block: Block) -> Callable[..., Any]:
        def hook(layer: nn.Module, given: tuple[Any, ...], made: Tensor) -> Tensor:
            own = made.view_as(made)
            hear(block, own)
            return own

        return hook

    handles = []
    for block in blocks:
        for name in block.consumers:
            layer = model.get_submodule(name)
            handles.append(layer.register_forward_pre_hook(taken(block, block.columns(name))))
        if not block.consumers:
            handles.append(model.get_submodule(block.producers[0]).register_forward_hook(made(block)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gradients(
    blocks: Sequence[Block], model: nn.Module, losses: Iterable[Tensor]
) -> Iterator[dict[str, Tensor | None]]:
    """Gradients of all that masks the blocks, by name, batch by batch; nothing is left on the model."""
    import torch

    known = dict(model.named_parameters(remove_duplicate=False))
    names = sorted({name for block in blocks for name, _ in block.masks if name in known})
    for loss in losses:
        found = torch.autograd.grad(loss, [known[name] for name in names], allow_unused=True)
        yield dict(zip(names, found, strict=True))


def _masks(
    block: Block, model: nn.Module, gradients: Mapping[str, Tensor | None]
) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    for name, axis in block.masks:
        gradient = gradients.get(name)
        if gradient is not None:
            weight = model.get_parameter(name).detach()
            if not block.masked:
                columns = block.columns(name.removesuffix(".weight"))
                weight, gradient = weight[:, columns], gradient[:, columns]
            yield name, axis, weight, gradient


def _over_others(values: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one, in FP64."""
    return values.double().movedim(axis, 0).flatten(1).sum(dim=1) if values.dim() > 1 else values.double()


def task_losses(
    family: Family, model: nn.Module, processor: Processor, examples: Examples, indices: Sequence[int], batch_size: int
) -> Iterator[Tensor]:
    """The family's own loss of batches of examples, in evaluation mode."""
    model.eval()
    needs = family.task_needs()
    for batch in batches(family, processor, examples, indices, batch_size):
        yield family.task_loss(family.outputs(model, batch, needs), batch)


def batches(
    family: Family, processor: Processor, examples: Examples, indices: Sequence[int], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Encoded batches of examples, as even as they can be."""
    for part in np.array_split(np.asarray(indices), max(1, round(len(indices) / batch_size))):
        yield encode(family, processor, [examples[int(index)].values for index in part])


def encode(family: Family, processor: Processor, values: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Examples as a batch of tensors; of texts that are alternatives the first is taken."""
    import torch

    columns: dict[str, list[Any]] = {}
    for name in sorted(family.columns):
        if name == "texts":
            columns["text"] = [value["texts"][0] for value in values]
        else:
            columns[name] = [value[name] for value in values]
    return {name: torch.from_numpy(array) for name, array in processor.encode(columns).items()}


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(f"{name}.weight")


def _per_group(channels: Tensor, block: Block) -> Tensor:
    return channels.view(block.groups, block.size).sum(dim=1)


def _relative(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [value / mean if mean else 1.0 for value in values]
