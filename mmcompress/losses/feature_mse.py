"""Squared distance between the normalised embeddings of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcompress.losses import Loss, Outputs
from mmcompress.losses._embeddings import BOTH, EmbeddingNames, embedding_projections, projected

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class FeatureMSE(Loss):
    """The student's embeddings lie where the teacher's do; a trainable projection joins different widths."""

    outputs: EmbeddingNames = BOTH
    """The embeddings to compare; their terms add up."""

    def needs(self) -> frozenset[str]:
        """The embeddings that are compared."""
        return frozenset(self.outputs)

    def accumulates(self) -> bool:
        """Yes: a mean over examples."""
        return True

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """Linear maps to the teacher's width, or None where all widths are equal."""
        return embedding_projections(self.outputs, student, teacher)

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """The sum of :func:`feature_mse` over the outputs."""
        import torch

        terms = [feature_mse(projected(name, student, projection), teacher[name]) for name in self.outputs]
        return torch.stack(terms).sum()


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Feature distillation (CLIP-KD, arXiv:2307.12732, "Feature Distillation"): mean over the batch of ||teacher - student||^2.

    Args:
        student: L2-normalised embeddings [b, d].
        teacher: L2-normalised embeddings [b, d].

    Returns:
        A scalar between 0 and 4: 2 - 2 cos of each pair, averaged. CLIP-KD's published code also averages over the
        width and weights the term with 2000: that is a weight of 2000 / d here (about 4 at width 512).
    """
    return (student - teacher).square().sum(dim=-1).mean()
