"""What the losses on embeddings share: the field that names them, projections, pairs that are alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BOTH = ("vision.embeds", "text.embeds")
Part = Annotated[str, Field(pattern=r"^[a-z_]+$")]


def _check(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not name.endswith(".embeds"):
            raise ValueError(f"expected embeddings such as 'vision.embeds', got {name!r}")
    if len(set(value)) < len(value):
        raise ValueError("expected each output once")
    return value


def embedded_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """The embeddings among outputs that belong to texts and to what they describe; None where there are no two."""
    found = set(names)
    sides = [side for side in ("vision.embeds", "audio.embeds") if side in found]
    return (sides[0], "text.embeds") if sides and "text.embeds" in found else None


class PairLoss(Loss):
    """Base of the losses that compare pairs of one side's inputs and of texts."""

    pair: tuple[Part, Part] = ("vision", "text")
    """The two parts whose embeddings are compared: ``[audio, text]`` of a model of sounds and texts."""

    @property
    def embeds(self) -> tuple[str, str]:
        """Names of both embeddings."""
        return f"{self.pair[0]}.embeds", f"{self.pair[1]}.embeds"

    @property
    def scaled(self) -> tuple[str, str, str]:
        """Names of both embeddings and of what their similarities are multiplied with."""
        return (*self.embeds, "fusion.logit_scale")


EmbeddingNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check)]
"""Names of embeddings, each once."""


def embedding_projections(names: Sequence[str], student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
    """Linear maps to the teacher's widths for the outputs of these names, or None where all widths are equal."""
    from mmcompress.losses._modules import Projections

    widths = {name: (student[name].shape[-1], teacher[name].shape[-1]) for name in names}
    return Projections(widths) if any(a != b for a, b in widths.values()) else None


def projected(name: str, student: Outputs, projection: torch.nn.Module | None) -> Tensor:
    """The student's embeddings [b, d] of a name, at the teacher's width."""
    value: Any = student[name]
    embeds: Tensor = value if projection is None else projection(name, value)
    return embeds


def alike(embeds: Tensor, others: Tensor | None = None, tolerance: float = 1e-6) -> Tensor:
    """Which embeddings are the same up to rounding: bool [r, b], by squared distance.

    Args:
        embeds: [r, d].
        others: [b, d]; ``embeds`` itself where absent, so that the diagonal is true.
        tolerance: largest squared distance.
    """
    # Near equality a product in single precision has lost all the digits that count.
    first = embeds.double()
    second = first if others is None else others.double()
    squares = first.square().sum(dim=-1)[:, None] + second.square().sum(dim=-1)[None]
    same: Tensor = squares - 2 * (first @ second.T) <= tolerance
    return same
