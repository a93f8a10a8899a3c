"""What every training stage shares: the fields, and :func:`train`, which runs transformers' Trainer to its end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmcompress.component import JSON, digest_path, library_versions
from mmcompress.errors import StageError, UsageError
from mmcompress.families import Family
from mmcompress.losses import Loss
from mmcompress.losses._embeddings import embedded_pair
from mmcompress.losses.task import Task
from mmcompress.stages import Model, StageInput
from mmcompress.stages._batches import Augment, Batches, Encoded, encode
from mmcompress.stages._exhaustion import told_errors

if TYPE_CHECKING:
    import torch

    from mmcompress.stages._modules import Course, Objective, StageTrainer
    from mmcompress.stages._teacher_outputs import Asked

DEFAULT_EPOCHS = 10.0
TeacherOutputs = Literal["cached", "online"]
Problems = list[tuple[tuple[str | int, ...], str]]


class TrainingFields(BaseModel):
    """How long, how fast and how precisely a stage trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float | None = Field(None, gt=0)
    """Passes over the training data; 10 where neither this nor ``steps`` is given."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, instead of ``epochs``."""
    batch_size: int = Field(256, ge=1)
    """Examples that are fed, and compared by contrastive losses, at a time."""
    accumulation: int = Field(1, ge=1)
    """Batches per optimiser step. It does not make contrastive losses compare more examples."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """For matrices alone; biases, norms and the logit scale are free."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 for any."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``bf16`` is autocast; ``auto`` takes it where the machine computes in it."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """``auto`` is eager on a CPU, where the backward of SDPA is slow, and SDPA on a GPU."""
    augment: Augment = "none"
    """Views of the pictures: ``shift`` or ``crop``, with a little colour; never mirrored."""
    evaluations: int = Field(0, ge=0)
    """Times that the validation data is evaluated, evenly spaced, the last at the end; the best model is kept."""
    best_by: Literal["loss", "retrieval"] = "loss"
    """What the best model is best by: the training's loss, or retrieval within batches."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without a better model after which training stops."""
    checkpoints: int = Field(0, ge=0)
    """Checkpoints evenly spaced, besides those by time."""
    checkpoint_minutes: float = Field(2.0, gt=0)
    """Time between checkpoints, from which a killed run goes on."""

    @model_validator(mode="after")
    def _possible(self) -> TrainingFields:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("expected epochs or steps, not both")
        if self.patience is not None and self.evaluations <= self.patience:
            raise ValueError(f"patience {self.patience} never ends a training of {self.evaluations} evaluations")
        return self

    def step_count(self, batches_per_epoch: int) -> int:
        """Optimiser steps in all."""
        if self.steps is not None:
            return self.steps
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return max(1, round(epochs * batches_per_epoch / self.accumulation))

    def resolved_precision(self) -> Literal["fp32", "bf16"]:
        """The precision on this machine."""
        if self.precision != "auto":
            return self.precision
        import torch

        if torch.cuda.is_available():
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if has_bf16 else "fp32"

    def resolved_attention(self, losses: Sequence[Loss] = ()) -> str:
        """The attention on this machine, with losses that may read its maps."""
        if self.attention != "auto":
            return self.attention
        if any(loss.attention() == "eager" for loss in losses):
            return "eager"
        import torch

        return "sdpa" if torch.cuda.is_available() else "eager"

    def training_environment(self, losses: Sequence[Loss] = ()) -> Mapping[str, JSON]:
        """What shapes the result besides the fields: precision, attention, kind of device, versions."""
        import torch

        return {
            "precision": self.resolved_precision(),
            "attention": self.resolved_attention(losses),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "libraries": library_versions("torch", "transformers", "accelerate"),
        }

    def training_problems(self, student: Family, losses: Sequence[Loss]) -> Problems:
        """What cannot work with these losses: batches of one, retrieval of a model without embeddings."""
        problems: Problems = []
        needs = frozenset[str]().union(*(wanted(student, loss) for loss in losses))
        if self.batch_size < 2 and embedded_pair(needs) is not None:
            problems.append((("batch_size",), "the losses compare the examples of a batch; expected 2 or more"))
        for loss in losses:
            if self.attention == "sdpa" and loss.attention() == "eager":
                message = (
                    f"{loss.component_name()} reads attention maps, which SDPA does not give; expected eager or auto"
                )
                problems.append((("attention",), message))
        if self.best_by == "retrieval" and embedded_pair(needs) is None:
            problems.append((("best_by",), f"{student.component_name()} is trained without embeddings; expected loss"))
        return problems


