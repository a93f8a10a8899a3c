"""Several teachers as one: the mixture of their distributions, as logits that have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mixed(logits: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
    """Logits whose softmax at the temperature is the weighted mean of the teachers' softmaxes at that temperature.

    T log sum_k w_k softmax(z_k / T): the average is taken after the softmax, as Hinton et al. (arXiv:1503.02531,
    section 2) allow for an ensemble: an arithmetic mean of its members' distributions.

    Args:
        logits: [..., c] of each teacher.
        shares: w_k, which add up to 1.
        temperature: T.
    """
    import torch
    from torch.nn.functional import log_softmax

    each = [log_softmax(one / temperature, dim=-1) + math.log(share) for one, share in zip(logits, shares, strict=True)]
    return temperature * torch.stack(each).logsumexp(dim=0)


def mixed_independent(logits: Sequence[Tensor], shares: Sequence[float], temperature: float) -> Tensor:
    """Logits whose sigmoid at the temperature is the weighted mean of the teachers' sigmoids: T logit(sum_k w_k p_k)."""
    import torch
    from torch.nn.functional import logsigmoid

    def logarithm(sign: float) -> Tensor:
        each = [
            logsigmoid(sign * one / temperature) + math.log(share) for one, share in zip(logits, shares, strict=True)
        ]
        return torch.stack(each).logsumexp(dim=0)

    return temperature * (logarithm(1) - logarithm(-1))
