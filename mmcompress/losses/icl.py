"""Interactive contrastive learning: the student's pictures meet the teacher's texts, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ICL(Loss):
    """InfoNCE between each tower of the student and the other tower of the teacher, at the teacher's learned scale."""

    def needs(self) -> frozenset[str]:
        """Both embeddings and the scale."""
        return frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """Linear maps to the teacher's widths, or None where they are equal."""
        from mmcompress.losses._modules import Projections

        widths = {name: (student[name].shape[-1], teacher[name].shape[-1]) for name in ("vision.embeds", "text.embeds")}
        return Projections(widths) if any(a != b for a, b in widths.values()) else None

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`icl` of the (projected) student's embeddings."""
        image, text = (
            student[name] if projection is None else projection(name, student[name])
            for name in ("vision.embeds", "text.embeds")
        )
        return icl(image, text, teacher["vision.embeds"], teacher["text.embeds"], teacher["fusion.logit_scale"])


def icl(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Tensor) -> Tensor:
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

    Returns:
        A scalar: the mean of cross entropy of the student's pictures against the teacher's texts and of the student's
        texts against the teacher's pictures, each averaged over the batch.
    """
    from torch.nn.functional import cross_entropy

    same = (alike(teacher_text) | alike(teacher_image)).to(image.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    pictures = cross_entropy(scale * image @ teacher_text.T, target)
    texts = cross_entropy(scale * text @ teacher_image.T, target)
    return (pictures + texts) / 2


def alike(embeds: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Which embeddings are the same up to rounding: bool [b, b], true on the diagonal. ``embeds``: [b, d]."""
    import torch

    # Exact differences rather than 1 - cos: near equality, cos has lost half of its digits.
    distance: Tensor = torch.cdist(embeds, embeds, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square() <= tolerance