def wanted(student: Family, loss: Loss) -> frozenset[str]:
    """Outputs that a loss reads of the student."""
    return student.task_needs() if isinstance(loss, Task) else loss.needs()


@dataclass(frozen=True)
class Training:
    """Everything that :func:`train` is given."""

    fields: TrainingFields
    given: StageInput
    student: Model
    """The model folder to start from."""
    losses: tuple[Loss, ...]
    teacher: Model | None = None
    """Asked where a loss needs it."""
    teacher_outputs: TeacherOutputs = "online"
    freeze: tuple[str, ...] = ()
    """Modules or parameters that stay as they are, by prefix of their names."""


def train(training: Training) -> dict[str, Any]:
    """Train, from the last complete checkpoint where a killed run left one, and save the model folder.

    Returns:
        Facts: steps, epochs, seconds, examples_per_second, losses (final terms), validation (one entry per evaluation),
        precision, resumed_from, notes (what was counted in the data).

    Raises:
        InputError: data that does not fit the family or the batch size.
        UsageError: evaluations are asked for and there is no validation data.
        StageError: divergence, memory, a prefix that matched nothing.
    """
    given, fields = training.given, training.fields
    if fields.evaluations and given.validation is None:
        raise UsageError(f"evaluations: {fields.evaluations}, but the recipe has no data.validation")
    began = time.monotonic()
    with told_errors(fields.batch_size):
        trainer, source = _prepare(training)
        checkpoint = _last_checkpoint(trainer.folder)
        trainer.fit(checkpoint)
        training.student.family.save(trainer.objective.student.cpu().eval(), source, given.output)
    first = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    seconds = time.monotonic() - began
    size = fields.batch_size * fields.accumulation
    done = trainer.state.global_step
    return {
        "steps": done,
        "epochs": round(done * fields.accumulation / trainer.batches.per_epoch, 3),
        "seconds": round(seconds, 3),
        "examples_per_second": round((done - first) * size / seconds, 1),
        "losses": trainer.recent_terms(),
        "validation": [
            {name.removeprefix("eval_"): value for name, value in entry.items() if name != "epoch"}
            for entry in trainer.state.log_history
            if "eval_loss" in entry
        ],
        "best_step": trainer.state.best_global_step,
        "precision": fields.resolved_precision(),
        "resumed_from": first,
        "notes": dict(trainer.batches.data.notes),
    }


