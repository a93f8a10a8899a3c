"""What the losses on logits share: their fields, and what they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from mmcompress.losses import Loss, Outputs
from mmcompress.losses._layers import check_shapes
from mmcompress.losses._top_k import grouped, likeliest_of

if TYPE_CHECKING:
    from torch import Tensor


class LogitsLoss(Loss):
    """A loss that compares class probabilities, per example or per token."""

    temperature: float = Field(2.0, gt=0)
    """Divides the logits; the larger, the more the unlikely classes count."""
    output: str = Field("fusion.logits", pattern=r"^[a-z][a-z0-9_]*\.logits$")
    """The logits, [b, c] or [b, s, c]."""
    top_k: int | None = Field(None, ge=1)
    """Of many classes, the teacher's likeliest that are compared one by one; all others are one outcome more, so that a
    stored teacher keeps these alone. Where there are no more classes than that, all are compared."""
    mask: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*\.mask$")
    """For sequences, the output that tells which tokens or frames count (``decoder.mask``); all do where it is absent."""

    def needs(self) -> frozenset[str]:
        """The logits, and the mask where one is named."""
        return frozenset({self.output} if self.mask is None else {self.output, self.mask})

    def kept_classes(self) -> Mapping[str, int]:
        """The logits, where ``top_k`` is given."""
        return {} if self.top_k is None else {self.output: self.top_k}

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
        """Both models' logits; with ``top_k`` those of the teacher's likeliest classes and of all others together.

        Raises:
            UsageError: they are of other tokens, frames or classes.
        """
        ours = student[self.output]
        found = None if self.top_k is None else likeliest_of(teacher, self.output, self.top_k)
        if found is not None:
            values, classes = found
            check_shapes(self.component_name(), self.output, ours[..., 0], classes[..., 0])
            if self.output in teacher:
                check_shapes(self.component_name(), self.output, ours, teacher[self.output])
            return grouped(ours, classes), values
        theirs = teacher[self.output]
        check_shapes(self.component_name(), self.output, ours, theirs)
        return ours, theirs
