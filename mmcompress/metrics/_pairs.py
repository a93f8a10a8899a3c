"""Which two sides metrics of embeddings compare: pictures (or films) with texts, or sounds with texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from mmcompress.metrics import Subject
from mmcompress.metrics._quality import Quality

if TYPE_CHECKING:
    from typing import Self  # not in the Python 3.10 of some devices

Side = Literal["embed_image", "embed_audio"]
SIDES: dict[Side, tuple[str, str]] = {"embed_image": ("image", "picture"), "embed_audio": ("audio", "sound")}
"""By request: how rows call the side, and the column that tells equal inputs."""
_FILMS = ("frames",)


class Pairs(Quality):
    """Base of the metrics that compare embeddings of texts with those of pictures or of sounds."""

    texts: ClassVar[str] = "embed_text"

    request: Side | None = None
    """What is compared with the texts; None takes what the model embeds."""

    def fitted(self, offered: frozenset[str]) -> Self:
        """With :attr:`request` filled in: sounds where the model embeds sounds and no pictures."""
        if self.request is not None:
            return self
        sounds = "embed_audio" in offered and "embed_image" not in offered
        return self.model_copy(update={"request": "embed_audio" if sounds else "embed_image"})

    @property
    def side(self) -> Side:
        """The request that is compared with the texts."""
        return self.request or "embed_image"

    def needs(self) -> frozenset[str]:
        """Embeddings of both sides."""
        return frozenset({self.side, self.texts})

    def equal_by(self, subjects: Sequence[Subject]) -> str:
        """The column that tells which inputs are equal: of pictures, films or sounds."""
        films = any(item.name == self.side and item.inputs == _FILMS for item in subjects[0].family.requests)
        return "film" if films else SIDES[self.side][1]
