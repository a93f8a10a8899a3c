"""Every loss that can be cached gives the same from what is stored as from the teacher itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_helpers import CLASSES, Teacher, data, keep, names

from mmcompress.component import every, parse
from mmcompress.losses import Loss, kept_classes

pytestmark = pytest.mark.unit
SEQUENCE = {"output": "decoder.logits", "mask": "decoder.mask"}
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("feature_mse", {}),
    ("cosine", {}),
    ("icl", {}),
    ("affinity", {}),
    ("contrastive_kl", {}),
    ("contrastive_kl", {"temperature": 1.0, "direction": "reverse"}),
    ("contrastive_margin", {}),
    ("logits_mse", SEQUENCE),
    ("logits_kl", SEQUENCE),
    ("logits_kl", {**SEQUENCE, "temperature": 1.0, "direction": "reverse"}),
    ("logits_kl", {**SEQUENCE, "outcomes": "independent"}),
    ("logits_kl", {**SEQUENCE, "top_k": 8}),
    ("logits_kl", {**SEQUENCE, "top_k": 8, "temperature": 4.0, "direction": "jensen_shannon"}),
    ("logits_kl", {**SEQUENCE, "top_k": CLASSES}),
    ("logit_standardised_kl", SEQUENCE),
    ("logit_standardised_kl", {**SEQUENCE, "top_k": 8}),
]
ONLINE = {"hidden_mse", "attention_kl", "task"}
"""Losses of layers, and the one that has no teacher."""


def test_all_losses_are_here() -> None:
    assert {kind for kind, _ in LOSSES} | ONLINE == {found.component_name() for found in every("losses")}


@pytest.mark.parametrize(("kind", "fields"), LOSSES)
@pytest.mark.parametrize(
    ("near", "store_as", "tolerance"),
    [(False, "int16", 1e-3), (True, "int16", 1e-3), (True, "bf16", 5e-3), (True, "int8", 2e-2)],
)
def test_stored_and_live_teachers_give_the_same_loss(
    tmp_path: Path, kind: str, fields: dict[str, Any], near: bool, store_as: str, tolerance: float
) -> None:
    torch.set_num_threads(1)
    loss: Loss = parse("losses", {kind: fields})  # type: ignore[assignment]
    of, teacher = data(names(64)), Teacher()
    kept = keep(tmp_path, teacher, of, *loss.needs(), top_k=kept_classes([loss]), store_as=store_as)
    rows = np.random.default_rng(0).permutation(64)[:32]
    feeds = {name: torch.from_numpy(array) for name, array in of.feeds(rows, 2 * rows).items()}
    live = teacher.outputs(None, feeds, loss.needs())
    other = Teacher(seed=1).outputs(None, feeds, loss.needs())
    student = {n: live[n].lerp(v, 0.1) if near and v.is_floating_point() else v for n, v in other.items()}
    read = {name: torch.from_numpy(array) for name, array in kept(rows, 2 * rows).items()}
    values = [float(loss.compute(student, outputs, loss.projection(student, outputs))) for outputs in (live, read)]
    assert values[1] == pytest.approx(values[0], rel=tolerance)
    assert values[0] > 0
