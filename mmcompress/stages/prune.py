"""Remove attention heads and feed-forward units until a share of the cost is left, then train to recover."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import PydanticCustomError, core_schema

from mmcompress.component import JSON, digest_path, find
from mmcompress.data import Examples
from mmcompress.errors import InputError, StageError
from mmcompress.families import Family
from mmcompress.stages import Model, Stage, StageInput
from mmcompress.stages._pruning import (
    TOLERANCE,
    Block,
    Dependencies,
    Ranking,
    Unit,
    choose,
    chunks_of,
    tie_again,
    tied_parameters,
)
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.stages._importance import Scores

Ratio = Annotated[float, Field(gt=0, lt=1)]
Importance = Literal["taylor", "magnitude", "random"]
Part = Literal["heads", "feed_forward"]


class Goal(BaseModel):
    """The share of each tower's cost to keep, in MACs or in parameters: one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: Ratio | None = None
    parameters: Ratio | None = None

    @model_validator(mode="after")
    def _one(self) -> Goal:
        if (self.macs is None) == (self.parameters is None):
            raise ValueError("expected one of macs and parameters, such as `goal: {macs: 0.5}`")
        return self

    @property
    def unit(self) -> Unit:
        """What is counted."""
        return "macs" if self.macs is not None else "parameters"

    @property
    def ratio(self) -> float:
        """The share that is kept."""
        ratio = self.macs if self.macs is not None else self.parameters
        assert ratio is not None
        return ratio


class _Recovery:
    """A field that holds a distill stage without its student, which is the pruned model."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate by the distill stage, and dump its fields."""
        return core_schema.with_info_plain_validator_function(
            lambda value, info: _recovery(value, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda stage: stage.model_dump(mode="json", by_alias=True, exclude={"student"}) if stage else None
            ),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, JSON]:
        """A reference into the recipe's schema."""
        return {"anyOf": [{"$comment": "#/$defs/stages.distill"}, {"type": "null"}]}


def _recovery(value: Any, context: Any) -> Stage | None:
    if value is None:
        return None
    distill = find("stages", "distill")
    if isinstance(value, Stage) and isinstance(value, distill):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("recover", "expected the fields of a distill stage, such as `recover: {epochs: 5}`")
    if "student" in value:
        raise PydanticCustomError("recover", "the student is the pruned model; leave `student` out")
    stage = distill.model_validate(dict(value), context=context)
    assert isinstance(stage, Stage)
    return stage