def _prepare(training: Training) -> tuple[StageTrainer, Path]:
    """The trainer with its model, batches and teacher, and the folder that the model came from."""
    from mmcompress.stages._modules import Objective, StageTrainer, arguments

    given, fields, student = training.given, training.fields, training.student
    bf16 = fields.resolved_precision() == "bf16"
    model = student.family.load(student.folder, attention=fields.resolved_attention(training.losses))
    frozen = freeze(model, training.freeze)
    want = frozenset[str]().union(*(wanted(student.family, loss) for loss in training.losses))
    objective = Objective(student.family, model, training.losses, want)
    asks = frozenset[str]().union(*(loss.needs() for loss in training.losses))
    teacher = training.teacher if asks else None
    data = _encode(training, "train")
    total = fields.step_count(max(1, len(data[0]) // fields.batch_size))
    course = _course(fields, total)
    arguments_of = arguments(
        given.work / "training",
        bf16=bf16,
        seed=given.seed,
        max_steps=total,
        per_device_train_batch_size=fields.batch_size,
        gradient_accumulation_steps=fields.accumulation,
        learning_rate=fields.learning_rate,
        weight_decay=fields.weight_decay,
        warmup_steps=round(fields.warmup * total),
        lr_scheduler_type="constant_with_warmup" if fields.schedule == "constant" else fields.schedule,
        max_grad_norm=fields.clip,
        metric_for_best_model=course.metric,
        greater_is_better=fields.best_by == "retrieval",
    )
    asked = _asked(training, teacher, asks, arguments_of.device, bf16) if teacher is not None else None
    batches = _batches(training, data, asked, fields.batch_size, fields.augment, thin=True)
    validation = None
    if fields.evaluations:
        held = _encode(training, "validation")
        validation = _batches(training, held, asked, min(fields.batch_size, len(held[0])), "none")
    live = asked if training.teacher_outputs == "online" else None
    objective.to(arguments_of.device)
    _project(objective, batches, asked, given.seed)
    trainer = StageTrainer(
        objective,
        arguments_of,
        batches=batches,
        validation=validation,
        teacher=live,
        course=course,
        tell=given.progress,
    )
    given.progress(f"{frozen} parameters frozen" if frozen else "training", 0, total)
    return trainer, student.folder


def freeze(model: torch.nn.Module, prefixes: Sequence[str]) -> int:
    """Take parameters out of training by prefixes of their names; gives how many numbers they hold.

    Raises:
        StageError: a prefix matches nothing, or nothing is left to train.
    """
    count = 0
    for prefix in prefixes:
        matched = [p for name, p in model.named_parameters() if name == prefix or name.startswith(f"{prefix}.")]
        if not matched:
            parts = sorted({name.partition(".")[0] for name, _ in model.named_parameters()})
            raise StageError(f"freeze: nothing is called {prefix!r}; the model has {', '.join(parts)}")
        for parameter in matched:
            count += parameter.numel() if parameter.requires_grad else 0
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise StageError("freeze: nothing is left to train")
    return count


def _course(fields: TrainingFields, total: int) -> Course:
    from mmcompress.stages._modules import Course

    def spread(count: int) -> frozenset[int]:
        return frozenset(max(1, round(total * i / count)) for i in range(1, count + 1)) if count else frozenset()

    return Course(
        steps=total,
        evaluate_at=spread(fields.evaluations),
        save_at=spread(fields.checkpoints),
        save_every_seconds=fields.checkpoint_minutes * 60,
        patience=fields.patience,
        metric=f"eval_{fields.best_by}",
    )


def _encode(training: Training, split: Literal["train", "validation"]) -> tuple[Encoded, Encoded | None]:
    """The split as the student is fed it and, where it is another, as the teacher is."""
    given, student, teacher = training.given, training.student, training.teacher
    examples, identity = given.train, given.train_identity
    if split == "validation":
        assert given.validation is not None
        examples, identity = given.validation, given.validation_identity

    def of(model: Model) -> Encoded:
        return encode(examples, model.family, model.folder, given.cache, identity, given.progress)

    own = of(student)
    if teacher is None:
        return own, None
    other = of(teacher)
    return own, None if other.key == own.key else other


def _asked(training: Training, teacher: Model, want: frozenset[str], device: torch.device, bf16: bool) -> Asked:
    from mmcompress.stages._modules import autocast
    from mmcompress.stages._teacher_outputs import Asked

    # Attention maps come from eager attention alone; a forward is faster with SDPA, on a CPU too.
    maps = any(name.endswith(".attentions") for name in want)
    model = teacher.family.load(teacher.folder, attention="eager" if maps else "sdpa")
    return Asked(teacher.family, model.to(device).eval(), want, partial(autocast, device, bf16))


def _batches(
    training: Training,
    data: tuple[Encoded, Encoded | None],
    asked: Asked | None,
    size: int,
    augment: Augment,
    thin: bool = False,
) -> Batches:
    from mmcompress.stages._teacher_outputs import stored

    fields, given = training.fields, training.given
    own, other = data
    keep: Callable[..., Any] | None = None
    if asked is not None and training.teacher_outputs == "cached":
        assert training.teacher is not None
        key = given.teacher_key or digest_path(training.teacher.folder)
        keep = stored(asked, other or own, key, fields.resolved_precision(), given.cache, given.progress)
    return Batches(
        own,
        size,
        given.seed,
        augment,
        teacher=other if asked is not None and keep is None else None,
        stored=keep,
        asks=asked is not None and keep is None,
        thin=thin,
    )


def _project(objective: Objective, batches: Batches, asked: Asked | None, seed: int) -> None:
    """Let the losses make their projections from the shapes of one batch."""
    if asked is None:
        return
    import torch

    device = next(asked.model.parameters()).device
    batch = {
        part: {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}
        for part, feeds in batches[0].items()
    }
    teacher = batch.get("teacher_outputs") or asked(batch.get("teacher_inputs", batch["inputs"]))
    objective.add_projections(batch["inputs"], teacher, seed)


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; half-written ones are removed."""
    from mmcompress.stages._modules import complete_checkpoints

    complete = complete_checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if path not in complete:
            shutil.rmtree(path)
    return complete[-1] if complete else None


def prepare_student(given: StageInput, write: Callable[[Path], None]) -> Path:
    """A student's first model folder in the work folder: written once, found by a run that goes on."""
    folder = given.work / "student"
    if not folder.is_dir():
        part = given.work / "student.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        os.replace(part, folder)
    return folder
