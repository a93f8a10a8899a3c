"""Training without a teacher, by the task's own loss: it makes teachers, and the baselines of students."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcompress.component import JSON
from mmcompress.families import Family
from mmcompress.losses.task import Task
from mmcompress.stages import Stage, StageInput
from mmcompress.stages._student import Student, begin, student_family, student_problems
from mmcompress.stages._training import Training, train
from mmcompress.stages._training_fields import Problems, TrainingFields


class Finetune(TrainingFields, Stage):
    """Trains the model so far, or a new one, with its family's task loss."""

    student: Student = None
    """Begins with this model instead: any family (``clip: {config: small.json}`` trains from nothing), or a cut."""
    freeze: tuple[str, ...] = ()
    """Modules or parameters that stay as they are, by prefix of their names (``vision_model``)."""

    def problems(self, model: Family | None, teacher: Family | None) -> Problems:
        """No model to train; batches of one."""
        problems = student_problems(self.student, model, teacher)
        family = student_family(self.student, model, teacher)
        return problems + (self.training_problems(family, (Task(),)) if family is not None else [])

    def result_family(self, model: Family | None) -> Family:
        """The student's family where one is named."""
        return self.student if isinstance(self.student, Family) else super().result_family(model)

    def environment(self) -> Mapping[str, JSON]:
        """Resolved precision and attention, kind of device, versions of libraries."""
        return self.training_environment()

    def run(self, given: StageInput) -> Mapping[str, Any]:
        """Train; see :func:`mmcompress.stages._training.train`."""
        student = begin(self.student, given)
        return train(Training(self, given, student, (Task(),), freeze=self.freeze))