class Prune(Stage):
    """Structured pruning by Torch-Pruning's dependency graph, with a budget per tower.

    MACs are those of the family's graphs at their sample inputs (texts as long as there); parameters are those that a
    tower's graph holds. The cut comes as near to the goal as whole heads and rounded widths allow; the facts tell where
    that is further than 2 % of the goal away.
    """

    goal: Goal
    towers: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """The share to keep of the towers named here (1 keeps a tower as it is) in place of the goal's."""
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("heads", "feed_forward")
    """What may be cut."""
    importance: Importance = "taylor"
    """``taylor``: how much the family's own loss on training data changes, to first order, when a head or unit is
    masked; ``magnitude``: norms of weights; ``random``: the baseline."""
    samples: int = Field(512, ge=1)
    """Training examples that ``taylor`` takes gradients of (fewer where there are fewer)."""
    batch_size: int = Field(32, ge=2)
    """Examples per gradient of ``taylor``."""
    ranking: Ranking = "global"
    """``global`` ranks all heads and units of a tower by what they matter for what they cost; ``local`` removes the
    same share of every layer, the least important ones, so that layers stay alike."""
    round_to: int = Field(8, ge=1)
    """Feed-forward widths become multiples of this."""

    recover: Annotated[Stage | None, _Recovery()] = None
    """Fields of a distill stage that trains the pruned model afterwards; its teacher is the model before the cut."""

    def problems(self, model: Family | None, teacher: Family | None) -> list[tuple[tuple[str | int, ...], str]]:
        """A stage without a model before it, and what cannot work in ``recover``."""
        if model is None:
            return [((), "there is no model to prune: name a teacher, or put a finetune stage before this one")]
        found = self.recover.problems(model, model) if self.recover else []
        return [(("recover", *where), message) for where, message in found]

    def environment(self) -> Mapping[str, JSON]:
        """Versions of the libraries that trace and cut, and what shapes the recovery."""
        versions = {name: version(name) for name in ("torch", "torch-pruning", "transformers")}
        return {**versions, **({"recover": dict(self.recover.environment())} if self.recover else {})}

    def run(self, given: StageInput) -> Mapping[str, Any]:
        """Prune ``given.model``, then recover where the recipe says so.

        Raises:
            InputError: ``towers`` names a tower that the model has not.
            StageError: nothing matched, or the goal lies below what one head and one rounding unit per block leave.
        """
        if given.model is None:
            raise InputError("prune: there is no model to prune")
        if self.recover is None:
            return self._cut(given, given.model, given.output)
        pruned, done = given.work / "pruned", given.work / "pruned.json"
        if not done.is_file():
            shutil.rmtree(pruned, ignore_errors=True)
            write_json(done, self._cut(given, given.model, pruned))
        recovering = replace(
            given,
            model=Model(given.model.family, pruned),
            teacher=given.model,
            teacher_key=digest_path(given.model.folder),
            work=given.work / "recover",
        )
        recovering.work.mkdir(exist_ok=True)
        return {**read_json(done), "recover": dict(self.recover.run(recovering))}

    def _cut(self, given: StageInput, source: Model, output: Path) -> dict[str, Any]:
        model = source.family.load(source.folder)

        def score(blocks: Sequence[Block]) -> Scores:
            given.progress(f"ranking heads and units by {self.importance}", 0, 0)
            if self.importance == "taylor":
                return rank_by_task(source, model, given.train, blocks, self.samples, self.batch_size, given.seed)
            return rank_by_weights(model, blocks, self.importance, given.seed)

        given.progress("tracing what hangs together", 0, 0)
        facts = prune_model(
            source.family,
            model,
            Budget(self.goal.unit, self.goal.ratio, self.towers),
            score,
            parts=self.parts,
            relative=self.importance != "taylor",
            ranking=self.ranking,
            round_to=self.round_to,
        )
        source.family.save(model, source.folder, output)
        return facts


# --- plain functions -----------------------------------------------------------------------------------------------


def rank_by_task(
    source: Model,
    model: nn.Module,
    train: Examples,
    blocks: Sequence[Block],
    samples: int,
    batch_size: int,
    seed: int,
) -> Scores:
    """Taylor importance on the family's own loss; the examples are drawn by the seed."""
    from mmcompress.stages._importance import task_losses, taylor

    if len(train) < 2:
        raise StageError("prune: importance: taylor needs training examples\n  Give data.train, or take magnitude.")
    indices = np.random.default_rng(seed).permutation(len(train))[:samples].tolist()
    processor = source.family.processor(source.folder)
    return taylor(blocks, model, task_losses(source.family, model, processor, train, indices, batch_size))


def rank_by_weights(
    model: nn.Module, blocks: Sequence[Block], importance: Literal["magnitude", "random"], seed: int
) -> Scores:
    """Importance without data."""
    from mmcompress.stages._importance import magnitude, uniform

    return magnitude(model, blocks) if importance == "magnitude" else uniform(blocks, seed)


@dataclass(frozen=True)
class Budget:
    """The share of each tower's cost to keep."""

    unit: Unit
    ratio: float
    towers: Mapping[str, float] = field(default_factory=dict)
    """The share of the towers named here instead; 1 keeps a tower as it is."""

    def keep(self, tower: str) -> float:
        """The share of a tower, above 0 and at most 1."""
        return self.towers.get(tower, self.ratio)


