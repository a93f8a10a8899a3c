"""Cosine distance between the embeddings of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcompress.losses import Loss, Outputs
from mmcompress.losses._embeddings import BOTH, EmbeddingNames, embedding_projections, projected

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Cosine(Loss):
    """The student's embeddings point where the teacher's do; a trainable projection joins different widths.

    Of normalised embeddings it is half of ``feature_mse``.
    """

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
        """The sum of :func:`cosine` over the outputs."""
        import torch

        return torch.stack([cosine(projected(name, student, projection), teacher[name]) for name in self.outputs]).sum()


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of both vectors (DistilBERT, arXiv:1910.01108, section 2, "cosine embedding loss").

    Args:
        student: embeddings [b, d] of any length.
        teacher: the same shape.

    Returns:
        A scalar between 0 and 2, averaged over the batch.
    """
    from torch.nn.functional import cosine_similarity

    return 1 - cosine_similarity(student, teacher, dim=-1).mean()
