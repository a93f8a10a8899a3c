"""Build: from a recipe to models and packages. Read this file to understand the tool.

::

    teacher -> model stages (finetune, distill, prune) -> export -> for each target: quantize -> compile -> package

Every box is a :class:`mmcompress.store.Step`, whose key is known before it is built. A step asks the store for what it
needs when it is built itself, so what is finished is found and only what is missing is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress import _processes, deploy
from mmcompress._accuracy import promise_identity, promise_of
from mmcompress._fastest import choose_step
from mmcompress._smoke import smoke_recipe
from mmcompress._steps import ModelStep, PackageStep, Plan, provenance_of, renamed
from mmcompress.component import digest_path, library_versions
from mmcompress.data import Examples
from mmcompress.data._splits import subset
from mmcompress.errors import StageError
from mmcompress.families import Family
from mmcompress.families._adapters import write_model
from mmcompress.metrics import Role, Subject
from mmcompress.package import family_fields
from mmcompress.recipe import FromAnswers, FromRecipe, Recipe, load_recipe
from mmcompress.runtimes import AskedPrecision, Runtime
from mmcompress.splits import Splits
from mmcompress.stages import Model, Stage, StageInput
from mmcompress.store import Artifact, Step, Store

Listen = Callable[[str, str, int, int], None]
"""Told of progress: step, message, done, total (0 where it is not known)."""
PROBES = 64


def silent(step: str, message: str, done: int, total: int) -> None:
    """Listens to nothing."""


class Planner:
    """Turns a recipe into steps. Nothing is built until the store is asked for a step's artifact."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        listen: Listen = silent,
        limit: int | None = None,
        track: Path | None = None,
    ) -> None:
        """``limit``: examples of each split in a smoke run, in which other recipes are small too; ``track``: where scalars of trainings go, for TensorBoard."""
        self.recipe = recipe
        self.store = store
        self.listen = listen
        self.limit = limit
        self.track = track
        self.splits = Splits(recipe, limit)
        self.built = 0
        """How many artifacts were built so far, and not found."""

    def plan(self) -> Plan:
        """All steps of the recipe."""
        if isinstance(self.recipe.teacher, FromAnswers):
            return self._plan_without_teacher()
        start = self._teacher()
        chain = self._chain(self.recipe.stages, start, "student", "stages")
        teacher = start or chain[0]
        if start is None:
            chain[0] = teacher = renamed(chain[0], "teacher", "teacher")
        baselines = [
            renamed(steps[-1], "baseline", name)
            for name, stages in self.recipe.baselines.items()
            if (steps := self._chain(stages, start, "baseline", f"baselines.{name}"))
        ]
        students = chain if start is not None else chain[1:]
        last = students[-1] if students else teacher
        packages: dict[str, PackageStep] = {}
        deployment: dict[str, Step] = {}
        for target in self.recipe.targets:
            precision = (target.quantize or self.recipe.quantize).precision
            wanted: list[tuple[ModelStep, AskedPrecision, Role]] = [
                (teacher, "fp32", "teacher"),
                (last, precision, "package"),
            ]
            for model, its_precision, role in wanted:
                package, parts = self._package(model, teacher, target, its_precision, role)
                packages.setdefault(f"{role} {package.step.key}", package)
                deployment.update({part.key: part for part in parts})
        return Plan((teacher, *baselines, *students), tuple(packages.values()), tuple(deployment.values()))

    def _plan_without_teacher(self) -> Plan:
        """The steps of a recipe whose teacher is a file of answers: nothing is measured of it, nor compared with it."""
        students = self._chain(self.recipe.stages, None, "student", "stages")
        baselines = [
            renamed(self._chain(stages, None, "baseline", f"baselines.{name}")[-1], "baseline", name)
            for name, stages in self.recipe.baselines.items()
        ]
        packages: dict[str, PackageStep] = {}
        deployment: dict[str, Step] = {}
        for target in self.recipe.targets:
            precision = (target.quantize or self.recipe.quantize).precision
            package, parts = self._package(students[-1], students[-1], target, precision, "package")
            packages.setdefault(package.step.key, package)
            deployment.update({part.key: part for part in parts})
        return Plan((*baselines, *students), tuple(packages.values()), tuple(deployment.values()))

    # --- models ---

    def _teacher(self) -> ModelStep | None:
        source = self.recipe.teacher
        return None if source is None or isinstance(source, FromAnswers) else self._source(source)

    def _source(self, source: Family | FromRecipe) -> ModelStep:
        """A checkpoint as a model folder, or the last model of another recipe."""
        if isinstance(source, FromRecipe):
            recipe = load_recipe(source.recipe)
            recipe = recipe if self.limit is None else smoke_recipe(recipe)
            other = Planner(recipe, self.store, self.listen, self.limit, self.track).plan()
            return renamed(other.models[-1], "teacher", "teacher")
        family: Family = source
        seed = self.recipe.seed

        def build(output: Path, work: Path) -> Mapping[str, Any]:
            self.listen("teacher", "reading the checkpoint", 0, 0)
            write_model(family, output, work, seed)
            return {"family": family.component_name()}

        identity = {
            "family": family.as_trained().identity(),
            "seed": seed if family.config is not None else None,
            "libraries": library_versions("transformers"),
        }
        return ModelStep(Step("teacher", "teacher", identity, build), family, "teacher", "teacher", "teacher")

    def _chain(self, stages: tuple[Stage, ...], start: ModelStep | None, role: Role, where: str) -> list[ModelStep]:
        made: list[ModelStep] = []
        previous = start
        teacher = start
        kinds = [stage.component_name() for stage in stages]
        for index, (stage, kind) in enumerate(zip(stages, kinds, strict=True)):
            previous = self._stage(stage, previous, teacher, role, f"{where}.{index} {kind}")
            teacher = teacher or previous
            number = kinds[: index + 1].count(kind)
            made.append(renamed(previous, role, kind if kinds.count(kind) == 1 else f"{kind} {number}"))
        return made

    def _stage(
        self, stage: Stage, previous: ModelStep | None, teacher: ModelStep | None, role: Role, where: str
    ) -> ModelStep:
        kind = stage.component_name()
        family = stage.result_family(previous.family if previous is not None else None)
        stage = stage.settled(family)
        others = [self._source(source) for source in stage.further_teachers()]
        answers = self.recipe.teacher.answers if isinstance(self.recipe.teacher, FromAnswers) else None

        def build(output: Path, work: Path) -> Mapping[str, Any]:
            given = StageInput(
                model=self._model(previous),
                teacher=self._model(teacher),
                answers=answers,
                train=self.splits.train,
                validation=self.splits.validation,
                seed=self.recipe.seed,
                output=output,
                work=work,
                cache=self.store.cache,
                teacher_key=teacher.step.key if teacher is not None else "",
                train_identity=self.splits.train_identity,
                validation_identity=self.splits.validation_identity,
                others=tuple((Model(one.family, self.get(one.step).folder), one.step.key) for one in others),
                track=None if self.track is None else self.track / where.replace(" ", "-"),
                progress=lambda message, done, total: self.listen(where, message, done, total),
            )
            return stage.run(given)

        identity = {
            "stage": stage.identity(),
            "model": previous.step.key if previous is not None else None,
            "teacher": teacher.step.key if teacher is not None else None,
            "train": self.splits.train_identity,
            "validation": self.splits.validation_identity,
            "seed": self.recipe.seed,
            "environment": dict(stage.environment()),
            **({"teachers": [one.step.key for one in others]} if others else {}),
            **({"answers": digest_path(answers)} if answers is not None else {}),
        }
        return ModelStep(Step(kind, where, identity, build, together=True), family, role, where, kind)

    def _model(self, made: ModelStep | None) -> Model | None:
        return Model(made.family, self.get(made.step).folder) if made is not None else None

    # --- packages ---

    def _package(
        self, model: ModelStep, teacher: ModelStep, target: Runtime, precision: AskedPrecision, role: Role
    ) -> tuple[PackageStep, list[Step]]:
        runtime = target.component_name()
        exported = self._export(model)
        quantized = None if precision == "fp32" else self._quantize(model, exported, target)
        graphs = quantized or exported
        if precision == "auto" and quantized is not None:
            graphs = choose_step(self, model, exported, quantized, target)
        family = model.family

        def build(output: Path, work: Path) -> Mapping[str, Any]:
            probe = self.examples("validation", PROBES)
            made = self.get(graphs)
            facts = made.manifest["facts"]
            chosen = facts if precision == "auto" else {"precision": precision, "runtime_fields": {}}
            return deploy.compile(
                family=family,
                model=self.get(model.step).folder,
                graphs=made.folder,
                runtime=target.model_copy(update=chosen["runtime_fields"]),
                precision=chosen["precision"],
                teacher=Model(teacher.family, self.get(teacher.step).folder),
                probe=probe,
                provenance=provenance_of(self.recipe.name, model, teacher, graphs),
                output=output,
                asked=facts["graphs"],
            )

        identity = {
            "graphs": graphs.key,
            "model": model.step.key,
            "teacher": teacher.step.key,
            "precision": precision,
            "runtime": target.identity(),
            "machine": target.machine_class(),
            "versions": dict(target.versions()),
            "probe": self.splits.validation_identity,
            "seed": self.recipe.seed,
            "format": deploy.PACKAGE_FORMAT,
            "revision": deploy.COMPILE_REVISION,
        }
        step = Step("compile", f"{runtime} {precision} compile ({model.name})", identity, build)
        name = f"{runtime} {precision}"
        made = PackageStep(step, family, role, f"teacher {name}" if role == "teacher" else name, runtime, precision)
        return made, list({part.key: part for part in (exported, quantized or exported, graphs)}.values())

    def _export(self, model: ModelStep) -> Step:
        def build(output: Path, work: Path) -> Mapping[str, Any]:
            self.listen(f"export ({model.name})", "tracing the graphs and checking them against torch", 0, 0)
            return deploy.export(model.family, self.get(model.step).folder, output)

        libraries = library_versions("torch", "transformers", "onnx", "onnxscript")
        identity = {
            "model": model.step.key,
            "family": [model.family.component_name(), model.family.revision_of_code, family_fields(model.family)],
            "libraries": libraries,
            "revision": deploy.EXPORT_REVISION,
        }
        return Step("export", f"export ({model.name})", identity, build)

    def _quantize(self, model: ModelStep, exported: Step, target: Runtime) -> Step:
        settings = target.quantize or self.recipe.quantize
        where = f"{target.component_name()} quantize ({model.name})"

        def build(output: Path, work: Path) -> Mapping[str, Any]:
            self.listen(where, f"calibrating on {settings.calibration_samples} training examples", 0, 0)
            return deploy.quantize(
                family=model.family,
                model=self.get(model.step).folder,
                graphs=self.get(exported).folder,
                scheme=target.scheme(),
                examples=self.examples("train", settings.calibration_samples),
                output=output,
                settings=settings,
                promise=promise_of(self, target, where, work) if settings.max_drop else None,
            )

        identity = {
            "graphs": exported.key,
            "settings": settings.model_dump(mode="json"),
            "scheme": deploy.describe_scheme(target.scheme()),
            "calibration": self.splits.train_identity,
            "promise": promise_identity(self.recipe, target) if settings.max_drop else None,
            "validation": self.splits.validation_identity if settings.max_drop else None,
            "seed": self.recipe.seed,
            "libraries": library_versions("onnx", "onnxruntime"),
            "revision": deploy.QUANTIZE_REVISION,
        }
        return Step("quantize", where, identity, build)

    def examples(self, split: str, count: int) -> Examples:
        """A sample of a split (of the training data where there is no validation data), the same for the same seed."""
        source = self.splits.train if split == "train" or self.splits.validation is None else self.splits.validation
        if split == "train" and len(source) < count and self.limit is None:
            raise StageError(
                f"quantize.calibration_samples: {count} training examples asked for, {len(source)} are there\n"
                "  Lower calibration_samples, or give more training data."
            )
        return subset(source, min(count, len(source)), seed=self.recipe.seed)

    def get(self, step: Step) -> Artifact:
        """The artifact of a step: found, or built now."""
        # Of several processes the store asks the first whether it is there, so that all do the same.
        found = self.store.find(step) if _processes.count() == 1 else None
        if found is not None:
            self.listen(step.name, "found", 1, 1)
            return found
        artifact = self.store.get(step)
        self.built += artifact.built
        self.listen(step.name, f"built in {artifact.manifest['seconds']:.1f} s", 1, 1)
        return artifact


