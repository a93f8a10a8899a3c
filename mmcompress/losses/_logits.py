"""What the losses on logits share: their fields, and what they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mmcompress.errors import UsageError
from mmcompress.losses import Loss, Outputs
from mmcompress.losses._layers import check_shapes
from mmcompress.losses._schedule import ScheduledAboveZero
from mmcompress.losses._top_k import grouped, likeliest_of

if TYPE_CHECKING:
    from torch import Tensor


class LogitsLoss(Loss):
    """A loss that compares class probabilities, per example or per token."""

    temperature: ScheduledAboveZero = 2.0
    """Divides the logits; the larger, the more the unlikely classes count. ``{from: 4, to: 1, schedule: cosine}`` changes
    it from step to step."""
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

    def count_needs(self) -> frozenset[str]:
        """The mask, where one is named."""
        return frozenset() if self.mask is None else frozenset({self.mask})

    def mask_of(self, student: Outputs) -> Tensor | None:
        """[b, s], or None. Both models saw the same tokens, so that the student's mask serves."""
        mask: Tensor | None = None if self.mask is None else student[self.mask]
        return mask

    def whole_logits(self, student: Outputs, teachers: Sequence[Outputs]) -> list[Tensor]:
        """The logits of each of several teachers.

        Raises:
            UsageError: they are of other tokens, frames or classes than the student's, or not all classes were kept.
        """
        for teacher in teachers:
            if self.output not in teacher:
                raise UsageError(
                    f"{self.component_name()}: the likeliest classes of several teachers are not the same ones\n"
                    "  Leave out top_k, or use teacher_outputs: online."
                )
            check_shapes(self.component_name(), self.output, student[self.output], teacher[self.output])
        return [teacher[self.output] for teacher in teachers]

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
