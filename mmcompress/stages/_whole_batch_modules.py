"""Loss and gradients of a whole batch, also where it is computed in parts, or by several processes.

Losses that compare the examples of a batch with each other see all of them at once (GradCache, Gao et al.,
arXiv:2101.06983, section 3.2): the outputs of the whole batch are computed first without a graph, then the loss and its
gradients with respect to these outputs, then each part again with a graph, through which its share of those gradients
flows. All other losses are means that add up from their parts, each weighted by what it counts (:meth:`Loss.count`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmcompress import _processes
from mmcompress.losses import Outputs
from mmcompress.losses.task import Task
from mmcompress.stages._objective_modules import Objective, Term, asked_by

Batch = Mapping[str, Any]
"""``inputs`` of the student, and what a teacher is fed or has answered: tensors by name, the first axis is the batch."""
BUCKET = 2**24
"""Numbers of gradients that are added up over the processes at a time."""


@dataclass(frozen=True)
class WholeBatch:
    """What gives the gradients of a step."""

    objective: Objective
    ask: Callable[[Batch, frozenset[str]], Sequence[Outputs]]
    """The teachers' outputs for a batch or a part of one: at least those that are wanted."""
    autocast: Callable[[], AbstractContextManager[Any]]

    def __call__(self, batch: Batch, parts: int = 1) -> dict[str, Tensor]:
        """Add the gradients of the batch's loss to those of the parameters, over all processes.

        Args:
            batch: this process's share of the batch.
            parts: in how many it is computed.

        Returns:
            ``loss`` and its unweighted terms, of the whole batch of all processes.
        """
        if parts == 1 and _processes.count() == 1:
            with self.autocast():
                total, terms = self.objective(batch["inputs"], self.ask(batch, self.objective.asks()))
            if total.requires_grad:
                total.backward()
            return {"loss": total.detach(), **terms}
        return _Step(self, batch, parts).run()


class _Step:
    """A step in parts, or of several processes."""

    def __init__(self, whole: WholeBatch, batch: Batch, parts: int) -> None:
        self.objective, self.whole, self.batch = whole.objective, whole, batch
        self.inputs: Mapping[str, Tensor] = batch["inputs"]
        self.size = len(next(iter(self.inputs.values())))
        self.parts = [cut(batch, rows, self.size) for rows in _slices(self.size, parts)]
        self.device = next(iter(self.inputs.values())).device
        terms = self.objective.terms()
        self.adding = [term for term in terms if self._adds_up(term)]
        self.comparing = [term for term in terms if term not in self.adding]

    def _adds_up(self, term: Term) -> bool:
        if isinstance(term.loss, Task):
            return self.objective.family.task_count(self.inputs) is not None
        return term.loss.accumulates()

    def _reads(self, terms: Sequence[Term]) -> frozenset[str]:
        family = self.objective.family
        needs = (family.task_needs() if isinstance(term.loss, Task) else term.loss.needs() for term in terms)
        return frozenset[str]().union(*needs)

    def run(self) -> dict[str, Tensor]:
        """See :meth:`WholeBatch.__call__`."""
        alone = len(self.parts) == 1
        uneven = [term for term in self.adding if not self._even(term)]
        compared = asked_by(self.comparing)
        states: list[list[Tensor]] = []
        given: list[Outputs] = []
        teachers: list[Sequence[Outputs]] = [()] * len(self.parts)
        if self.comparing or uneven:
            counted = frozenset[str]().union(*(term.loss.count_needs() or term.loss.needs() for term in uneven))
            want = self.objective.want if alone else self._reads(self.comparing) | counted
            for number, part in enumerate(self.parts):
                states.append(random_state())
                with torch.set_grad_enabled(alone), self.whole.autocast():
                    given.append(self.objective.outputs(part["inputs"], want))
                teachers[number] = self.whole.ask(part, compared)
        gradients, told = self._compare(given, teachers)
        counts = {term.name: self._counts(term, given) for term in self.adding}
        for number, part in enumerate(self.parts):
            if alone and given:
                outputs = given[0]
            else:
                if given:
                    replay(states[number])
                with self.whole.autocast():
                    outputs = self.objective.outputs(part["inputs"])
            more = asked_by(self.adding) - (compared if given else frozenset())
            asked = _merged(teachers[number], self.whole.ask(part, more)) if more else teachers[number]
            self._descend(number, part, outputs, asked, gradients, counts, told)
            given = [] if alone else given
        return self._told(told)

    # --- losses that compare the examples of a batch ---

    def _compare(
        self, given: Sequence[Outputs], teachers: Sequence[Sequence[Outputs]]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Gradients with respect to the outputs of this process's share of the batch, and the losses."""
        if not self.comparing:
            return {}, {}
        names = self._reads(self.comparing)
        own = {name: value for name, value in _join(given).items() if name in names or name.startswith("fusion.logit")}
        leaves = {name: _each(value, lambda one: _gathered(one).requires_grad_()) for name, value in own.items()}
        answers = [
            {name: _each(value, _gathered) for name, value in _join(of).items()} for of in zip(*teachers, strict=True)
        ]
        inputs = _Gathered(self.inputs)
        told: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for term in self.comparing:
                value = self.objective.value(term, leaves, inputs, answers)
                told[term.name] = value.detach()
                total = total + term.weight * value
        # Each process computes the same: a share of each, so that what is added up over the processes counts once.
        if total.requires_grad:
            (total / _processes.count()).backward()  # type: ignore[no-untyped-call]
        return {name: _each(value, self._own_gradient) for name, value in leaves.items()}, told

    def _own_gradient(self, leaf: Tensor) -> Tensor | None:
        if leaf.grad is None or leaf.ndim == 0:
            return leaf.grad
        first = _processes.rank() * self.size
        return leaf.grad[first : first + self.size] * _processes.count()

    # --- losses that add up ---

    def _even(self, term: Term) -> bool:
        """Whether every example counts alike, and so no output is needed to tell."""
        return isinstance(term.loss, Task) or (_processes.count() == 1 and not term.loss.count_needs())

    def _counts(self, term: Term, given: Sequence[Outputs]) -> Tensor:
        """What each part of the term weighs, [parts], of 1 for the batch of all processes."""
        if isinstance(term.loss, Task):
            found = [self.objective.family.task_count(part["inputs"]) for part in self.parts]
            counts = [one for one in found if one is not None]
        elif self._even(term):
            counts = [torch.tensor(float(len(next(iter(part["inputs"].values()))))) for part in self.parts]
        else:
            counts = [term.loss.count(outputs).detach() for outputs in given]
        each = torch.stack([one.to(self.device, torch.float32) for one in counts])
        return each / _processes.added_up(each.sum()).clamp(min=1)

    def _descend(
        self,
        number: int,
        part: Batch,
        outputs: Outputs,
        teachers: Sequence[Outputs],
        gradients: Mapping[str, Any],
        counts: Mapping[str, Tensor],
        told: dict[str, Tensor],
    ) -> None:
        """The gradients of a part: of its losses that add up, and of its share of those that compare."""
        total = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for term in self.adding:
                value = self.objective.value(term, outputs, part["inputs"], teachers) * counts[term.name][number]
                total = total + term.weight * value
                told[term.name] = told.get(term.name, 0.0) + value.detach()
            rows = self._rows(number)
            for name, gradient in gradients.items():
                for output, one in zip(_flat(outputs[name]), _flat(gradient), strict=True):
                    if one is None or not output.requires_grad:
                        continue
                    if output.ndim == 0:
                        total = total + output * one if number == 0 else total
                    else:
                        total = total + (output * _fitted(one[rows], output)).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]

    def _rows(self, number: int) -> slice:
        return _slices(self.size, len(self.parts))[number]

    def _told(self, told: dict[str, Tensor]) -> dict[str, Tensor]:
        add_up_gradients(self.objective)
        terms = self.objective.terms()
        compared = {term.name for term in self.comparing}
        found = {
            name: value if name in compared else _processes.added_up(value)
            for name, value in ((term.name, told[term.name]) for term in terms)
        }
        total = torch.stack([term.weight * found[term.name] for term in terms]).sum()
        return {"loss": total, **found}


