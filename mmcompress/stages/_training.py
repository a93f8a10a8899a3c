"""What every training stage shares: :func:`train`, which runs transformers' Trainer to its end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress import _processes
from mmcompress.component import digest_json, dump
from mmcompress.errors import StageError, UsageError
from mmcompress.families._structure import carry_readme
from mmcompress.losses import Loss
from mmcompress.stages import Model, StageInput
from mmcompress.stages._batches import Batches
from mmcompress.stages._exhaustion import told_errors
from mmcompress.stages._feeding import Answers, Feeding, Teacher
from mmcompress.stages._tracking import Tracker
from mmcompress.stages._training_checkpoints import complete_checkpoints
from mmcompress.stages._training_fields import TrainingFields, wanted
from mmcompress.stages._vocabularies import check_vocabularies

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from mmcompress.stages._trainer_modules import Course, StageTrainer


@dataclass(frozen=True)
class Training:
    """Everything that :func:`train` is given."""

    fields: TrainingFields
    given: StageInput
    student: Model
    """The model folder to start from."""
    losses: tuple[Loss, ...]
    teachers: tuple[Teacher, ...] = ()
    """Asked where a loss needs it; the main one first."""
    answers: Answers = field(default_factory=Answers)
    freeze: tuple[str, ...] = ()
    """Modules or parameters that stay as they are, by prefix of their names."""


def train(training: Training) -> dict[str, Any]:
    """Train, from the last complete checkpoint where a killed run left one, and save the model folder.

    Returns:
        Facts: steps, epochs, seconds, examples_per_second, losses (final terms), validation (one entry per evaluation),
        precision, resumed_from, processes, parts (that a batch was computed in), split_at (the step since which it was
        split, because it did not fit into memory), notes (what was counted in the data).

    Raises:
        InputError: data that does not fit the family or the batch size.
        UsageError: evaluations are asked for and there is no validation data; processes that disagree.
        StageError: divergence, memory, a prefix that matched nothing.
    """
    given, fields = training.given, training.fields
    if fields.evaluations and given.validation is None:
        raise UsageError(f"evaluations: {fields.evaluations}, but the recipe has no data.validation")
    began = time.monotonic()
    with told_errors(fields.batch_size):
        trainer, tracker, frozen = _prepare(training)
        checkpoint = _processes.first(lambda: _last_checkpoint(trainer.folder))
        first = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        if tracker is not None:
            tracker.open(first)
        message = f"{frozen} parameters frozen" if frozen else "training"
        given.progress(message, first, trainer.course.steps)
        trainer.fit(checkpoint)
        if tracker is not None:
            tracker.close()
        if not _processes.rank():
            _save(training, trainer)
    seconds = time.monotonic() - began
    done = trainer.state.global_step
    return {
        "steps": done,
        "epochs": round(done / trainer.batches[0].per_epoch, 3),
        "seconds": round(seconds, 3),
        "examples_per_second": round((done - first) * fields.batch_size / seconds, 1),
        "losses": trainer.recent_terms(),
        "validation": [
            {name.removeprefix("eval_"): value for name, value in entry.items() if name != "epoch"}
            for entry in trainer.state.log_history
            if "eval_loss" in entry
        ],
        "best_step": trainer.state.best_global_step,
        "precision": fields.resolved_precision(),
        "resumed_from": first,
        "processes": _processes.count(),
        "parts": trainer.parts,
        "split_at": trainer.split_at,
        "notes": dict(trainer.batches[0].data.notes),
    }


def _save(training: Training, trainer: StageTrainer) -> None:
    family, source, output = training.student.family, training.student.folder, training.given.output
    family.save(trainer.objective.student.cpu().eval(), source, output)
    carry_readme(family.component_name(), source, output)


def _prepare(training: Training) -> tuple[StageTrainer, Tracker | None, int]:
    """The trainer with its model, batches and teachers; what writes its scalars; and how many parameters are frozen."""
    from mmcompress.stages._objective_modules import Objective
    from mmcompress.stages._trainer_modules import StageTrainer

    given, fields, student = training.given, training.fields, training.student
    model = student.family.load(student.folder, attention=fields.resolved_attention(training.losses))
    frozen = freeze(model, training.freeze)
    want = frozenset[str]().union(*(wanted(student.family, loss) for loss in training.losses))
    device = _device()
    feeding = Feeding(
        given, student, training.losses, want, training.teachers, training.answers, fields.resolved_precision(), device
    )
    check_vocabularies(training.losses, student, [teacher.model for teacher in feeding.followed()])
    total = fields.step_count(max(1, len(feeding.encoded("train")) // fields.batch_size))
    course = _course(fields, total)
    # Process 0 writes the checkpoints, and the others read them.
    folder = Path(_processes.told_by_first(str(given.work))) / "training"
    asked = feeding.asked()
    batches = feeding.batches("train", asked, fields.batch_size, fields.augment)
    _processes.agree("what is trained", _digest(training, batches[0]))
    validation = None
    if fields.evaluations:
        size = min(fields.batch_size, len(feeding.encoded("validation")))
        validation = feeding.batches("validation", asked, size, "none")
    cached = training.answers.outputs == "cached"
    for one in asked if cached else ():
        one.release()
    shares = [teacher.share for teacher in feeding.followed()] or [1.0]
    if _processes.count() > 1 and want & student.family.mixing():
        raise UsageError(
            f"{', '.join(sorted(want & student.family.mixing()))} of an example depend on the other examples of its batch,"
            " which processes cannot share\n  Train with one process."
        )
    objective = Objective(student.family, model, training.losses, want, shares).to(device)
    tracker = Tracker(given.track) if given.track is not None and not _processes.rank() else None
    trainer = StageTrainer(
        objective,
        _arguments(fields, folder, given.seed, course),
        batches=batches,
        validation=validation,
        teachers=[None if cached else one for one in asked] or [None],
        course=course,
        tell=given.progress,
        parts=fields.accumulation,
        tracker=tracker,
    )
    if asked or (given.answers is not None and feeding.asks):
        trainer.project(given.seed)
    return trainer, tracker, frozen


def _device() -> torch.device:
    import torch

    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if _processes.count() > 1 else 0)
        if (torch.cuda.is_available())
        else torch.device("cpu")
    )


def _digest(training: Training, batches: Batches) -> str:
    """What must be the same in all processes."""
    losses = [dump(loss) for loss in training.losses]
    return digest_json([training.fields.model_dump(mode="json"), losses, batches.data.key, training.given.seed])


def _arguments(fields: TrainingFields, folder: Path, seed: int, course: Course) -> TrainingArguments:
    from mmcompress.stages._trainer_modules import arguments

    return arguments(
        folder,
        bf16=fields.resolved_precision() == "bf16",
        seed=seed,
        max_steps=course.steps,
        per_device_train_batch_size=fields.batch_size,
        learning_rate=fields.learning_rate,
        weight_decay=fields.weight_decay,
        warmup_steps=round(fields.warmup * course.steps),
        lr_scheduler_type="constant_with_warmup" if fields.schedule == "constant" else fields.schedule,
        max_grad_norm=fields.clip,
        metric_for_best_model=course.metric,
        greater_is_better=fields.best_by == "retrieval",
    )


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


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; half-written ones are removed."""
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
