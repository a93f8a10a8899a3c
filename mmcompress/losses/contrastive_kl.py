"""Kullback-Leibler divergence between the image-text similarities of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mmcompress.losses import Outputs
from mmcompress.losses._chunked import WHOLE_BATCH, summed_over_rows
from mmcompress.losses._divergence import Direction
from mmcompress.losses._embeddings import PairLoss
from mmcompress.losses._mixture import mixed
from mmcompress.losses._schedule import ScheduledAboveZero, fixed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Sides = Literal["both", "image_to_text", "text_to_image"]


class ContrastiveKL(PairLoss):
    """The student ranks the texts of a batch for each picture, and the pictures for each text, as the teacher does."""

    temperature: ScheduledAboveZero = 8.0
    """Divides the similarities, after each model's own learned scale. ``{from: 4, to: 1, schedule: cosine}`` changes it
    from step to step. Of 1, 2, 4 and 8 in both directions the default did best (``benchmarks/distillation.py``)."""
    direction: Direction = "reverse"
    """``forward`` is KL(teacher || student), ``reverse`` is KL(student || teacher), ``jensen_shannon`` lies between."""
    sides: Sides = "both"
    """Over the texts of each picture (``image_to_text``), the pictures of each text, or the mean of the two."""

    def needs(self) -> frozenset[str]:
        """Both embeddings and the scale. A bias shifts all similarities alike, and a softmax does not see it."""
        return frozenset(self.scaled)

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`contrastive_kl` of the two models' similarities; in blocks where the batch is large."""
        ours, theirs = ([outputs[name] for name in self.scaled] for outputs in (student, teacher))
        if len(ours[0]) > WHOLE_BATCH:
            return contrastive_kl_in_blocks(
                ours, theirs, temperature=fixed(self.temperature), direction=self.direction, sides=self.sides
            )
        return contrastive_kl(
            similarities(*ours),
            similarities(*theirs),
            temperature=fixed(self.temperature),
            direction=self.direction,
            sides=self.sides,
        )

    def compute_several(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        shares: Sequence[float],
        projections: Sequence[torch.nn.Module | None],
    ) -> Tensor:
        """:func:`contrastive_kl` from the mixtures of the teachers' distributions over the texts, and over the pictures."""
        return contrastive_kl_in_blocks(
            [student[name] for name in self.scaled],
            [teacher[name] for teacher in teachers for name in self.scaled],
            shares=shares,
            temperature=fixed(self.temperature),
            direction=self.direction,
            sides=self.sides,
        )


def similarities(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """[b, d], [b, d] and [] to [b, b]: row i holds the scaled similarities of picture i to every text."""
    return scale * image @ text.T


def contrastive_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 2.0,
    direction: Direction = "forward",
    sides: Sides = "both",
) -> Tensor:
    """Contrastive relational distillation (CLIP-KD, arXiv:2307.12732, "Contrastive Relational
    Distillation"), with Hinton's temperature.

    Args:
        student: scaled similarities [b, b] (row: picture, column: text).
        teacher: the same of the teacher, [b, b].
        temperature: T; the result is multiplied with T^2, so that gradients keep their size (arXiv:1503.02531).
        direction: ``forward``: KL(teacher || student); ``reverse``: KL(student || teacher); ``jensen_shannon``: see
            :func:`mmcompress.losses._divergence.divergence`.
        sides: softmax over rows (``image_to_text``), over columns (``text_to_image``), or the mean of both.

    Returns:
        A scalar: summed over the b alternatives, averaged over the b pictures or texts (``batchmean``).
    """
    from mmcompress.losses.logits_kl import logits_kl

    terms = []
    if sides != "text_to_image":
        terms.append(logits_kl(student, teacher, temperature=temperature, direction=direction))
    if sides != "image_to_text":
        terms.append(logits_kl(student.T, teacher.T, temperature=temperature, direction=direction))
    return terms[0] if len(terms) == 1 else (terms[0] + terms[1]) / 2


def contrastive_kl_in_blocks(
    student: list[Tensor],
    teacher: list[Tensor],
    *,
    temperature: float = 2.0,
    direction: Direction = "forward",
    sides: Sides = "both",
    shares: Sequence[float] = (1.0,),
    rows: int | None = None,
) -> Tensor:
    """:func:`contrastive_kl` of similarities that are made, and differentiated, a block of rows at a time.

    Args:
        student: its pictures [b, d] and texts [b, d], L2-normalised, and its scale [].
        teacher: the same of the teacher, of any width; of several teachers one after the other.
        temperature: as there.
        direction: as there.
        sides: as there.
        shares: of several teachers, how much each counts; they add up to 1. The student follows the mixture of their
            distributions (:func:`mmcompress.losses._mixture.mixed`).
        rows: rows per block, see :func:`mmcompress.losses._chunked.summed_over_rows`.
    """
    from mmcompress.losses.logits_kl import logits_kl

    count = len(student[0])

    def target(block: slice, theirs: Sequence[Tensor], first: int, second: int) -> Tensor:
        each = [theirs[3 * k + 2] * theirs[3 * k + first][block] @ theirs[3 * k + second].T for k in range(len(shares))]
        return each[0] if len(each) == 1 else mixed(each, shares, temperature)

    def term(block: slice, *tensors: Tensor) -> Tensor:
        (image, text, scale), theirs = tensors[:3], tensors[3:]
        pairs = []
        if sides != "text_to_image":
            pairs.append((scale * image[block] @ text.T, target(block, theirs, 0, 1)))
        if sides != "image_to_text":
            pairs.append((scale * text[block] @ image.T, target(block, theirs, 1, 0)))
        kls = [logits_kl(ours, theirs, temperature=temperature, direction=direction) for ours, theirs in pairs]
        return sum(kls[1:], kls[0]) * (len(pairs[0][0]) / (count * len(kls)))

    return summed_over_rows(term, [*student, *teacher], rows=rows)