def prune_model(
    family: Family,
    model: nn.Module,
    budget: Budget,
    score: Callable[[Sequence[Block]], Scores],
    *,
    parts: Sequence[Part] = ("heads", "feed_forward"),
    relative: bool = False,
    ranking: Ranking = "global",
    round_to: int = 8,
) -> dict[str, Any]:
    """Prune a model in place; gives facts: blocks, MACs and parameters before and after, the ratios reached.

    Args:
        family: Knows what can be pruned, and the graphs to trace.
        model: Cut in place.
        budget: What to keep.
        score: Gives the importance of every group of the blocks.
        parts: ``heads``, ``feed_forward`` or both.
        relative: Scores compare within a block alone (norms), so they are weighed by what a group costs.
        ranking: ``global`` or ``local``.
        round_to: Feed-forward widths become multiples of it.

    Raises:
        InputError: the budget names a tower that the model has not.
        StageError: nothing matched, nothing would go, or the budget is too small.
    """
    found = _dependencies(family, model, parts)
    before = {unit: found.costs(unit).towers for unit in _UNITS}
    unknown = set(budget.towers) - set(before["macs"])
    if unknown:
        known = ", ".join(before["macs"])
        raise InputError(f"prune: towers: the model has no {', '.join(sorted(unknown))}; its towers: {known}")
    parameters = [_parameters(model)]
    scores = score(found.blocks)
    if relative:
        prices = found.costs(budget.unit).groups
        scores = {name: [value * prices[name] for value in values] for name, values in scores.items()}
    removed = decide(found, budget, scores, ranking, round_to)
    if not any(removed.values()):
        raise StageError(
            "prune: nothing would go: the goal keeps all, or heads and rounded widths are too coarse for it"
        )
    tied = tied_parameters(model)
    for block in found.blocks:
        found.cut(block, removed[block.name])
    tie_again(model, tied)
    for parameter in model.parameters():
        parameter.grad = None
    left = _dependencies(family, model, parts)
    after = {unit: left.costs(unit).towers for unit in _UNITS}
    return {
        **_reached(budget, before, after),
        "parameters": [*parameters, _parameters(model)],
        "blocks": {block.name: _cut_of(block, len(removed[block.name])) for block in found.blocks},
    }


def _cut_of(block: Block, removed: int) -> dict[str, list[int]]:
    """Heads or width of a block before and after."""
    return {"width" if block.prunable.heads is None else "heads": [block.groups, block.groups - removed]}


def decide(
    found: Dependencies, budget: Budget, scores: Scores, ranking: Ranking, round_to: int
) -> dict[str, list[int]]:
    """The groups to remove from each block, tower by tower.

    Raises:
        StageError: a tower cannot become as small as its budget.
    """
    costs = found.costs(budget.unit)
    removed: dict[str, list[int]] = {}
    for tower, total in costs.towers.items():
        chunks = {
            block.name: chunks_of(block, scores[block.name], costs.groups[block.name], round_to)
            for block in found.blocks
            if block.prunable.tower == tower
        }
        keep = budget.keep(tower)
        try:
            counts = choose(chunks, total, keep * total, ranking) if keep < 1 else dict.fromkeys(chunks, 0)
        except StageError as error:
            raise StageError(f"prune: {tower}: {budget.unit}: {error}") from None
        for name, count in counts.items():
            removed[name] = sorted(group for chunk in chunks[name][:count] for group in chunk.groups)
    return removed


_UNITS: tuple[Unit, ...] = ("macs", "parameters")


def _dependencies(family: Family, model: nn.Module, parts: Sequence[Part]) -> Dependencies:
    wanted = [item for item in family.prunable(model) if ("feed_forward" if item.heads is None else "heads") in parts]
    return Dependencies(model, family.traced(model), wanted)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _reached(
    budget: Budget, before: Mapping[Unit, Mapping[str, int]], after: Mapping[Unit, Mapping[str, int]]
) -> dict[str, Any]:
    """Costs before and after, counted on the models themselves, and where they miss the budget."""
    notes = []
    for tower, cost in before[budget.unit].items():
        goal, reached = budget.keep(tower), after[budget.unit][tower] / cost
        if abs(reached - goal) > TOLERANCE * goal:
            notes.append(
                f"{tower}: {reached:.3f} of its {budget.unit} is the nearest to {goal:.3f} that whole heads and rounded"
                " widths give"
            )
    return {
        "ratio": sum(after[budget.unit].values()) / sum(before[budget.unit].values()),
        "macs": [sum(before["macs"].values()), sum(after["macs"].values())],
        "towers": {
            tower: {unit: [before[unit][tower], after[unit][tower]] for unit in _UNITS} for tower in before["macs"]
        },
        "notes": notes,
    }
