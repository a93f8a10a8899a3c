"""What decides which parts of a model go, and what the rest makes up for: all that pruning asks of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmcompress.component import JSON
from mmcompress.data import Examples
from mmcompress.errors import StageError
from mmcompress.stages import Model, StageInput
from mmcompress.stages._choice import Plan, Ranking, Tower
from mmcompress.stages._pruning import Block

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.stages._cutting import Refit, Sense
    from mmcompress.stages._importance import Scores
    from mmcompress.stages._removing import Found
    from mmcompress.stages._sensitivity import Batch, Progress, TaskOutputs
    from mmcompress.stages.prune import Prune

Importance = Literal["taylor", "obd", "magnitude", "activation", "random"]
BY_DATA = ("taylor", "obd", "activation")
SENSED = 128
"""Training examples, at most, that sensitivity is measured on: each is seen with every mask."""


class Weighing:
    """Weighs the parts of one model. Importance and sensitivity are kept: cuts that correct a first one cut the same model."""

    def __init__(self, asked: Prune, given: StageInput, source: Model) -> None:
        """By the fields of ``asked``; ``source`` is the model that is cut, as often as it takes, each time loaded anew."""
        self._asked, self._given, self._source = asked, given, source
        self._scores: Scores | None = None
        self._towers: dict[str, tuple[Tower, dict[str, JSON]]] = {}
        self._kept: TaskOutputs | None = None

    @property
    def relative(self) -> bool:
        """Whether scores compare within a block alone."""
        return self._asked.importance not in ("taylor", "obd")

    @property
    def ranking(self) -> Ranking:
        """How a choice is made among losses, wherever these come from."""
        asked = self._asked.ranking
        return "global" if asked is None or asked == "measured" else asked

    def scores(self, model: nn.Module, blocks: Sequence[Block]) -> Scores:
        """The importance of every group.

        Raises:
            StageError: it needs training examples, and there are none.
        """
        if self._scores is None:
            self._given.progress(f"ranking by {self._asked.importance}", 0, 0)
            if self._asked.importance in BY_DATA:
                drawn = (self._asked.samples, self._asked.batch_size, self._given.seed)
                self._scores = rank_by_task(
                    self._source, model, self._given.train, blocks, self._asked.importance, *drawn
                )
            else:
                self._scores = rank_by_weights(model, blocks, self._asked.importance, self._given.seed)
        return self._scores

    def sense(self, model: nn.Module) -> Sense | None:
        """What measures the losses of a tower's blocks; None where sums of importance tell them.

        It raises StageError where there are no training examples.
        """
        by_data = self._asked.importance in BY_DATA
        if self._asked.ranking != "measured" and not (self._asked.ranking is None and by_data):
            return None

        def sense(tower: Tower, scores: Scores) -> Tower:
            from mmcompress.stages._sensitivity import measured

            needs_examples(self._given.train, "ranking: measured", "ranking: global")
            if tower.name not in self._towers:
                progress = self._progress(f"masking parts of {tower.name}")
                self._towers[tower.name] = measured(tower, scores, self._outputs(model), progress)
            return self._towers[tower.name][0]

        return sense

    def facts(self) -> dict[str, JSON]:
        """What was measured: per block pairs of what is left and how far the outputs move then."""
        found = {name: facts for name, (_, facts) in self._towers.items()}
        return {"sensitivity": found} if found else {}

    def refit(self, model: nn.Module) -> Refit | None:
        """What makes up for what goes in the weights of what stays; None where these stay as they are.

        It raises StageError where there are no training examples.
        """
        wanted = self._asked.reconstruct
        usual = self._asked.importance in BY_DATA and self._asked.recover is None
        if not (usual if wanted is None else wanted):
            return None

        def refit(found: Found, plans: Mapping[str, Plan], scores: Scores) -> None:
            from mmcompress.stages._reconstruction import reconstruct

            needs_examples(self._given.train, "reconstruct: true", "reconstruct: false")
            examples = self._batches(self._asked.samples)
            reconstruct(found, plans, scores, self._outputs(model), examples, self._progress("fitting what is left"))

        return refit

    def _outputs(self, model: nn.Module) -> TaskOutputs:
        """Of a model as it is; kept for as long as it is the same one."""
        from mmcompress.stages._sensitivity import TaskOutputs

        if self._kept is None or self._kept.model is not model:
            batches = self._batches(min(self._asked.samples, SENSED))
            self._kept = TaskOutputs(self._source.family, model, batches)
        return self._kept

    def _batches(self, count: int) -> Iterator[Batch]:
        from mmcompress.stages._importance import batches

        family = self._source.family
        drawn = drawn_indices(self._given.train, count, self._given.seed)
        processor = family.processor(self._source.folder)
        return batches(family, processor, self._given.train, drawn, self._asked.batch_size)

    def _progress(self, message: str) -> Progress:
        return lambda done, of: self._given.progress(message, done, of)


def rank_by_task(
    source: Model,
    model: nn.Module,
    train: Examples,
    blocks: Sequence[Block],
    importance: Importance,
    samples: int,
    batch_size: int,
    seed: int,
) -> Scores:
    """Importance by the family's own loss or activations; the examples are drawn by the seed."""
    from mmcompress.stages import _importance

    needs_examples(train, f"importance: {importance}", "importance: magnitude")
    indices = drawn_indices(train, samples, seed)
    processor = source.family.processor(source.folder)
    losses = _importance.task_losses(source.family, model, processor, train, indices, batch_size)
    if importance == "activation":
        return _importance.activation(blocks, model, losses)
    return (_importance.obd if importance == "obd" else _importance.taylor)(blocks, model, losses)


def rank_by_weights(model: nn.Module, blocks: Sequence[Block], importance: Importance, seed: int) -> Scores:
    """Importance without data."""
    from mmcompress.stages._importance import magnitude, uniform

    return magnitude(model, blocks) if importance == "magnitude" else uniform(blocks, seed)


def needs_examples(train: Examples, what: str, instead: str) -> None:
    """Refuse what looks at training examples where there are none.

    Raises:
        StageError: there are fewer than two.
    """
    if len(train) < 2:
        raise StageError(f"prune: {what} needs training examples\n  Give data.train, or take {instead}.")


def drawn_indices(train: Examples, count: int, seed: int) -> list[int]:
    """As many training examples as that, or all; the same for the same seed, and the first of more."""
    return [int(index) for index in np.random.default_rng(seed).permutation(len(train))[:count]]
