"""Model stages: each turns one model folder into the next, in the order that the recipe writes. One file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from mmcompress.component import JSON, Component, Slot
from mmcompress.data import Examples
from mmcompress.families import Family


@dataclass(frozen=True)
class Model:
    """A model folder and the family that knows what to do with it."""

    family: Family
    folder: Path


@dataclass(frozen=True)
class StageInput:
    """Everything that a stage may use. It writes a model folder to ``output`` and nothing else that lasts."""

    model: Model | None
    """The model so far; None for the first stage of a recipe without a teacher."""
    teacher: Model | None
    train: Examples
    validation: Examples | None
    seed: int
    output: Path
    work: Path
    """Private, kept when the process is killed, deleted once the stage has finished: checkpoints lie here."""
    cache: Path
    """Private to this user, shared between stages: stored teacher outputs lie here, each under its own key."""
    answers: Path | None = None
    """A file of another system's answers, which stand for a teacher's."""
    teacher_key: str = ""
    """The key of the teacher's artifact, for what is stored under it."""
    train_identity: JSON = None
    """The identity of the training data, likewise."""
    validation_identity: JSON = None
    """The identity of the validation data, likewise."""
    others: tuple[tuple[Model, str], ...] = ()
    """Further teachers that the stage named, each with its artifact's key."""
    track: Path | None = None
    """Where scalars for TensorBoard go; nowhere where None."""
    progress: Callable[[str, int, int], None] = field(default=lambda message, done, total: None)
    """Called with a message, steps done and steps in all."""


class Stage(Component):
    """One step of the way from the teacher to the student."""

    kind: ClassVar[str] = "stages"

    def problems(self, model: Family | None, teacher: Family | None) -> list[tuple[tuple[str | int, ...], str]]:
        """What cannot work, found when the recipe is read: location below this stage, and message."""
        return []

    def result_family(self, model: Family | None) -> Family:
        """The family of the model that this stage makes from a model of a family."""
        if model is None:
            raise NotImplementedError
        return model

    def settled(self, family: Family) -> Stage:
        """The stage with what a model's family chooses where the recipe is silent: the key tells what was done."""
        return self

    def further_teachers(self) -> tuple[Any, ...]:
        """Models that the stage follows besides the recipe's teacher: families, or other recipes' last models."""
        return ()

    def environment(self) -> Mapping[str, JSON]:
        """What shapes the result besides the fields: versions of libraries, the resolved training precision."""
        return {}

    def run(self, given: StageInput) -> Mapping[str, Any]:
        """Write the next model folder to ``given.output``; gives facts for the manifest (steps, losses, counts).

        Raises:
            StageError: it could not finish, or matched nothing.
        """
        raise NotImplementedError


AnyStage = Annotated[Stage, Slot("stages")]
