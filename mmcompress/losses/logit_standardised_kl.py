"""Kullback-Leibler divergence between standardised logits: the student follows their order and ratios, not their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmcompress.losses import Outputs
from mmcompress.losses._logits import LogitsLoss
from mmcompress.losses._mixture import mixed
from mmcompress.losses._schedule import fixed
from mmcompress.losses.logits_kl import logits_kl

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALLEST_VARIANCE = 1e-14
"""Keeps constant logits from a division by zero; the paper's published code adds 1e-7 to the deviation."""


class LogitStandardisedKL(LogitsLoss):
    """KL of logits that are standardised first: a small student need not reach the size of the teacher's logits.

    The paper's base temperature is 2; it divides what was standardised.
    """

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`logit_standardised_kl`, with the student's mask.

        Raises:
            UsageError: the models give logits of other tokens, frames or classes.
        """
        ours, theirs = self.logits(student, teacher)
        return logit_standardised_kl(ours, theirs, temperature=fixed(self.temperature), mask=self.mask_of(student))

    def compute_several(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        shares: Sequence[float],
        projections: Sequence[torch.nn.Module | None],
    ) -> Tensor:
        """The same from the mixture of the teachers' distributions, each of standardised logits.

        Raises:
            UsageError: as :meth:`compute`; teachers of whose classes the likeliest alone were kept.
        """
        temperature = fixed(self.temperature)
        theirs = [standardised(one) for one in self.whole_logits(student, teachers)]
        target = mixed(theirs, shares, temperature)
        return logits_kl(
            standardised(student[self.output]), target, temperature=temperature, mask=self.mask_of(student)
        )


def standardised(logits: Tensor) -> Tensor:
    """Z-scores over the classes: (z - mean) / standard deviation, [..., c]; zeros where all logits are equal."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    scores: Tensor = centred / (centred.square().mean(dim=-1, keepdim=True) + SMALLEST_VARIANCE).sqrt()
    return scores


def logit_standardised_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, mask: Tensor | None = None
) -> Tensor:
    """Logit standardisation (Sun et al., arXiv:2403.01427, algorithms 1 and 2): T^2 KL(teacher || student) of the Z-scores.

    The deviation is the paper's, over c; its published code divides by c - 1, which amounts to a temperature that is
    sqrt(c / (c - 1)) times as large.

    Args:
        student: logits [b, c] or [b, s, c].
        teacher: the same shape.
        temperature: T, after the standardisation.
        mask: [b, s], 1 where a token counts; for [b, s, c] alone.

    Returns:
        A scalar: summed over the classes, averaged over the examples or over the tokens that count. It does not change
        when a model's logits are multiplied with a positive number or shifted.
    """
    return logits_kl(standardised(student), standardised(teacher), temperature=temperature, mask=mask)
