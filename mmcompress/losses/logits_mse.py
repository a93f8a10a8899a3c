"""Squared distance between the logits, or the numbers, of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mmcompress.losses import Loss, Outputs
from mmcompress.losses._divergence import masked_mean
from mmcompress.losses._layers import check_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class LogitsMSE(Loss):
    """The student's logits are the teacher's: for numbers, and for classes whose unlikely ones shall count too."""

    output: str = Field("fusion.logits", pattern=r"^[a-z][a-z0-9_]*\.logits$")
    """The logits or numbers, [b, c] or [b, s, c]."""
    mask: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*\.mask$")
    """For sequences, the output that tells which tokens count; all do where it is absent."""
    scale: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*\.scale$")
    """The teacher's output that distances are divided by: a standard deviation of the numbers, so that no unit matters."""

    def needs(self) -> frozenset[str]:
        """The logits, and the mask and the scale where they are named."""
        return frozenset(name for name in (self.output, self.mask, self.scale) if name is not None)

    def accumulates(self) -> bool:
        """Yes: a mean over examples, or over the tokens that count."""
        return True

    def count(self, student: Outputs) -> Tensor:
        """Examples, tokens, or tokens that count."""
        import torch

        if self.mask is not None:
            counted: Tensor = student[self.mask].sum()
            return counted
        return torch.tensor(float(student[self.output][..., 0].numel()))

    def count_needs(self) -> frozenset[str]:
        """The mask, where one is named."""
        return frozenset() if self.mask is None else frozenset({self.mask})

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`logits_mse`, with the student's mask and the teacher's scale.

        Raises:
            UsageError: the models give logits of other tokens or classes.
        """
        ours, theirs = student[self.output], teacher[self.output]
        check_shapes(self.component_name(), self.output, ours, theirs)
        mask = None if self.mask is None else student[self.mask]
        return logits_mse(ours, theirs, mask=mask, scale=None if self.scale is None else teacher[self.scale])


def logits_mse(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """Half the squared distance of the logits (Ba and Caruana, arXiv:1312.6184, equation 1), averaged over the examples.

    Args:
        student: [b, c] or [b, s, c].
        teacher: the same shape.
        mask: [b, s], 1 where a token counts; for [b, s, c] alone.
        scale: [], what both are divided by; 1 where absent.

    Returns:
        A scalar: summed over the classes, averaged over the examples or over the tokens that count.
    """
    if mask is not None and student.ndim != 3:
        raise ValueError(f"a mask [b, s] needs logits [b, s, c], got {list(student.shape)}")
    apart = student - teacher if scale is None else (student - teacher) / scale
    return masked_mean(0.5 * apart.square().sum(dim=-1), mask)
