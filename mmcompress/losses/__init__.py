"""Losses: one file each, each a comparison of a student's outputs with a teacher's.

Outputs are named ``<part>.<what>``; shapes, with

- b: batch (examples), s: tokens, d: width, c: classes, l: layers, h: heads

======================  ================  ==============================================================
name                    shape             meaning
======================  ================  ==============================================================
vision.embeds           [b, d]            L2-normalised embeddings of pictures (also audio., fusion., and each
                                          input of a fusion model by its name)
text.embeds             [b, d]            L2-normalised embeddings of texts
fusion.logit_scale      []                what similarities are multiplied with (already exponentiated)
fusion.logit_bias       []                what is added after that (SigLIP)
<part>.logits           [b, c]            class logits, or numbers in their unit; [b, s, c] for sequences
fusion.scale            []                the standard deviation of numbers in training
<input>.present         [b]               1 where an input of a fusion model is there
<part>.mask             [b, s]            1 where a token or frame counts
<part>.hidden_states    l x [b, s, d]     one per layer
<part>.attentions       l x [b, h, s, s]  after the softmax: one per layer, a row per query
======================  ================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mmcompress.component import Component, Slot
from mmcompress.losses._schedule import Ramp, Scheduled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Outputs = Mapping[str, Any]
"""What a model gave, by name: see the table above. Tensors, or tuples of tensors for per-layer outputs."""


class Loss(Component):
    """A weighted term of what a training stage minimises."""

    kind: ClassVar[str] = "losses"
    weight: Scheduled = 1.0
    """What the loss is multiplied with; ``{from: 1, to: 0, schedule: cosine}`` changes it from step to step."""

    def needs(self) -> frozenset[str]:
        """Names of the outputs that both student and teacher must give; checked when the recipe is read."""
        raise NotImplementedError

    def attention(self) -> Literal["eager"] | None:
        """The attention that both models must be loaded with: ``eager`` where maps are read, which SDPA does not give."""
        return "eager" if any(name.endswith(".attentions") for name in self.needs()) else None

    def kept_classes(self) -> Mapping[str, int]:
        """Outputs of the teacher of which this loss reads the likeliest classes alone, and how many.

        Their names may then come as :mod:`mmcompress.losses._top_k` says, where they were stored.
        """
        return {}

    def accumulates(self) -> bool:
        """Whether a batch's loss adds up from its parts: their mean, each weighted by :meth:`count`.

        False for a loss that compares the examples of a batch with each other: that one needs the outputs of the whole
        batch at once. It is also the answer that is never wrong, and so what a loss says that says nothing.
        """
        return False

    def count(self, student: Outputs) -> Tensor:
        """How many things :meth:`compute` takes the mean of in a batch, []: its examples, or the tokens that count."""
        import torch

        first = student[min(name for name in self.needs() if name != "fusion.logit_scale")]
        return torch.tensor(float(len(first[0] if isinstance(first, (tuple, list)) else first)))

    def count_needs(self) -> frozenset[str]:
        """Outputs that :meth:`count` reads; none where all examples of a batch count alike."""
        return frozenset() if type(self).count is Loss.count else self.needs()

    def at(self, done: float) -> Loss:
        """The loss when a share of the training is done, 0 to 1: what follows a schedule has its value."""
        now = {name: value.at(done) for name, value in self if isinstance(value, Ramp)}
        return self.model_copy(update=now) if now else self

    def projection(self, student: Outputs, teacher: Outputs) -> torch.nn.Module | None:
        """A trainable module for this loss (a projection where widths differ), or None. It is not part of the student."""
        return None

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """The loss, a scalar, without :attr:`weight`."""
        raise NotImplementedError

    def compute_several(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        shares: Sequence[float],
        projections: Sequence[torch.nn.Module | None],
    ) -> Tensor:
        """The loss against several teachers, whose shares add up to 1: here the weighted mean of their losses.

        A loss that compares distributions follows the mixture of the teachers' distributions instead.
        """
        import torch

        each = [
            share * self.compute(student, teacher, projection)
            for share, teacher, projection in zip(shares, teachers, projections, strict=True)
        ]
        return torch.stack(each).sum()


def kept_classes(losses: Sequence[Loss]) -> dict[str, int]:
    """Outputs of which no loss reads more than the likeliest classes, and how many of them the losses read at most."""
    found: dict[str, int] = {}
    for loss in losses:
        for name, k in loss.kept_classes().items():
            found[name] = max(k, found.get(name, 0))
    whole = {name for loss in losses for name in loss.needs() - loss.kept_classes().keys()}
    return {name: k for name, k in found.items() if name not in whole}


AnyLoss = Annotated[Loss, Slot("losses")]
