"""Remove heads, feed-forward units, width or layers until a share of the cost is left, then train to recover."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import PydanticCustomError, core_schema

from mmcompress.component import JSON, digest_path, find
from mmcompress.errors import InputError
from mmcompress.families import Family
from mmcompress.families._structure import write_readme
from mmcompress.stages import Model, Stage, StageInput
from mmcompress.stages._choice import Ranking
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._goal import Goal
from mmcompress.stages._pruning import Part
from mmcompress.stages._weighing import Importance, Weighing
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.stages._aiming import Milliseconds
    from mmcompress.stages._block_times import Times
    from mmcompress.stages._prices import Prices
    from mmcompress.stages._removing import Found


ROUND_TO, ROUND_TO_FOR_TIME = 8, 32
"""Runtimes multiply matrices in tiles of 16 or 32 channels: a width in between costs as much as the next one."""
TIMES = "block_times.json"
"""The table of times that a choice was made by, beside the model."""


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

    MACs and times are those of the family's graphs at their sample inputs (texts as long as there); parameters are those
    that a tower's graph holds. The cut comes as near to the goal as whole heads and rounded widths allow; the facts tell
    where that is further than 2 % of the goal away. For a goal of time, what is left is chosen by a table of measured
    times, which lies beside the model as ``block_times.json``; the cut model is then timed beside the whole one, and cut
    anew with a corrected budget until it takes what was asked for.
    """

    revision_of_code: ClassVar[int] = 3

    goal: Goal
    towers: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """The share to keep of the towers named here (1 keeps a tower as it is) in place of the goal's."""
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("heads", "feed_forward")
    """What may be cut: attention ``heads``, ``head_width`` (channels of every head), ``feed_forward`` units, the model's
    ``width`` with all that makes and takes it, whole ``layers``."""
    importance: Importance = "taylor"
    """``taylor``: how much the family's own loss on training data changes, to first order, when a head or unit is
    masked; ``obd``: to second order; ``activation``: how large what it gives is; ``magnitude``: norms of weights;
    ``random``: the baseline. Where no ``ranking`` measures it, a layer matters as much as all that is in it."""
    samples: int = Field(512, ge=1)
    """Training examples that importance is measured on (fewer where there are fewer). Sensitivity takes the first 128 of
    them, reconstruction as many as have tokens enough, 128 at least."""
    batch_size: int = Field(32, ge=2)
    """Examples per gradient. Losses that compare the examples of a batch tell more in larger ones: 256, where memory allows."""
    ranking: Ranking | Literal["measured"] | None = None
    """How much of each layer goes. ``measured``: as little as can be of what the outputs were seen to need, when its least
    important heads and units, or all of it, were masked; the usual one of an importance by data. ``global``: of what
    importances say in sum; that of the others. ``local`` removes the same share of every layer, so that layers stay alike
    (with width and heads in ``parts`` a tower then opens with transformers); ``isomorphic`` ranks parts with others of the
    same shape, and removes the same share of each such group."""
    reconstruct: bool | None = None
    """Whether the layers that take what is left get new weights, by least squares on training examples, that give what they
    gave of all. The usual is yes where importance is by data and no ``recover`` follows: training comes to nearly the same
    by itself, except after strong cuts, and the fit leaves weights that are a little harder to quantize."""
    round_to: Annotated[int, Field(ge=1)] | None = None
    """Widths become multiples of this: of 8, or of 32 for a goal of time, where none is given."""
    steps: int = Field(1, ge=1, le=10)
    """Cuts, each followed by ``recover``, that come to the goal by equal ratios."""

    recover: Annotated[Stage | None, _Recovery()] = None
    """Fields of a distill stage that trains the pruned model after each cut; its teacher is the model before the first."""

    @model_validator(mode="after")
    def _steps_recover(self) -> Prune:
        if self.steps > 1 and self.recover is None:
            raise ValueError("steps: several cuts in a row need `recover`, which trains between them")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("parts: each once")
        return self

    def settled(self, family: Family) -> Stage:
        """With the losses named that ``recover`` has."""
        return self.model_copy(update={"recover": self.recover.settled(family)}) if self.recover else self

    def further_teachers(self) -> tuple[Any, ...]:
        """Those that ``recover`` names."""
        return self.recover.further_teachers() if self.recover else ()

    def problems(self, model: Family | None, teacher: Family | None) -> list[tuple[tuple[str | int, ...], str]]:
        """A stage without a model before it, a target that cannot be timed here, and what cannot work in ``recover``."""
        if model is None:
            return [((), "there is no model to prune: name a teacher, or put a finetune stage before this one")]
        found = self.recover.problems(model, model) if self.recover else []
        if self.goal.on is not None and not self.goal.on.runs_here():
            return [
                (("goal", "on"), f"runs on {self.goal.on.machine_class()}, which this machine is not: times need it")
            ]
        return [(("recover", *where), message) for where, message in found]

    def environment(self) -> Mapping[str, JSON]:
        """Versions of the libraries that trace and cut, the machine where its times decide, and what shapes the recovery."""
        found: dict[str, JSON] = {name: version(name) for name in ("torch", "torch-pruning", "transformers")}
        if self.goal.on is not None:
            from mmcompress.stages._block_times import REVISION, fingerprint

            found["machine"] = fingerprint(self.goal.on, self.goal.threads)
            found["times"] = REVISION
        return {**found, **({"recover": dict(self.recover.environment())} if self.recover else {})}

    def run(self, given: StageInput) -> Mapping[str, Any]:
        """Prune ``given.model``, then recover where the recipe says so.

        Raises:
            InputError: ``towers`` names a tower that the model has not, or the goal asks for no cut.
            StageError: nothing matched, or the goal lies below what the smallest structure leaves.
            MissingExtra: the runtime that times are of is not installed.
        """
        if given.model is None:
            raise InputError("prune: there is no model to prune")
        if self.recover is None:
            return self._cut(given, given.model, given.output, 1)
        source, facts, whole = given.model, [], given.model
        for step in range(1, self.steps + 1):
            last = step == self.steps
            pruned, done = given.work / f"pruned-{step}", given.work / f"pruned-{step}.json"
            recovered, trained = given.work / f"recovered-{step}", given.work / f"recovered-{step}.json"
            if trained.is_file():
                facts.append(read_json(trained))
                source = Model(source.family, recovered)
                continue
            if not done.is_file():
                shutil.rmtree(pruned, ignore_errors=True)
                write_json(done, self._cut(given, source, pruned, step))
            recovering = replace(
                given,
                model=Model(source.family, pruned),
                teacher=whole,
                teacher_key=digest_path(whole.folder),
                work=given.work / f"recover-{step}",
                output=given.output if last else recovered,
            )
            recovering.work.mkdir(exist_ok=True)
            recovering.output.mkdir(exist_ok=True)
            facts.append({**read_json(done), "recover": dict(self.recover.run(recovering))})
            if not last:
                write_json(trained, facts[-1])
            source = Model(source.family, recovering.output)
        if (given.work / "pruned-1" / TIMES).is_file():
            shutil.copyfile(given.work / "pruned-1" / TIMES, given.output / TIMES)
        return joined(facts)

    def _cut(self, given: StageInput, source: Model, output: Path, step: int) -> dict[str, Any]:
        weighing = Weighing(self, given, source)
        if self.goal.on is None:
            budget = self._budget(given, source.family.load(source.folder), None, step)
            return self._cut_once(given, source, budget, weighing, None, output)
        from mmcompress.stages._aiming import Clock, aim, with_times

        times = self._times(given, source)
        budget = self._budget(given, source.family.load(source.folder), times, step)

        def cut(asked: Budget, folder: Path) -> Mapping[str, Any]:
            return self._cut_once(given, source, asked, weighing, times.prices, folder, refit=False)

        work = given.work / f"aiming-{step}"
        towers = {tower: facts["graph"] for tower, facts in times.table["towers"].items()}
        clock = Clock(source, towers, self.goal, work)

        def timed(folder: Path) -> Milliseconds:
            given.progress("timing the cut model beside the whole", 0, 0)
            return clock(folder)

        found = aim(budget, cut, timed, work)
        shutil.rmtree(work)
        facts = self._cut_once(given, source, found.asked, weighing, times.prices, output)
        write_json(output / TIMES, times.table)
        return with_times(replace(found, facts=facts), budget)

    def _cut_once(
        self,
        given: StageInput,
        source: Model,
        budget: Budget,
        weighing: Weighing,
        prices: Callable[[Found], Prices] | None,
        output: Path,
        *,
        refit: bool = True,
    ) -> dict[str, Any]:
        """Cut the source once; without ``refit`` for its shapes alone, which are what times depend on."""
        given.progress("tracing what hangs together", 0, 0)
        model = source.family.load(source.folder)
        facts = prune_model(
            source.family,
            model,
            budget,
            lambda blocks: weighing.scores(model, blocks),
            parts=self.parts,
            relative=weighing.relative,
            ranking=weighing.ranking,
            round_to=self.round_to or (ROUND_TO if prices is None else ROUND_TO_FOR_TIME),
            prices=prices,
            sense=weighing.sense(model),
            refit=weighing.refit(model) if refit else None,
        )
        source.family.save(model, source.folder, output)
        write_readme(source.family.component_name(), output)
        return {**facts, **weighing.facts()}

    def _budget(self, given: StageInput, model: nn.Module, times: Times | None, step: int) -> Budget:
        """What to keep in a step: equal ratios of the way from the first model to the goal."""
        assert given.model is not None
        first = model if step == 1 else given.model.family.load(given.model.folder)
        parameters = sum(p.numel() for p in first.parameters())
        towers = dict(self.towers)
        try:
            whole = self.goal.ratio(parameters, None if times is None else times.main_ms(given.model.family))
        except ValueError as error:
            raise InputError(f"prune: goal: {error}") from None
        if self.goal.latency_ms is not None and times is not None:
            towers = {**dict.fromkeys(times.beside(given.model.family), 1.0), **towers}
        # Each cut is of what the ones before it left; a latency is what is left of it now.
        parts = self.steps - step + 1 if self.goal.latency_ms is not None else self.steps
        return Budget(self.goal.unit, _root(whole, parts), {k: _root(v, self.steps) for k, v in towers.items()})

    def _times(self, given: StageInput, source: Model) -> Times:
        from mmcompress.stages._block_times import table_of

        assert self.goal.on is not None
        return table_of(
            source,
            self.goal.on,
            threads=self.goal.threads,
            batch=self.goal.batch,
            parts=self.parts,
            cache=given.cache,
            progress=given.progress,
        )


# --- plain functions -----------------------------------------------------------------------------------------------


def _root(ratio: float, steps: int) -> float:
    return float(ratio ** (1 / steps))


def joined(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of several cuts as those of one, with each step's own."""
    if len(facts) == 1:
        return dict(facts[0])
    first, last = facts[0], facts[-1]
    cost = [first["macs"][0], last["macs"][1]]
    return {
        **last,
        "ratio": float(np.prod([step["ratio"] for step in facts])),
        "macs": cost,
        "parameters": [first["parameters"][0], last["parameters"][1]],
        "notes": [note for step in facts for note in step["notes"]],
        "steps": [dict(step) for step in facts],
    }
