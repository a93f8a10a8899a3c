"""What decides which parts of a model go, and what the rest makes up for: all that pruning asks of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmcompress._cache import kept
from mmcompress.component import JSON, digest_path
from mmcompress.data import Examples
from mmcompress.errors import StageError
from mmcompress.package import family_fields
from mmcompress.stages import Model, StageInput
from mmcompress.stages._choice import Plan, Ranking, Tower
from mmcompress.stages._pruning import Block

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.stages._cutting import Refit, Sense
    from mmcompress.stages._importance import Scores
    from mmcompress.stages._removing import Found
    from mmcompress.stages._sensitivity import Batch, Progress, Sensitivity, TaskOutputs
    from mmcompress.stages.prune import Prune

Importance = Literal["taylor", "obd", "magnitude", "activation", "random"]
BY_DATA = ("taylor", "obd", "activation")
SENSED = 128
"""Training examples, at most, that sensitivity is measured on: each is seen with every mask."""
REVISION = 1
"""Raised when the same model and examples would be weighed otherwise."""


class Weighing:
    """Weighs the parts of one model.

    What was asked of data lies in the cache: other goals, and cuts that correct a first one, cut the same model by it.
    """

    def __init__(self, asked: Prune, given: StageInput, source: Model) -> None:
        """By the fields of ``asked``; ``source`` is the model that is cut, as often as it takes, each time loaded anew."""
        self._asked, self._given, self._source = asked, given, source
        self._scores: Scores | None = None
        self._sensitivity: dict[str, Sensitivity] = {}
        self._whole: TaskOutputs | None = None

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
            if self._asked.importance in BY_DATA:
                self._scores = self._found("importance", blocks, {}, lambda: self._rank(model, blocks))
            else:
                self._scores = rank_by_weights(model, blocks, self._asked.importance, self._given.seed)
        return self._scores

    def _rank(self, model: nn.Module, blocks: Sequence[Block]) -> Scores:
        asked = self._asked
        self._given.progress(f"ranking by {asked.importance}", 0, 0)
        drawn = (asked.samples, asked.batch_size, self._given.seed)
        return rank_by_task(self._source, model, self._given.train, blocks, asked.importance, *drawn)

    def sense(self, model: nn.Module) -> Sense | None:
        """What measures the losses of a tower's blocks; None where sums of importance tell them.

        It raises StageError where there are no training examples.
        """
        by_data = self._asked.importance in BY_DATA
        if self._asked.ranking != "measured" and not (self._asked.ranking is None and by_data):
            return None

        def sense(tower: Tower, scores: Scores) -> Tower:
            from mmcompress.stages._sensitivity import measured, weighed

            needs_examples(self._given.train, "ranking: measured", "ranking: global")
            if tower.name not in self._sensitivity:
                progress = self._progress(f"masking parts of {tower.name}")
                options: dict[str, JSON] = {
                    "tower": tower.name,
                    "counts": {name: list(counts) for name, counts in tower.counts.items()},
                    "sizes": {name: list(sizes) for name, sizes in tower.sizes.items()},
                    "layers": tower.layers,
                    "examples": SENSED,
                }
                self._sensitivity[tower.name] = self._found(
                    "sensitivity",
                    tower.blocks,
                    options,
                    lambda: measured(tower, scores, self._outputs(model), progress),
                )
            return weighed(tower, self._sensitivity[tower.name])

        return sense

    def facts(self) -> dict[str, Any]:
        """What was measured: per tower and block pairs of what is left and how far the outputs move then."""
        return {"sensitivity": dict(self._sensitivity)} if self._sensitivity else {}

    def _found(self, kind: str, blocks: Sequence[Block], options: Mapping[str, JSON], find: Callable[[], Any]) -> Any:
        """What was found for the same model, examples and fields before, or is found now."""
        if self._given.train_identity is None:
            return find()
        shapes: JSON = [[block.name, block.groups, block.channels, *block.producers] for block in blocks]
        return kept(self._given.cache, kind, {**self._identity, "blocks": shapes, **options}, find)

    @cached_property
    def _identity(self) -> dict[str, JSON]:
        asked, family = self._asked, self._source.family
        return {
            "model": digest_path(self._source.folder),
            "family": {family.component_name(): family_fields(family)},
            "train": self._given.train_identity,
            "seed": self._given.seed,
            "drawn": [asked.importance, asked.samples, asked.batch_size],
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "revision": REVISION,
        }

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

        if self._whole is None or self._whole.model is not model:
            batches = self._batches(min(self._asked.samples, SENSED))
            self._whole = TaskOutputs(self._source.family, model, batches)
        return self._whole

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
