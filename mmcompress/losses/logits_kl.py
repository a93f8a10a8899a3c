"""Kullback-Leibler divergence between class logits of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Direction = Literal["forward", "reverse"]


class LogitsKL(Loss):
    """The student's class probabilities follow the teacher's, softened by a temperature."""

    temperature: float = Field(2.0, gt=0)
    direction: Direction = "forward"
    """``forward`` is KL(teacher || student), ``reverse`` is KL(student || teacher)."""
    output: str = Field("fusion.logits", pattern=r"^[a-z_]+\.logits$")
    """The logits, [b, c] or [b, s, c]."""
    mask: str | None = Field(None, pattern=r"^[a-z_]+\.mask$")
    """For sequences, the output that tells which tokens count (``decoder.mask``); all do where it is absent."""

    def needs(self) -> frozenset[str]:
        """The logits, and the mask where one is named."""
        return frozenset({self.output} if self.mask is None else {self.output, self.mask})

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`logits_kl`; both models saw the same tokens, so that the student's mask serves."""
        return logits_kl(
            student[self.output],
            teacher[self.output],
            temperature=self.temperature,
            direction=self.direction,
            mask=None if self.mask is None else student[self.mask],
        )


def logits_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 2.0,
    direction: Direction = "forward",
    mask: Tensor | None = None,
) -> Tensor:
    """T^2 KL of softened class probabilities (Hinton et al., arXiv:1503.02531, section 2).

    Args:
        student: logits [b, c] or [b, s, c].
        teacher: the same shape.
        temperature: T; the factor T^2 keeps the size of the gradients.
        direction: ``forward``: KL(teacher || student); ``reverse``: KL(student || teacher).
        mask: [b, s], 1 where a token counts; for [b, s, c] alone.

    Returns:
        A scalar: summed over the classes, averaged over the examples or over the tokens that count.
    """
    from torch.nn.functional import kl_div, log_softmax

    if mask is not None and student.ndim != 3:
        raise ValueError(f"a mask [b, s] needs logits [b, s, c], got {tuple(student.shape)}")
    of_student = log_softmax(student / temperature, dim=-1)
    of_teacher = log_softmax(teacher / temperature, dim=-1)
    # kl_div(input, target) is KL(target || input).
    first, second = (of_student, of_teacher) if direction == "forward" else (of_teacher, of_student)
    each = kl_div(first, second, reduction="none", log_target=True).sum(dim=-1)
    scale = temperature**2
    if mask is None:
        return each.mean() * scale
    counts = mask.to(each.dtype)
    return (each * counts).sum() / counts.sum().clamp(min=1) * scale
