"""Interactive contrastive learning: the student's pictures meet the teacher's texts, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcompress.losses import Outputs
from mmcompress.losses._chunked import summed_over_rows
from mmcompress.losses._embeddings import PairLoss, alike, embedding_projections, projected

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ICL(PairLoss):
    """InfoNCE between each tower of the student and the other tower of the teacher, at the teacher's learned scale."""

    def needs(self) -> frozenset[str]:
        """Both embeddings and the scale."""
        return frozenset(self.scaled)

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """Linear maps to the teacher's widths, or None where they are equal."""
        return embedding_projections(self.embeds, student, teacher)

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`icl` of the (projected) student's embeddings."""
        image, text = (projected(name, student, projection) for name in self.embeds)
        return icl(image, text, *(teacher[name] for name in self.scaled))


def icl(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Tensor,
    *,
    rows: int | None = None,
) -> Tensor:
    """Interactive contrastive learning (CLIP-KD, arXiv:2307.12732, "Interactive Contrastive Learning").

    CLIP-KD learns one more scale for these similarities; here it is the teacher's own, which is learned already.

    Examples whose texts, or whose pictures, have the same teacher embedding are positives of each other, and the target
    is spread evenly over them: a repeated caption is no negative.

    Args:
        image: the student's pictures, L2-normalised [b, d].
        text: the student's texts, L2-normalised [b, d].
        teacher_image: [b, d].
        teacher_text: [b, d].
        scale: what similarities are multiplied with, [].
        rows: rows per block, see :func:`mmcompress.losses._chunked.summed_over_rows`.

    Returns:
        A scalar: the mean of cross entropy of the student's pictures against the teacher's texts and of the student's
        texts against the teacher's pictures, each averaged over the batch.
    """
    from torch.nn.functional import cross_entropy

    def term(
        block: slice, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Tensor
    ) -> Tensor:
        same = alike(teacher_text[block], teacher_text) | alike(teacher_image[block], teacher_image)
        target = same / same.sum(dim=1, keepdim=True).to(image.dtype)
        pictures = cross_entropy(scale * image[block] @ teacher_text.T, target, reduction="sum")
        texts = cross_entropy(scale * text[block] @ teacher_image.T, target, reduction="sum")
        return (pictures + texts) / (2 * len(image))

    return summed_over_rows(term, [image, text, teacher_image, teacher_text, scale], rows=rows)
