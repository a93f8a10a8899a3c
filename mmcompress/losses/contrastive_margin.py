"""A linear margin on the cosine distance of matching and non-matching pairs of pictures and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mmcompress.losses import Outputs
from mmcompress.losses._chunked import summed_over_rows
from mmcompress.losses._embeddings import PairLoss, alike

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ContrastiveMargin(PairLoss):
    """The student's matching pairs lie close together, and its non-matching pairs at least a margin apart.

    Every picture of a batch is paired with every text. The teacher tells which match besides the picture's own: examples
    whose texts, or whose pictures, it embeds alike. So an equal text is no negative.
    """

    margin: float = Field(0.5, gt=0, le=2)
    """Cosine distance, 0 to 2, from which on a non-matching pair costs nothing."""

    def needs(self) -> frozenset[str]:
        """Both embeddings: the student's are moved, the teacher's tell which examples are equal."""
        return frozenset(self.embeds)

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """:func:`contrastive_margin`."""
        image, text, teacher_image, teacher_text = (
            outputs[name] for outputs in (student, teacher) for name in self.embeds
        )
        return contrastive_margin(image, text, teacher_image, teacher_text, margin=self.margin)


def contrastive_margin(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    margin: float = 0.5,
    rows: int | None = None,
) -> Tensor:
    """The margin loss of matching and non-matching pairs (Hadsell et al., CVPR 2006, equation 4), linear in the distance.

    With the cosine distance D = 1 - cos(picture, text): D for a matching pair, max(0, margin - D) for any other. Per pair
    that is torch's ``cosine_embedding_loss`` with a margin of 1 - ``margin``. Hadsell squares both terms.

    Args:
        image: the student's pictures, L2-normalised [b, d].
        text: the student's texts, L2-normalised [b, d].
        teacher_image: the teacher's pictures [b, e]; equal ones make their examples match.
        teacher_text: the teacher's texts [b, f]; likewise.
        margin: distance that non-matching pairs shall have.
        rows: rows per block, see :func:`mmcompress.losses._chunked.summed_over_rows`.

    Returns:
        A scalar: for each picture the mean over its matching texts plus the mean over the others (0 where there are none),
        averaged over the pictures. So a few matching pairs weigh as much as all others.
    """

    def term(block: slice, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
        match = alike(teacher_text[block], teacher_text) | alike(teacher_image[block], teacher_image)
        matching = match.to(image.dtype)
        distance = 1 - image[block] @ text.T
        near = (distance * matching).sum(dim=1) / matching.sum(dim=1)
        others = 1 - matching
        far = ((margin - distance).clamp(min=0) * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
        return (near + far).sum() / len(image)

    return summed_over_rows(term, [image, text, teacher_image, teacher_text], rows=rows)
