"""Losses over all pairs of a batch, a block of rows at a time, so that no [b, b] matrix is ever held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WHOLE_BATCH = 4096
"""Batches of at most as many examples are computed in one block: [4096, 4096] numbers are 64 MiB."""
BLOCK_NUMBERS = 2**21
"""Numbers in a block [r, b] of a larger batch: 8 MiB, of which a loss holds about twenty at a time."""

Term = Callable[..., "Tensor"]
"""``term(block, *tensors)``: what a slice of the rows adds to the loss, a scalar."""


def summed_over_rows(term: Term, tensors: Sequence[Tensor], *, rows: int | None = None) -> Tensor:
    """The sum of ``term`` over blocks of rows, with gradients.

    Rows are independent given all embeddings, so the softmax of a row is whole within its block. As in GradCache
    (arXiv:2101.06983, section 3.2) the gradients with respect to the embeddings are computed block by block while the loss
    is, and each block's graph is freed before the next: memory grows with b (d + block), not with b^2.

    Args:
        term: called with a slice of the b rows and the tensors.
        tensors: the first is [b, ...]; gradients flow to those that require them.
        rows: rows per block; by default all of a batch of up to :data:`WHOLE_BATCH`, else as :data:`BLOCK_NUMBERS` says.

    Returns:
        A scalar, the same as ``term`` of all rows up to rounding. Differentiable once.
    """
    import torch

    count = len(tensors[0])
    if rows is None:
        rows = count if count <= WHOLE_BATCH else max(1, BLOCK_NUMBERS // count)
    if rows >= count:
        return term(slice(0, count), *tensors)
    differentiate = torch.is_grad_enabled()
    leaves = [tensor.detach().requires_grad_(differentiate and tensor.requires_grad) for tensor in tensors]
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for first in range(0, count, rows):
        part = term(slice(first, min(first + rows, count)), *leaves)
        total += part.detach()
        if part.requires_grad:
            part.backward()  # type: ignore[no-untyped-call]
    result = total.to(tensors[0].dtype)
    for tensor, leaf in zip(tensors, leaves, strict=True):
        if leaf.grad is not None:
            # Zero in value; its gradient is the one that the blocks added up.
            result = result + ((tensor - tensor.detach()) * leaf.grad).sum()
    return result