class _Gathered(Mapping[str, Tensor]):
    """Inputs of the batch of all processes, each gathered when it is read; all processes read the same ones."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        self.inputs = inputs

    def __getitem__(self, name: str) -> Tensor:
        return _processes.joined(self.inputs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


def add_up_gradients(module: torch.nn.Module) -> None:
    """Replace the gradients of a module by their sum over all processes, the same number for number in each.

    DistributedDataParallel averages what one backward pass gives; a batch takes several passes here, and a parameter may
    have its gradient from outside of them all (the projection of a loss that compares).
    """
    if _processes.count() == 1:
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    has = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.float32)
    used = [p for p, one in zip(trained, _processes.added_up(has).tolist(), strict=True) if one]
    bucket: list[Tensor] = []
    for parameter in [*used, None]:
        if parameter is None or sum(one.numel() for one in bucket) >= BUCKET:
            if bucket:
                total = _processes.added_up(torch.cat([one.flatten() for one in bucket]))
                for one, summed in zip(bucket, torch.split(total, [b.numel() for b in bucket]), strict=True):
                    one.copy_(summed.view_as(one))
            bucket = []
        if parameter is not None:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)


# --- parts ---------------------------------------------------------------------------------------------------------


def _slices(size: int, parts: int) -> list[slice]:
    """``size`` rows in parts that differ by one at most."""
    parts = min(parts, size)
    ends = [size * number // parts for number in range(parts + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


def cut(batch: Any, rows: slice, size: int) -> Any:
    """Some rows of everything that has ``size`` of them."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, (tuple, list)):
        return tuple(cut(item, rows, size) for item in batch)
    return {name: cut(item, rows, size) for name, item in batch.items()}


def random_state() -> list[Tensor]:
    """The states of torch's generators, which drop-out draws from."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def replay(state: Sequence[Tensor]) -> None:
    """Draw again what was drawn after :func:`random_state`."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(list(state[1:]))


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    return tuple(change(one) for one in value) if isinstance(value, (tuple, list)) else change(value)


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _gathered(value: Tensor) -> Tensor:
    """The rows of all processes; a scalar is the same in each."""
    return value.detach().clone() if value.ndim == 0 else _processes.joined(value.detach())


def _join(parts: Sequence[Outputs]) -> dict[str, Any]:
    """Outputs of parts as those of the whole, without their graphs."""
    joined: dict[str, Any] = {}
    for name, value in parts[0].items():
        if isinstance(value, (tuple, list)):
            joined[name] = tuple(_cat([part[name][i] for part in parts]) for i in range(len(value)))
        else:
            joined[name] = _cat([part[name] for part in parts])
    return joined


def _cat(values: Sequence[Tensor]) -> Tensor:
    return values[0].detach() if values[0].ndim == 0 else torch.cat([value.detach() for value in values])


def _merged(known: Sequence[Outputs], more: Sequence[Outputs]) -> Sequence[Outputs]:
    return [{**old, **new} for old, new in zip(known, more, strict=True)] if known else more


def _fitted(gradient: Tensor, output: Tensor) -> Tensor:
    """Without what was filled up to the size that other processes have."""
    return gradient[tuple(slice(0, side) for side in output.shape)]
