"""What the losses on layers share: their fields, and which of the student's layers is compared with which of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from mmcompress.errors import UsageError
from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    from torch import Tensor

Layers = Annotated[tuple[int, ...], Field(min_length=1)] | None
"""Layers by index from 0, or from -1 at the end."""


class LayerLoss(Loss):
    """A loss that compares layers of a part with their counterparts, token by token."""

    what: ClassVar[str]
    """Which outputs: ``hidden_states`` or ``attentions``."""

    part: str = Field("vision", pattern=r"^[a-z_]+$")
    """Of what: ``vision``, ``text``, ``encoder``, ..."""
    student_layers: Layers = None
    """Layers of the student that are compared, from 0, or from -1 at the end; all where absent."""
    teacher_layers: Layers = None
    """Their counterparts, in the same order; evenly spaced where absent, the first with the first, the last with the last."""
    masked: bool = True
    """Only tokens that count by ``<part>.mask``; false for all positions, padding too."""

    @model_validator(mode="after")
    def _pairs(self) -> LayerLoss:
        ours, theirs = self.student_layers, self.teacher_layers
        if ours is not None and theirs is not None and len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} student_layers and {len(theirs)} teacher_layers; expected as many of both")
        return self

    @property
    def output(self) -> str:
        """The name of the outputs that are compared."""
        return f"{self.part}.{self.what}"

    def needs(self) -> frozenset[str]:
        """The layers' outputs, and the mask."""
        return frozenset({self.output, f"{self.part}.mask"} if self.masked else {self.output})

    def accumulates(self) -> bool:
        """Yes: a mean over the tokens that count."""
        return True

    def count(self, student: Outputs) -> Tensor:
        """Tokens that count."""
        import torch

        mask = self.mask(student)
        if mask is not None:
            return mask.sum()
        first = student[self.output][0]
        return torch.tensor(float(len(first) * first.shape[-2]))

    def count_needs(self) -> frozenset[str]:
        """The mask, where not all tokens count."""
        return frozenset({f"{self.part}.mask"} if self.masked else set())

    def mask(self, student: Outputs) -> Tensor | None:
        """[b, s], or None where all tokens count. Both models saw the same ones, so that the student's mask serves."""
        mask: Tensor | None = student[f"{self.part}.mask"] if self.masked else None
        return mask

    def pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """The outputs of each layer of the student and of its counterpart.

        Raises:
            UsageError: as :func:`layer_map`; or a model gave no layers.
        """
        ours, theirs = student[self.output], teacher[self.output]
        name = self.component_name()
        for role, layers in (("student", ours), ("teacher", theirs)):
            if not layers:
                raise UsageError(f"{name}: the {role} gave no {self.output}; maps come from eager attention alone")
        chosen = layer_map(name, len(ours), len(theirs), self.student_layers, self.teacher_layers)
        return [(ours[one], theirs[other]) for one, other in chosen]


def evenly(student: int, teacher: int) -> list[int]:
    """The teacher's layer for each of the student's: the first with the first, the last with the last.

    A student that was cut evenly from its teacher has the weights of these layers. A single layer answers for the last.
    """
    if student == 1:
        return [teacher - 1]
    return [round(index * (teacher - 1) / (student - 1)) for index in range(student)]


def layer_map(
    loss: str,
    student: int,
    teacher: int,
    student_layers: Sequence[int] | None = None,
    teacher_layers: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """Pairs of a layer of the student and one of the teacher, by index from 0.

    Args:
        loss: the name of the loss, for errors.
        student: how many layers the student has.
        teacher: how many the teacher has.
        student_layers: those that are compared; all where absent.
        teacher_layers: their counterparts, in the same order; those of :func:`evenly` where absent.

    Raises:
        UsageError: a layer that is not there, or not one counterpart for each of the student's.
    """
    ours = range(student) if student_layers is None else [_index(loss, "student", i, student) for i in student_layers]
    if teacher_layers is None:
        even = evenly(student, teacher)
        return [(index, even[index]) for index in ours]
    theirs = [_index(loss, "teacher", i, teacher) for i in teacher_layers]
    if len(theirs) != len(ours):
        raise UsageError(
            f"{loss}: teacher_layers names {len(theirs)} layers for the student's {len(ours)}\n"
            "  Name one for each, or say which of the student's layers are meant by student_layers."
        )
    return list(zip(ours, theirs, strict=True))


def _index(loss: str, role: str, layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise UsageError(f"{loss}: the {role} has no layer {layer}; expected {-count} to {count - 1}")
    return layer % count


def check_shapes(loss: str, output: str, student: Tensor, teacher: Tensor) -> None:
    """Both models give an output (or the axes of it that are passed) in the same shape.

    Raises:
        UsageError: they cut their inputs into other tokens or frames, or know other classes.
    """
    if student.shape != teacher.shape:
        raise UsageError(
            f"{loss}: the student's {output} are {list(student.shape)} where the teacher's are {list(teacher.shape)}\n"
            "  Only models with the same tokens (patches, frames) and classes can be compared so; others by a loss on\n"
            "  embeddings, or after the picture size, the tokenizer or the classes were made the same."
        )
