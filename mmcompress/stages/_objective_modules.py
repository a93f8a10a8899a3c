"""What is trained: the student with the projections of its losses, and the weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcompress.families import Family
from mmcompress.losses import Loss, Outputs
from mmcompress.losses._embeddings import embedded_pair
from mmcompress.losses.task import Task


class Objective(torch.nn.Module):
    """The student, the projections of its losses, and the weighted sum of the losses as its forward."""

    accepts_loss_kwargs = False

    def __init__(self, family: Family, student: torch.nn.Module, losses: Sequence[Loss], want: frozenset[str]) -> None:
        super().__init__()
        self.family = family
        self.student = student
        self.losses = tuple(losses)
        self.names = term_names(losses)
        self.want = want
        self.projections = torch.nn.ModuleDict()

    def add_projections(self, inputs: Mapping[str, Tensor], teacher: Outputs, seed: int) -> None:
        """Ask each loss for its projection, with outputs of one batch; their first weights follow from the seed."""
        with torch.no_grad():
            outputs = self.family.outputs(self.student, inputs, self.want)
        for index, (name, loss) in enumerate(zip(self.names, self.losses, strict=True)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + index)
                made = None if isinstance(loss, Task) else loss.projection(outputs, teacher)
            if made is not None:
                self.projections[name] = made.to(next(self.student.parameters()).device)

    def forward(self, inputs: Mapping[str, Tensor], teacher: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its unweighted terms and ``retrieval`` (where there are embeddings), detached."""
        outputs = self.family.outputs(self.student, inputs, self.want)
        device = next(iter(inputs.values())).device.type
        terms: dict[str, Tensor] = {}
        # Similarities and logarithms need more digits than bf16 has.
        with torch.autocast(device, enabled=False):
            outputs = {name: _single(value) for name, value in outputs.items()}
            total = torch.zeros((), device=next(iter(inputs.values())).device)
            for name, loss in zip(self.names, self.losses, strict=True):
                if isinstance(loss, Task):
                    value = self.family.task_loss(outputs, inputs)
                else:
                    value = loss.compute(outputs, teacher, self.projections[name] if name in self.projections else None)
                total = total + loss.weight * value
                terms[name] = value.detach()
            pair = embedded_pair(outputs)
            if not self.training and pair is not None:
                terms["retrieval"] = in_batch_retrieval(*(outputs[name] for name in pair))
        return total, terms


def _single(value: Any) -> Any:
    return tuple(item.float() for item in value) if isinstance(value, (tuple, list)) else value.float()


def term_names(losses: Sequence[Loss]) -> list[str]:
    """A name per loss: that of its file, numbered where it comes twice."""
    names: list[str] = []
    plain = [loss.component_name() for loss in losses]
    for index, name in enumerate(plain):
        before = plain[:index].count(name)
        names.append(f"{name}_{before + 1}" if before else name)
    return names


def in_batch_retrieval(image: Tensor, text: Tensor) -> Tensor:
    """Share of pictures whose own text is nearest, and of texts likewise, averaged: [b, d] and [b, d] to []."""
    similar = image.detach() @ text.detach().T
    own = similar.diagonal()
    # A repeated text is as near as one's own: a tie is no miss.
    rows = own >= similar.amax(dim=1) - 1e-6
    columns = own >= similar.amax(dim=0) - 1e-6
    return (rows.float().mean() + columns.float().mean()) / 2
