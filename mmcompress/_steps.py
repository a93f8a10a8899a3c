"""The steps that a recipe is planned as: see :mod:`mmcompress.pipeline`."""

from __future__ import annotations

from dataclasses import dataclass

from mmcompress.component import JSON
from mmcompress.families import Family
from mmcompress.metrics import Role
from mmcompress.runtimes import AskedPrecision
from mmcompress.store import Step


@dataclass(frozen=True)
class ModelStep:
    """A step whose artifact is a model folder."""

    step: Step
    family: Family
    role: Role
    name: str
    stage: str


@dataclass(frozen=True)
class PackageStep:
    """A step whose artifact is a package."""

    step: Step
    family: Family
    role: Role
    name: str
    target: str
    precision: AskedPrecision


@dataclass(frozen=True)
class Plan:
    """Everything that a recipe makes, by key, before any of it is made."""

    models: tuple[ModelStep, ...]
    """The teacher first, then baselines, then what each stage makes."""
    packages: tuple[PackageStep, ...]
    """For each target the teacher's own FP32 package, then the recipe's."""
    deployment: tuple[Step, ...]
    """The exports and quantizations that the packages are made of, in order."""


def renamed(made: ModelStep, role: Role, name: str) -> ModelStep:
    """The same step under another name and role."""
    return ModelStep(made.step, made.family, role, name, made.stage)


def provenance_of(recipe: str, model: ModelStep, teacher: ModelStep, graphs: Step) -> dict[str, JSON]:
    """Where a package comes from, down to the components that made its model."""
    return {
        "recipe": recipe,
        "model": {"key": model.step.key, "stage": model.step.kind, "identity": model.step.identity},
        "teacher": {"key": teacher.step.key, "identity": teacher.step.identity},
        "graphs": {"key": graphs.key, "stage": graphs.kind, "identity": graphs.identity},
    }
