"""What a training is fed: its batches, and the teachers' answers to them, asked for live or stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mmcompress import _processes
from mmcompress.errors import InputError
from mmcompress.losses import Loss, kept_classes
from mmcompress.stages import Model, StageInput
from mmcompress.stages._batches import Augment, Batches, Encoded, encode
from mmcompress.stages._shares import Share
from mmcompress.stages._stored_rows import StoreAs
from mmcompress.stages._training_fields import TeacherOutputs

if TYPE_CHECKING:
    import torch

    from mmcompress.stages._teacher_outputs import Asked, Stored


@dataclass(frozen=True)
class Teacher:
    """A model that the student follows."""

    model: Model
    key: str = ""
    """The key of its artifact, for what is stored under it."""
    share: float = 1.0
    """How much it counts among the teachers, whose shares add up to 1."""


@dataclass(frozen=True)
class Answers:
    """How the teachers are asked."""

    outputs: TeacherOutputs = "online"
    views: int | None = None
    """How many views of each example there are where pictures are altered; a new one in each epoch where None."""
    store_as: StoreAs = "int16"
    """How outputs are kept."""


@dataclass(frozen=True)
class Feeding:
    """Makes batches for a student and its teachers."""

    given: StageInput
    student: Model
    losses: tuple[Loss, ...]
    want: frozenset[str]
    """Outputs that the losses read of the student."""
    teachers: tuple[Teacher, ...]
    answers: Answers
    precision: Literal["fp32", "bf16"]
    device: torch.device

    @property
    def asks(self) -> frozenset[str]:
        """Outputs that the losses read of the teachers."""
        return frozenset[str]().union(*(loss.needs() for loss in self.losses))

    def followed(self) -> tuple[Teacher, ...]:
        """The teachers, where any loss reads of them."""
        return self.teachers if self.asks else ()

    def asked(self) -> list[Asked]:
        """The teachers, each loaded when it is asked first."""
        return [self._asked(teacher.model) for teacher in self.followed()]

    def _asked(self, teacher: Model) -> Asked:
        from mmcompress.stages._teacher_outputs import Asked
        from mmcompress.stages._trainer_modules import autocast

        # Attention maps come from eager attention alone; a forward is faster with SDPA, on a CPU too.
        maps = any(name.endswith(".attentions") for name in self.asks)

        def load() -> torch.nn.Module:
            model = teacher.family.load(teacher.folder, attention="eager" if maps else "sdpa")
            return model.to(self.device).eval()

        bf16 = self.precision == "bf16"
        return Asked(teacher.family, load, self.asks, partial(autocast, self.device, bf16), self.device)

    def encoded(self, split: Literal["train", "validation"]) -> Encoded:
        """A split as the student is fed it."""
        return self._encode(split, self.student, self.want)

    def _encode(self, split: Literal["train", "validation"], model: Model, want: frozenset[str]) -> Encoded:
        given = self.given
        examples, identity = given.train, given.train_identity
        if split == "validation":
            assert given.validation is not None
            examples, identity = given.validation, given.validation_identity
        columns = model.family.columns_for(want)
        return _processes.first(
            lambda: encode(examples, model.family, model.folder, given.cache, identity, given.progress, columns)
        )

    def batches(
        self, split: Literal["train", "validation"], asked: Sequence[Asked], size: int, augment: Augment
    ) -> list[Batches]:
        """Batches of the student and the first teacher, and the same ones once more for each further teacher.

        Raises:
            InputError: a batch that cannot be shared evenly among the processes.
        """
        own = self.encoded(split)
        processes = _processes.count() if split == "train" else 1
        if size % processes:
            raise InputError(
                f"batch_size {size} cannot be shared evenly among {processes} processes\n"
                f"  Use {size - size % processes or processes}, or another number of processes."
            )
        found: list[Batches] = []
        for teacher, one in zip(self.followed() or (None,), asked or (None,), strict=True):
            parts = self._of_teacher(split, own, teacher, one, augment)
            found.append(
                Share(
                    own,
                    size,
                    self.given.seed,
                    augment,
                    **parts,
                    thin=split == "train",
                    views=self.answers.views,
                    process=_processes.rank() if processes > 1 else 0,
                    processes=processes,
                )
            )
        return found

    def _of_teacher(
        self,
        split: Literal["train", "validation"],
        own: Encoded,
        teacher: Teacher | None,
        asked: Asked | None,
        augment: Augment,
    ) -> dict[str, Any]:
        if self.given.answers is not None and self.asks:
            from mmcompress.stages._answers import matched

            return {"stored": matched(self.given.answers, own, self.asks)}
        if teacher is None or asked is None:
            return {}
        other = self._encode(split, teacher.model, self.asks)
        if self.answers.outputs == "cached":
            return {"stored": _processes.first(lambda: self._stored(teacher, asked, other, augment))}
        return {"teacher": None if other.key == own.key else other, "asks": True}

    def _stored(self, teacher: Teacher, asked: Asked, data: Encoded, augment: Augment) -> Stored:
        from mmcompress.stages._stored_keys import teacher_identity
        from mmcompress.stages._teacher_outputs import Keeping, stored

        keeping = Keeping(
            self.given.cache,
            teacher_identity(teacher.model, teacher.key),
            self.precision,
            self.answers.store_as,
            kept_classes(self.losses),
        )
        return stored(asked, data, keeping, self.given.progress, augment, self.answers.views)
