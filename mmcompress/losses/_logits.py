"""What the losses on logits share: their fields, and what they count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mmcompress.losses import Loss, Outputs
from mmcompress.losses._layers import check_shapes

if TYPE_CHECKING:
    from torch import Tensor


class LogitsLoss(Loss):
    """A loss that compares class probabilities, per example or per token."""

    temperature: float = Field(2.0, gt=0)
    """Divides the logits; the larger, the more the unlikely classes count."""
    output: str = Field("fusion.logits", pattern=r"^[a-z][a-z0-9_]*\.logits$")
    """The logits, [b, c] or [b, s, c]."""
    mask: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*\.mask$")
    """For sequences, the output that tells which tokens or frames count (``decoder.mask``); all do where it is absent."""

    def needs(self) -> frozenset[str]:
        """The logits, and the mask where one is named."""
        return frozenset({self.output} if self.mask is None else {self.output, self.mask})

    def accumulates(self) -> bool:
        """Yes: a mean over examples, or over the tokens that count."""
        return True

    def count(self, student: Outputs) -> Tensor:
        """Examples, tokens, or tokens that count."""
        import torch

        mask = self.mask_of(student)
        return torch.tensor(float(student[self.output][..., 0].numel())) if mask is None else mask.sum()

    def mask_of(self, student: Outputs) -> Tensor | None:
        """[b, s], or None. Both models saw the same tokens, so that the student's mask serves."""
        mask: Tensor | None = None if self.mask is None else student[self.mask]
        return mask

    def logits(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both models' logits.

        Raises:
            UsageError: they are of other tokens, frames or classes.
        """
        ours, theirs = student[self.output], teacher[self.output]
        check_shapes(self.component_name(), self.output, ours, theirs)
        return ours, theirs
