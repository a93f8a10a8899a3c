"""Squared distance between the hidden states of student and teacher, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mmcompress.losses import Outputs
from mmcompress.losses._divergence import masked_mean
from mmcompress.losses._layers import LayerLoss, check_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class HiddenMSE(LayerLoss):
    """The student's layers give what their counterparts in the teacher give; trainable projections join other widths."""

    what: ClassVar[str] = "hidden_states"

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """A linear map to the teacher's width for each pair of layers whose widths differ; None where none do.

        Raises:
            UsageError: a layer that is not there, or not one counterpart for each.
        """
        from mmcompress.losses._modules import LayerProjections

        widths = [(ours.shape[-1], theirs.shape[-1]) for ours, theirs in self.pairs(student, teacher)]
        return LayerProjections(widths) if any(a != b for a, b in widths) else None

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """The mean of :func:`hidden_mse` over the pairs of layers.

        Raises:
            UsageError: a layer that is not there, not one counterpart for each, or models with other tokens.
        """
        import torch

        terms = []
        for pair, (ours, theirs) in enumerate(self.pairs(student, teacher)):
            check_shapes(self.component_name(), self.output, ours[..., 0], theirs[..., 0])
            states = ours if projection is None else projection(pair, ours)
            terms.append(hidden_mse(states, theirs, self.mask(student)))
        return torch.stack(terms).mean()


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden states based distillation (TinyBERT, arXiv:1909.10351, equation 8): MSE(H_s W, H_t).

    Args:
        student: hidden states of a layer [b, s, d], already at the teacher's width.
        teacher: the same shape.
        mask: [b, s], 1 where a token counts; all do where it is absent.

    Returns:
        A scalar: averaged over the width and over the tokens that count.
    """
    return masked_mean((student - teacher).square().mean(dim=-1), mask)
