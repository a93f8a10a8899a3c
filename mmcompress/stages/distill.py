"""Training by a teacher: the student learns to give what the teacher gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from mmcompress.component import JSON, parse
from mmcompress.errors import UsageError
from mmcompress.families import Family
from mmcompress.losses import AnyLoss, Loss, kept_classes
from mmcompress.losses.task import Task
from mmcompress.stages import Model, Stage, StageInput
from mmcompress.stages._answers import TEXT, AnsweringTeacher
from mmcompress.stages._feeding import Answers, Teacher
from mmcompress.stages._further_teachers import AnyFurtherTeacher
from mmcompress.stages._pseudo_labels import LabelFilter, Labels, target_of, with_given_labels, with_teacher_labels
from mmcompress.stages._stored_rows import StoreAs
from mmcompress.stages._student import Student, begin, student_family, student_problems
from mmcompress.stages._teacher_outputs import mask_of
from mmcompress.stages._training import Training, train
from mmcompress.stages._training_fields import Problems, TeacherOutputs, TrainingFields
from mmcompress.stages._vocabularies import differing, logits_of

PER_LAYER = (".hidden_states", ".attentions")


class Distill(TrainingFields, Stage):
    """Trains a student, or the model so far, to follow the teacher."""

    student: Student = None
    """``from_teacher: {...}`` cuts one from the teacher; any family component; the model so far where absent."""
    losses: Annotated[tuple[AnyLoss, ...], Field(min_length=1)] | None = None
    """The weighted terms; the family's own choice where none are named (see :meth:`Family.default_losses`)."""
    teachers: tuple[AnyFurtherTeacher, ...] = ()
    """Further teachers, each with its share: ``[{clip: {path: other}, weight: 0.3}]``. The recipe's teacher has what is left
    of 1. Distributions are averaged (after the softmax), other losses are averaged as losses."""
    teacher_outputs: TeacherOutputs | None = None
    """``cached`` asks the teacher once about every example and keeps the answers; ``online`` asks it at every step.
    Where neither is said, ``cached`` if the losses allow it and read no sequence's logits without ``top_k``."""
    teacher_views: int | None = Field(None, ge=1, le=1000)
    """With ``augment``: each example is seen in this many views and no others, one per epoch in turn, and the teacher's
    answers about them can be cached. The views are the same for every seed. Without it, every epoch has new views."""
    store_as: StoreAs = "int16"
    """Cached answers are kept in two bytes a number (``int16`` with a scale per row, or ``bf16`` where the numbers of a row
    lie far apart) or in one (``int8``)."""
    labels: Labels = "data"
    """What the student learns to write: the data's texts, or the ``teacher``'s own, written once and kept."""
    label_filter: LabelFilter | None = None
    """Which of the teacher's texts are kept; those that are not empty where none is given."""
    freeze: tuple[str, ...] = ()
    """Modules or parameters that stay as they are, by prefix of their names (``text_model``)."""

    @model_validator(mode="after")
    def _shares_left(self) -> Distill:
        given = sum(teacher.weight for teacher in self.teachers)
        if given >= 1:
            raise ValueError(
                f"teachers: their weights add up to {given:g}; expected less than 1, for the recipe's teacher"
            )
        return self

    def problems(self, model: Family | None, teacher: Family | None) -> Problems:
        """No teacher, outputs that one of the two does not give, outputs that cannot be stored."""
        problems = student_problems(self.student, model, teacher)
        if teacher is None:
            return [*problems, ((), "there is no teacher; expected a `teacher`, or a stage before that makes one")]
        family = student_family(self.student, model, teacher)
        if family is None:
            return problems
        losses = self.terms(family)
        problems += self.training_problems(family, losses)
        problems += self._unfed(losses, family, teacher)
        for number, further in enumerate(self.teachers):
            problems += self._unfit(number, losses, family, further.family())
        problems += self._other_words(losses, family, teacher)
        if self.teacher_outputs == "cached":
            problems += self._not_stored(losses, teacher)
        if isinstance(teacher, AnsweringTeacher) and (self.teachers or self.teacher_outputs == "online"):
            problems.append(
                (("teacher_outputs",), "a file of answers is no model: expected neither `online` nor `teachers`")
            )
        if self.teacher_views is not None and self.augment == "none":
            problems.append((("teacher_views",), "views are altered pictures: expected `augment: shift` or `crop`"))
        problems += self._unwritten(teacher, family)
        own_labels = self.labels == "data"
        if own_labels and all(isinstance(loss, Task) or loss.weight == 0 for loss in losses):
            problems.append((("losses",), "none compares with the teacher; expected one that does, or `finetune`"))
        return problems

    def terms(self, family: Family) -> tuple[Loss, ...]:
        """The losses for a student of a family: those named, or the family's own choice."""
        if self.losses is not None:
            return self.losses
        return tuple(cast("Loss", parse("losses", value)) for value in family.default_losses())

    def asking(self, family: Family) -> TeacherOutputs:
        """Whether the teacher's outputs are stored or asked for at every step."""
        if self.teacher_outputs is not None:
            return self.teacher_outputs
        losses = self.terms(family)
        sequences = {name for loss in losses for name in loss.needs() if mask_of(family, name) in loss.needs()}
        # Every class of every token is as large as no data set is: that is cached where it is asked for.
        return "online" if self._not_stored(losses, family) or sequences - kept_classes(losses).keys() else "cached"

    def _unfed(self, losses: Sequence[Loss], student: Family, teacher: Family) -> Problems:
        problems: Problems = []
        for index, loss in enumerate(losses):
            for role, family in (("student", student), ("teacher", teacher)):
                missing = loss.needs() - family.provides()
                if missing:
                    message = (
                        f"needs {', '.join(sorted(missing))}, which {family.component_name()} (the {role}) does not give;"
                        f" it gives: {', '.join(sorted(family.provides()))}"
                    )
                    problems.append((("losses", index, loss.component_name()), message))
        return problems

    def _unfit(self, number: int, losses: Sequence[Loss], student: Family, teacher: Family) -> Problems:
        """What a further teacher cannot do."""
        where: tuple[str | int, ...] = ("teachers", number, teacher.component_name())
        problems: Problems = [
            (where, message) for _, message in self._unfed(losses, student, teacher) if "(the teacher)" in message
        ]
        if self.teacher_outputs == "cached":
            problems += [(where, message) for _, message in self._not_stored(losses, teacher)]
        if kept_classes(losses) and self.asking(student) == "cached":
            problems.append((where, "top_k keeps other classes of each teacher; expected no top_k, or `online`"))
        return problems + [(where, message) for _, message in self._other_words(losses, student, teacher)]

    def _other_words(self, losses: Sequence[Loss], student: Family, teacher: Family) -> Problems:
        """Logits of other classes or tokens, where both checkpoints lie in folders."""
        ours, theirs = (one.path or (one.config.parent if one.config else None) for one in (student, teacher))
        if student is teacher or isinstance(teacher, AnsweringTeacher) or ours is None or theirs is None:
            return []
        found = {name: differing(name, Model(student, ours), Model(teacher, theirs)) for name in logits_of(losses)}
        return [(("losses",), f"{name} cannot be compared: {reason}") for name, reason in found.items() if reason]

    def _unwritten(self, teacher: Family, student: Family) -> Problems:
        if self.labels == "data":
            return [(("label_filter",), "filters what `labels: teacher` gives")] if self.label_filter else []
        if isinstance(teacher, AnsweringTeacher):
            return self._unwritten_in(teacher, student)
        column = target_of(teacher)
        if column is None:
            return [(("labels",), f"{teacher.component_name()} writes no texts that a student could learn")]
        if column not in student.columns:
            return [(("labels",), f"the teacher writes {column}, which {student.component_name()} does not learn")]
        return []

    def _unwritten_in(self, teacher: AnsweringTeacher, student: Family) -> Problems:
        if teacher.given.texts is None:
            return [(("labels",), f"the answers hold no {TEXT} that a student could learn")]
        if target_of(student) is None:
            return [(("labels",), f"{student.component_name()} writes no texts")]
        if self.label_filter is not None and self.label_filter.max_wer is not None:
            return [(("label_filter", "max_wer"), "the spellings of a model without a folder are not known")]
        return []

    def _not_stored(self, losses: Sequence[Loss], teacher: Family) -> Problems:
        problems: Problems = []
        if self.augment != "none" and self.teacher_views is None:
            message = (
                f"`augment: {self.augment}` shows a new view in each epoch; expected `teacher_views: 4`, or `online`"
            )
            problems.append((("teacher_outputs",), message))
        for index, loss in enumerate(losses):
            needs = loss.needs()
            live = sorted(name for name in needs if name.endswith(PER_LAYER) or name in teacher.changing())
            masks = {name: mask_of(teacher, name) for name in sorted(needs) if not name.startswith("fusion.")}
            unmasked = sorted(name for name, mask in masks.items() if mask is not None and mask not in needs)
            where = ("losses", index, loss.component_name())
            if live:
                problems.append((where, f"{', '.join(live)} cannot be cached; expected `teacher_outputs: online`"))
            elif unmasked:
                mask = masks[unmasked[0]]
                problems.append((where, f"{unmasked[0]} is cached with its mask; expected `mask: {mask}`, or `online`"))
        return problems

    def settled(self, family: Family) -> Stage:
        """With the losses named that a student of the family has."""
        return self.model_copy(update={"losses": self.terms(family)})

    def further_teachers(self) -> tuple[Any, ...]:
        """The models of ``teachers``."""
        return tuple(teacher.model for teacher in self.teachers)

    def result_family(self, model: Family | None) -> Family:
        """The student's family where one is named; a cut has that of the model so far."""
        return self.student if isinstance(self.student, Family) else super().result_family(model)

    def environment(self) -> Mapping[str, JSON]:
        """Resolved precision and attention, kind of device, versions of libraries."""
        return self.training_environment(self.losses or ())

    def run(self, given: StageInput) -> Mapping[str, Any]:
        """Train; see :func:`mmcompress.stages._training.train`."""
        main = given.teacher
        if main is None and given.answers is None:
            raise UsageError("distill: there is no teacher\n  Name a `teacher` in the recipe.")
        student = begin(self.student, given)
        told: dict[str, JSON] = {}
        if self.labels == "teacher":
            rules = self.label_filter or LabelFilter()
            given, told["labels"] = (
                with_teacher_labels(given, rules)
                if given.answers is None
                else with_given_labels(given, given.answers, student.family, rules)
            )
        if given.answers is not None or main is None:
            facts = train(Training(self, given, student, self.terms(student.family), freeze=self.freeze))
            return {**facts, **told, "teacher_outputs": "given"}
        losses, asking = self.terms(student.family), self.asking(student.family)
        answers = Answers(asking, self.teacher_views, self.store_as)
        shares = [teacher.weight for teacher in self.teachers]
        others = [Teacher(one, key, share) for (one, key), share in zip(given.others, shares, strict=True)]
        teachers = (Teacher(main, given.teacher_key, 1 - sum(shares)), *others)
        facts = train(Training(self, given, student, losses, teachers, answers, self.freeze))
        return {**facts, **told, "teacher_outputs": asking}