@dataclass(frozen=True)
class Built:
    """What a recipe made: what is measured, and which targets failed and why."""

    subjects: tuple[Subject, ...]
    failures: Mapping[str, str]
    splits: Splits
    built: int
    """How many artifacts this call built; 0 when all were found."""
    manifests: Mapping[str, Mapping[str, Any]]
    """Of models and packages by name, and of exports and quantizations by the names of their steps."""


def build(planner: Planner) -> Built:
    """Build everything that the recipe names. A target that fails does not take the others with it.

    Raises:
        StageError: a model stage failed; what was finished before it is kept.
    """
    plan = planner.plan()
    subjects: list[Subject] = []
    failures: dict[str, str] = {}
    manifests: dict[str, Mapping[str, Any]] = {}
    for model in plan.models:
        artifact = planner.get(model.step)
        manifests[model.name] = artifact.manifest
        subjects.append(
            Subject(artifact.key, model.name, model.role, model.stage, "torch", model.family, artifact.folder)
        )
    for package in plan.packages:
        try:
            artifact = planner.get(package.step)
        except StageError as error:
            failures[package.name] = str(error)
            continue
        manifests[package.name] = artifact.manifest
        subjects.append(
            Subject(
                artifact.key,
                package.name,
                package.role,
                "package",
                package.target,
                package.family,
                artifact.folder,
                artifact.manifest["facts"]["precision"],
            )
        )
    for step in plan.deployment:
        found = planner.store.find(step)
        if found is not None:
            manifests[step.name] = found.manifest
    return Built(tuple(subjects), failures, planner.splits, planner.built, manifests)
