"""Kullback-Leibler divergence between the attention maps of student and teacher, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mmcompress.losses import Outputs
from mmcompress.losses._divergence import masked_mean
from mmcompress.losses._layers import LayerLoss, check_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class AttentionKL(LayerLoss):
    """Each token of the student looks where the teacher's looks. MiniLM compares the last layers alone: ``[-1]``.

    Attention maps come from eager attention (:meth:`attention`): the stage must not be told ``attention: sdpa``.
    """

    what: ClassVar[str] = "attentions"

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """The mean of :func:`attention_kl` over the pairs of layers.

        Raises:
            UsageError: a layer that is not there, not one counterpart for each, or models with other tokens.
        """
        import torch

        terms = []
        for ours, theirs in self.pairs(student, teacher):
            check_shapes(self.component_name(), self.output, ours[:, 0], theirs[:, 0])
            terms.append(attention_kl(ours, theirs, self.mask(student)))
        return torch.stack(terms).mean()


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Self-attention distribution transfer (MiniLM, arXiv:2002.10957, section 3.1): KL(teacher || student) of each row.

    Args:
        student: attention maps of a layer [b, h, s, s], each row over the keys adding up to 1.
        teacher: the same with any number of heads; where the numbers differ, both maps are averaged over their heads.
        mask: [b, s], 1 where a query counts; all do where it is absent.

    Returns:
        A scalar: summed over the keys, averaged over the heads and over the queries that count.
    """
    import torch

    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
    # Keys that a mask hides have exactly no weight, in both models; their term is 0 log 0 = 0.
    least = torch.finfo(student.dtype).tiny
    rows = (teacher * (teacher.clamp(min=least).log() - student.clamp(min=least).log())).sum(dim=-1)
    return masked_mean(rows.mean(dim=1), mask)
