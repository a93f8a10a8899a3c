"""TinyCLIP's affinity mimicking: cross entropy between the image-text affinities of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcompress.losses import Outputs
from mmcompress.losses._chunked import summed_over_rows
from mmcompress.losses._embeddings import PairLoss

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Affinity(PairLoss):
    """The student's affinities of pictures with texts, and of texts with pictures, are the teacher's.

    It is ``contrastive_kl`` forward at temperature 1 plus the entropy of the teacher's affinities, which is constant: the
    gradients are the same, the value does not end at 0.
    """

    def needs(self) -> frozenset[str]:
        """Both embeddings and the scale."""
        return frozenset(self.scaled)

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`affinity` of the two models' embeddings."""
        return affinity(*(outputs[name] for outputs in (student, teacher) for name in self.scaled))


def affinity(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor,
    *,
    rows: int | None = None,
) -> Tensor:
    """Affinity mimicking (TinyCLIP, arXiv:2309.12314, section 3, "Affinity Mimicking").

    A_I2T[i, j] = exp(scale I_i T_j) / sum_k exp(scale I_i T_k), and A_T2I likewise over the pictures of each text; the
    loss is CE(A_I2T student, A_I2T teacher) and CE(A_T2I student, A_T2I teacher). The paper adds the two; its published
    code takes their mean, and so does this.

    Args:
        image: the student's pictures, L2-normalised [b, d].
        text: the student's texts, L2-normalised [b, d].
        scale: what the student's similarities are multiplied with (one over the paper's temperature), [].
        teacher_image: [b, d], of any width.
        teacher_text: [b, d].
        teacher_scale: [].
        rows: rows per block, see :func:`mmcompress.losses._chunked.summed_over_rows`.

    Returns:
        A scalar: summed over the b alternatives, averaged over the b pictures and texts.
    """
    from torch.nn.functional import cross_entropy

    def term(block: slice, *tensors: Tensor) -> Tensor:
        (image, text, scale), (teacher_image, teacher_text, teacher_scale) = tensors[:3], tensors[3:]
        of_images = (teacher_scale * teacher_image[block] @ teacher_text.T).softmax(dim=-1)
        of_texts = (teacher_scale * teacher_text[block] @ teacher_image.T).softmax(dim=-1)
        image_to_text = cross_entropy(scale * image[block] @ text.T, of_images, reduction="sum")
        text_to_image = cross_entropy(scale * text[block] @ image.T, of_texts, reduction="sum")
        return (image_to_text + text_to_image) / (2 * len(image))

    return summed_over_rows(term, [image, text, scale, teacher_image, teacher_text, teacher_scale], rows=rows)
