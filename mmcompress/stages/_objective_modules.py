"""What is trained: the student with the projections of its losses, and the weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcompress.families import Family
from mmcompress.losses import Loss, Outputs
from mmcompress.losses._embeddings import embedded_pair
from mmcompress.losses._schedule import Ramp, fixed
from mmcompress.losses.task import Task


@dataclass(frozen=True)
class Term:
    """A loss under its name, as it is at a step."""

    name: str
    loss: Loss
    weight: float


def asked_by(terms: Sequence[Term]) -> frozenset[str]:
    """Outputs of the teachers that some losses read."""
    return frozenset[str]().union(*(term.loss.needs() for term in terms))


class Objective(torch.nn.Module):
    """The student, the projections of its losses, and the weighted sum of the losses as its forward."""

    accepts_loss_kwargs = False

    def __init__(
        self,
        family: Family,
        student: torch.nn.Module,
        losses: Sequence[Loss],
        want: frozenset[str],
        shares: Sequence[float] = (1.0,),
    ) -> None:
        """``shares``: how much each teacher counts, the main one first."""
        super().__init__()
        self.family = family
        self.student = student
        self.losses = tuple(losses)
        self.names = term_names(losses)
        self.want = want
        self.shares = tuple(shares)
        self.mixes = bool(want & family.mixing())
        """Whether outputs of an example depend on the other examples of its batch, which is never split then."""
        fields = (getattr(loss, name) for loss in losses for name in type(loss).model_fields)
        self.scheduled = any(isinstance(value, Ramp) for value in fields)
        """Whether a weight or a temperature changes in the course of the training."""
        self.projections = torch.nn.ModuleDict()
        self.done = 0.0
        """Share of the training that is done, which schedules of losses follow."""

    def add_projections(self, inputs: Mapping[str, Tensor], teachers: Sequence[Outputs], seed: int) -> None:
        """Ask each loss for its projection, with outputs of one batch; their first weights follow from the seed."""
        with torch.no_grad():
            outputs = self.outputs(inputs)
        device = next(self.student.parameters()).device
        for index, (name, loss) in enumerate(zip(self.names, self.losses, strict=True)):
            if isinstance(loss, Task):
                continue
            for number, teacher in enumerate(teachers):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed + index + 1000 * number)
                    made = loss.projection(outputs, teacher)
                if made is not None:
                    self.projections[_key(name, number)] = made.to(device)

    def terms(self) -> list[Term]:
        """The losses as they are now; what follows a schedule has its value."""
        now = [loss.at(self.done) for loss in self.losses]
        return [Term(name, loss, fixed(loss.weight)) for name, loss in zip(self.names, now, strict=True)]

    def asks(self) -> frozenset[str]:
        """Outputs of the teachers that the losses read."""
        return asked_by(self.terms())

    def outputs(self, inputs: Mapping[str, Tensor], want: frozenset[str] | None = None) -> Outputs:
        """The student's outputs in FP32: similarities and logarithms need more digits than bf16 has."""
        found = self.family.outputs(self.student, inputs, self.want if want is None else want)
        return {name: _single(value) for name, value in found.items()}

    def value(self, term: Term, outputs: Outputs, inputs: Mapping[str, Tensor], teachers: Sequence[Outputs]) -> Tensor:
        """A loss without its weight, outside of autocast."""
        if isinstance(term.loss, Task):
            return self.family.task_loss(outputs, inputs)
        found = [self.projections[key] if key in self.projections else None for key in self._keys(term.name)]
        if len(teachers) == 1:
            return term.loss.compute(outputs, teachers[0], found[0])
        return term.loss.compute_several(outputs, teachers, self.shares, found)

    def _keys(self, name: str) -> list[str]:
        return [_key(name, number) for number in range(len(self.shares))]

    def forward(self, inputs: Mapping[str, Tensor], teachers: Sequence[Outputs]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its unweighted terms and ``retrieval`` (where there are embeddings), detached."""
        outputs = self.outputs(inputs)
        device = next(iter(inputs.values())).device
        terms: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            total = torch.zeros((), device=device)
            for term in self.terms():
                value = self.value(term, outputs, inputs, teachers)
                total = total + term.weight * value
                terms[term.name] = value.detach()
            pair = embedded_pair(outputs)
            if not self.training and pair is not None:
                terms["retrieval"] = in_batch_retrieval(*(outputs[name] for name in pair))
        return total, terms


def _key(name: str, teacher: int) -> str:
    return f"{name}_of_teacher_{teacher + 1}" if teacher else name


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
