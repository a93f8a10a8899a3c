"""The fields that every training stage has: how long, how fast and how precisely it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmcompress.component import JSON, library_versions
from mmcompress.families import Family
from mmcompress.losses import Loss
from mmcompress.losses._embeddings import embedded_pair
from mmcompress.losses.task import Task
from mmcompress.stages._batches import Augment

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
    """Examples of an optimiser step, over all processes: those that contrastive losses compare with one another."""
    accumulation: int = Field(1, ge=1)
    """Parts that a batch is computed in, one after the other, so that it needs less memory. Loss and gradients stay those
    of the whole batch: losses that compare its examples are given the outputs of all of them, for one forward more
    (GradCache, arXiv:2101.06983), and so are means over tokens that count; other losses add up."""
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
        if self.accumulation > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} examples has no {self.accumulation} parts")
        if self.patience is not None and self.evaluations <= self.patience:
            raise ValueError(f"patience {self.patience} never ends a training of {self.evaluations} evaluations")
        return self

    def step_count(self, batches_per_epoch: int) -> int:
        """Optimiser steps in all."""
        if self.steps is not None:
            return self.steps
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return max(1, round(epochs * batches_per_epoch))

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
        mixing = sorted(needs & student.mixing())
        if self.accumulation > 1 and mixing:
            message = f"{', '.join(mixing)} of an example depend on the other examples of its batch, which has no parts"
            problems.append((("accumulation",), message))
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
