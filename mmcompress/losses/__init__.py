"""Losses: one file each, each a comparison of a student's outputs with a teacher's.

Outputs are named ``<part>.<what>``; shapes, with

- b: batch (examples), s: tokens, d: width, c: classes, l: layers

======================  =============  ===========================================================
name                    shape          meaning
======================  =============  ===========================================================
vision.embeds           [b, d]         L2-normalised embeddings of pictures (also audio., fusion.)
text.embeds             [b, d]         L2-normalised embeddings of texts
fusion.logit_scale      []             what similarities are multiplied with (already exponentiated)
fusion.logit_bias       []             what is added after that (SigLIP)
<part>.logits           [b, c]         class logits; [b, s, c] for sequences
<part>.mask             [b, s]         1 where a token counts
<part>.hidden_states    l x [b, s, d]  one per layer
<part>.attentions       l x [b, h, s, s]
======================  =============  ===========================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mmcompress.component import Component, Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Outputs = Mapping[str, Any]
"""What a model gave, by name: see the table above. Tensors, or tuples of tensors for per-layer outputs."""


class Loss(Component):
    """A weighted term of what a training stage minimises."""

    kind: ClassVar[str] = "losses"
    weight: float = Field(1.0, ge=0)

    def needs(self) -> frozenset[str]:
        """Names of the outputs that both student and teacher must give; checked when the recipe is read."""
        raise NotImplementedError

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """A trainable module for this loss (a projection where widths differ), or None. It is not part of the student."""
        return None

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """The loss, a scalar, without :attr:`weight`."""
        raise NotImplementedError


AnyLoss = Annotated[Loss, Slot("losses")]
