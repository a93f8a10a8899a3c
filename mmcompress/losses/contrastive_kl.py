"""Kullback-Leibler divergence between the image-text similarities of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Direction = Literal["forward", "reverse"]
Sides = Literal["both", "image_to_text", "text_to_image"]


class ContrastiveKL(Loss):
    """The student ranks the texts of a batch for each picture, and the pictures for each text, as the teacher does."""

    temperature: float = Field(2.0, gt=0)
    """Divides the similarities, after each model's own learned scale."""
    direction: Direction = "forward"
    """``forward`` is KL(teacher || student), ``reverse`` is KL(student || teacher)."""
    sides: Sides = "both"
    """Over the texts of each picture (``image_to_text``), the pictures of each text, or the mean of the two."""

    def needs(self) -> frozenset[str]:
        """Both embeddings and the scale. A bias shifts all similarities alike, and a softmax does not see it."""
        return frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`contrastive_kl` of the two models' similarities."""
        names = ("vision.embeds", "text.embeds", "fusion.logit_scale")
        return contrastive_kl(
            similarities(*(student[name] for name in names)),
            similarities(*(teacher[name] for name in names)),
            temperature=self.temperature,
            direction=self.direction,
            sides=self.sides,
        )


def similarities(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """[b, d], [b, d] and [] to [b, b]: row i holds the scaled similarities of picture i to every text."""
    return scale * image @ text.T


def contrastive_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 2.0,
    direction: Direction = "forward",
    sides: Sides = "both",
) -> Tensor:
    """Contrastive relational distillation (CLIP-KD, arXiv:2307.12732, "Contrastive Relational
    Distillation"), with Hinton's temperature.

    Args:
        student: scaled similarities [b, b] (row: picture, column: text).
        teacher: the same of the teacher, [b, b].
        temperature: T; the result is multiplied with T^2, so that gradients keep their size (arXiv:1503.02531).
        direction: ``forward``: KL(teacher || student); ``reverse``: KL(student || teacher).
        sides: softmax over rows (``image_to_text``), over columns (``text_to_image``), or the mean of both.

    Returns:
        A scalar: summed over the b alternatives, averaged over the b pictures or texts (``batchmean``).
    """
    from mmcompress.losses.logits_kl import logits_kl

    terms = []
    if sides != "text_to_image":
        terms.append(logits_kl(student, teacher, temperature=temperature, direction=direction))
    if sides != "image_to_text":
        terms.append(logits_kl(student.T, teacher.T, temperature=temperature, direction=direction))
    return terms[0] if len(terms) == 1 else (terms[0] + terms[1]) / 2
