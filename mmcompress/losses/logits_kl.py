"""Kullback-Leibler divergence between class logits of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from mmcompress.losses import Outputs
from mmcompress.losses._divergence import Direction, divergence, masked_mean
from mmcompress.losses._logits import LogitsLoss
from mmcompress.losses._mixture import mixed, mixed_independent
from mmcompress.losses._schedule import fixed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Outcomes = Literal["exclusive", "independent"]


class LogitsKL(LogitsLoss):
    """The student's class probabilities follow the teacher's, softened by a temperature."""

    direction: Direction = "forward"
    """``forward`` is KL(teacher || student), ``reverse`` is KL(student || teacher), ``jensen_shannon`` lies between."""
    outcomes: Outcomes = "exclusive"
    """``exclusive``: one of the classes (softmax); ``independent``: each class by itself (sigmoid), as models are trained
    by binary cross entropy."""

    @model_validator(mode="after")
    def _one_of_all(self) -> LogitsKL:
        if self.top_k is not None and self.outcomes == "independent":
            raise ValueError("top_k takes the unlikely classes together, which independent classes cannot be")
        return self

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`logits_kl`, with the student's mask.

        Raises:
            UsageError: the models give logits of other tokens, frames or classes.
        """
        ours, theirs = self.logits(student, teacher)
        return logits_kl(
            ours,
            theirs,
            temperature=fixed(self.temperature),
            direction=self.direction,
            outcomes=self.outcomes,
            mask=self.mask_of(student),
        )

    def compute_several(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        shares: Sequence[float],
        projections: Sequence[torch.nn.Module | None],
    ) -> Tensor:
        """:func:`logits_kl` from the mixture of the teachers' softened probabilities (averaged after the softmax).

        Raises:
            UsageError: as :meth:`compute`; teachers of whose classes the likeliest alone were kept.
        """
        mix = mixed if self.outcomes == "exclusive" else mixed_independent
        target = mix(self.whole_logits(student, teachers), shares, fixed(self.temperature))
        return self.compute(student, {**teachers[0], self.output: target}, None)


def logits_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 2.0,
    direction: Direction = "forward",
    outcomes: Outcomes = "exclusive",
    mask: Tensor | None = None,
) -> Tensor:
    """T^2 times a divergence of softened class probabilities (Hinton et al., arXiv:1503.02531, section 2).

    Args:
        student: logits z [b, c] or [b, s, c].
        teacher: the same shape.
        temperature: T; the factor T^2 keeps the size of the gradients.
        direction: ``forward``: KL(teacher || student); ``reverse``: KL(student || teacher); ``jensen_shannon``: see
            :func:`mmcompress.losses._divergence.divergence`.
        outcomes: ``exclusive``: probabilities softmax(z / T) of the c classes; ``independent``: c Bernoulli
            distributions with probability sigmoid(z / T), whose divergences p log(p / q) + (1 - p) log((1 - p) / (1 - q))
            add up. (The binary cross entropy of q against p is that plus the entropy of p.)
        mask: [b, s], 1 where a token counts; for [b, s, c] alone.

    Returns:
        A scalar: summed over the classes, averaged over the examples or over the tokens that count.
    """
    import torch
    from torch.nn.functional import log_softmax, logsigmoid

    if mask is not None and student.ndim != 3:
        raise ValueError(f"a mask [b, s] needs logits [b, s, c], got {list(student.shape)}")

    def logarithms(logits: Tensor) -> Tensor:
        softened = logits / temperature
        if outcomes == "exclusive":
            return log_softmax(softened, dim=-1)
        return torch.stack([logsigmoid(softened), logsigmoid(-softened)], dim=-1)

    each = divergence(logarithms(student), logarithms(teacher), direction)
    if outcomes == "independent":
        each = each.sum(dim=-1)
    return masked_mean(each, mask) * temperature**2
