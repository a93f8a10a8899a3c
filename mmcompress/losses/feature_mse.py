"""Squared distance between the normalised embeddings of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class FeatureMSE(Loss):
    """The student's embeddings lie where the teacher's do; a trainable projection joins different widths."""

    outputs: tuple[str, ...] = Field(("vision.embeds", "text.embeds"), min_length=1)
    """The embeddings to compare; their terms add up."""

    @field_validator("outputs")
    @classmethod
    def _embeddings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.endswith(".embeds"):
                raise ValueError(f"expected embeddings such as 'vision.embeds', got {name!r}")
        if len(set(value)) < len(value):
            raise ValueError("expected each output once")
        return value

    def needs(self) -> frozenset[str]:
        """The embeddings that are compared."""
        return frozenset(self.outputs)

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """Linear maps to the teacher's width, or None where all widths are equal."""
        from mmcompress.losses._modules import Projections

        widths = {name: (student[name].shape[-1], teacher[name].shape[-1]) for name in self.outputs}
        return Projections(widths) if any(a != b for a, b in widths.values()) else None

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """The sum of :func:`feature_mse` over the outputs."""
        terms = [
            feature_mse(student[name] if projection is None else projection(name, student[name]), teacher[name])
            for name in self.outputs
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


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
