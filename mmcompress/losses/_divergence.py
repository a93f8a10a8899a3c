"""Divergences between two distributions, and means over the tokens that count: what several losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["forward", "reverse", "jensen_shannon"]
"""``forward``: KL(teacher || student); ``reverse``: KL(student || teacher); ``jensen_shannon``: the mean of both models'
KL from the mean of both distributions."""


def divergence(student: Tensor, teacher: Tensor, direction: Direction = "forward") -> Tensor:
    """The divergence of distributions over the last axis.

    Args:
        student: logarithms of probabilities [..., c].
        teacher: the same shape.
        direction: ``forward`` is sum p_t (log p_t - log p_s), ``reverse`` the other way round (Kullback and Leibler, 1951);
            ``jensen_shannon`` is KL(p_t || m) / 2 + KL(p_s || m) / 2 with m = (p_t + p_s) / 2 (Lin, 1991, equation 4.1
            with equal weights): symmetric, at most log 2, and near equality a quarter of either KL.

    Returns:
        [...]: summed over the c outcomes.
    """
    import math

    import torch
    from torch.nn.functional import kl_div

    def kl(of: Tensor, against: Tensor) -> Tensor:
        # kl_div(input, target) is KL(target || input).
        return kl_div(against, of, reduction="none", log_target=True).sum(dim=-1)

    if direction == "forward":
        return kl(teacher, student)
    if direction == "reverse":
        return kl(student, teacher)
    middle = torch.logaddexp(student, teacher) - math.log(2)
    return (kl(teacher, middle) + kl(student, middle)) / 2


def masked_mean(each: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of ``each`` [b, ...] over all of it, or over what counts by a mask of the same shape; 0 where nothing does.

    Raises:
        ValueError: a mask of another shape.
    """
    if mask is None:
        return each.mean()
    if mask.shape != each.shape:
        raise ValueError(f"the mask is {list(mask.shape)}; expected {list(each.shape)}, one number per token")
    counts = mask.to(each.dtype)
    return (each * counts).sum() / counts.sum().clamp(min=1)
