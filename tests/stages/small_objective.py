"""A student of two linear towers and a decoder, with drop-out, for tests of how losses and gradients are computed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from mmcompress.losses._embeddings import PairLoss
from mmcompress.stages._objective_modules import Objective
from mmcompress.stages._whole_batch_modules import WholeBatch, cut

BATCH, TOKENS, CLASSES = 12, 5, 7


class Student(torch.nn.Module):
    def __init__(self, dropout: float = 0.0, limit: int | None = None) -> None:
        super().__init__()
        self.vision, self.text = torch.nn.Linear(6, 8), torch.nn.Linear(6, 8)
        self.decoder = torch.nn.Linear(6, CLASSES)
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))
        self.dropout = torch.nn.Dropout(dropout)
        self.limit = limit
        self.sizes: list[int] = []


class Towers:
    """What a family answers."""

    def __init__(self, adds_up: bool = True) -> None:
        self.adds_up = adds_up

    def outputs(self, model: Student, batch: Any, want: frozenset[str]) -> dict[str, Any]:
        size = len(batch["pixel_values"])
        model.sizes.append(size)
        if model.limit is not None and size > model.limit:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"
            )
        found: dict[str, Any] = {
            "vision.embeds": normalize(model.vision(model.dropout(batch["pixel_values"])), dim=-1),
            "text.embeds": normalize(model.text(model.dropout(batch["texts"])), dim=-1),
            "fusion.logit_scale": model.logit_scale.exp(),
        }
        states = model.dropout(batch["frames"])
        found["decoder.logits"] = model.decoder(states)
        found["decoder.mask"] = (batch["labels"] >= 0).float()
        return {name: found[name] for name in found if name in want}

    def mixing(self) -> frozenset[str]:
        return frozenset()

    def task_needs(self) -> frozenset[str]:
        return frozenset({"decoder.logits"})

    def task_loss(self, outputs: Any, batch: Any) -> Any:
        return cross_entropy(outputs["decoder.logits"].flatten(0, 1), batch["labels"].flatten(), ignore_index=-1)

    def task_count(self, batch: Any) -> Any:
        return (batch["labels"] >= 0).sum() if self.adds_up else None


def batch(seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=draw)

    labels = torch.randint(0, CLASSES, (BATCH, TOKENS), generator=draw)
    # Texts of very different lengths, so that a mean of means would be another number.
    lengths = torch.tensor([1, 1, 1, 1, 5, 5, 5, 5, 2, 3, 4, 5])
    labels[torch.arange(TOKENS)[None] >= lengths[:, None]] = -1
    teacher = {
        "vision.embeds": normalize(normal(BATCH, 4), dim=-1),
        "text.embeds": normalize(normal(BATCH, 4), dim=-1),
        "fusion.logit_scale": torch.tensor(5.0),
        "decoder.logits": 3 * normal(BATCH, TOKENS, CLASSES),
        "decoder.mask": (labels >= 0).float(),
    }
    inputs = {"pixel_values": normal(BATCH, 6), "texts": normal(BATCH, 6), "frames": normal(BATCH, TOKENS, 6)}
    return {"inputs": {**inputs, "labels": labels}, "teacher_outputs": teacher}


def objective(losses: list[Any], dropout: float = 0.0, adds_up: bool = True, limit: int | None = None) -> Objective:
    torch.manual_seed(0)
    family: Any = Towers(adds_up)
    want = frozenset[str]().union(*(loss.needs() for loss in losses)) | family.task_needs()
    made = Objective(family, Student(dropout, limit), losses, want)
    whole = batch()
    few = cut(whole, slice(0, 2), BATCH)
    student, made.student = made.student, Student()
    made.add_projections(few["inputs"], [few["teacher_outputs"]], seed=1)
    made.student = student
    return made.train()


def whole_batch(made: Objective) -> WholeBatch:
    return WholeBatch(made, lambda part, want: [part["teacher_outputs"]], nullcontext)


def gradients(made: Objective) -> dict[str, Any]:
    return {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}


def apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """How far gradients are apart, as a share of the length of each."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - one).norm() / one.norm()) for name, one in expected.items())


class Spread(PairLoss):
    """Compares all pairs of examples, without a teacher's help."""

    def needs(self) -> frozenset[str]:
        return frozenset(self.embeds)

    def compute(self, student: Any, teacher: Any, projection: Any) -> Any:
        one, other = (student[name] for name in self.embeds)
        return ((one @ other.T) ** 3).mean()
