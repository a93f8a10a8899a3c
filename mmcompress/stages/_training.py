"""What every training stage shares: :func:`train`, which runs transformers' Trainer to its end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmcompress.errors import StageError, UsageError
from mmcompress.losses import Loss, kept_classes
from mmcompress.stages import Model, StageInput
from mmcompress.stages._batches import Augment, Batches, Encoded, encode
from mmcompress.stages._exhaustion import told_errors
from mmcompress.stages._stored_rows import StoreAs
from mmcompress.stages._training_fields import TeacherOutputs, TrainingFields, wanted

if TYPE_CHECKING:
    import torch

    from mmcompress.stages._objective_modules import Objective
    from mmcompress.stages._teacher_outputs import Asked, Stored
    from mmcompress.stages._trainer_modules import Course, StageTrainer


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
    teacher_views: int | None = None
    """How many views of each example there are where pictures are altered; a new one in each epoch where None."""
    store_as: StoreAs = "int16"
    """How outputs are kept."""
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
    from mmcompress.stages._objective_modules import Objective
    from mmcompress.stages._trainer_modules import StageTrainer, arguments

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
    if asked is not None and live is None:
        asked.release()
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
    from mmcompress.stages._trainer_modules import Course

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
    from mmcompress.stages._teacher_outputs import Asked
    from mmcompress.stages._trainer_modules import autocast

    # Attention maps come from eager attention alone; a forward is faster with SDPA, on a CPU too.
    maps = any(name.endswith(".attentions") for name in want)

    def load() -> torch.nn.Module:
        return teacher.family.load(teacher.folder, attention="eager" if maps else "sdpa").to(device).eval()

    return Asked(teacher.family, load, want, partial(autocast, device, bf16), device)


def _batches(
    training: Training,
    data: tuple[Encoded, Encoded | None],
    asked: Asked | None,
    size: int,
    augment: Augment,
    thin: bool = False,
) -> Batches:
    from mmcompress.stages._stored_keys import teacher_identity
    from mmcompress.stages._teacher_outputs import Keeping, stored

    fields, given = training.fields, training.given
    own, other = data
    keep: Stored | None = None
    if asked is not None and training.teacher_outputs == "cached":
        assert training.teacher is not None
        keeping = Keeping(
            given.cache,
            teacher_identity(training.teacher, given.teacher_key),
            fields.resolved_precision(),
            training.store_as,
            kept_classes(training.losses),
        )
        keep = stored(asked, other or own, keeping, given.progress, augment, training.teacher_views)
    return Batches(
        own,
        size,
        given.seed,
        augment,
        teacher=other if asked is not None and keep is None else None,
        stored=keep,
        asks=asked is not None and keep is None,
        thin=thin,
        views=training.teacher_views,
    )


def _project(objective: Objective, batches: Batches, asked: Asked | None, seed: int) -> None:
    """Let the losses make their projections from the shapes of one batch."""
    if asked is None:
        return
    import torch

    device = asked.device
    batch = {
        part: {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}
        for part, feeds in batches[0].items()
    }
    teacher = batch.get("teacher_outputs") or asked(batch.get("teacher_inputs", batch["inputs"]))
    objective.add_projections(batch["inputs"], teacher, seed)


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; half-written ones are removed."""
    from mmcompress.stages._trainer_modules import complete_checkpoints

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
