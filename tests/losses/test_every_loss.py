"""What every loss answers, whichever there are: its needs, attention, whether its batches add up, zero at the teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from formulas import random_outputs, rows

from mmcompress.component import every
from mmcompress.losses import Loss
from mmcompress.losses.attention_kl import AttentionKL
from mmcompress.losses.hidden_mse import HiddenMSE
from mmcompress.losses.logit_standardised_kl import LogitStandardisedKL
from mmcompress.losses.logits_kl import LogitsKL
from mmcompress.losses.task import Task

pytestmark = pytest.mark.unit

COMPARING = [loss() for loss in every("losses") if loss is not Task]  # type: ignore[comparison-overlap]
VARIANTS: list[Loss] = [
    LogitsKL(output="decoder.logits", mask="decoder.mask"),
    LogitsKL(outcomes="independent"),
    LogitStandardisedKL(output="audio.logits", mask="audio.mask"),
    HiddenMSE(part="text", masked=False),
    AttentionKL(part="text", masked=False),
]
NAMED = [
    pytest.param(loss, id=f"{loss.component_name()}-{index}") for index, loss in enumerate([*COMPARING, *VARIANTS])
]


def fed(loss: Loss) -> tuple[dict[str, Any], dict[str, Any], Any]:
    student, teacher = (random_outputs(loss.needs(), seed) for seed in (1, 2))
    return student, teacher, loss.projection(student, teacher)


def test_the_losses_were_found() -> None:
    names = {loss.component_name() for loss in COMPARING}
    assert names >= {
        *("affinity", "attention_kl", "contrastive_kl", "contrastive_margin", "cosine", "feature_mse"),
        *("hidden_mse", "icl", "logit_standardised_kl", "logits_kl"),
    }


@pytest.mark.parametrize("loss", NAMED)
def test_a_loss_accumulates_exactly_where_it_says_so(loss: Loss) -> None:
    student, teacher, projection = fed(loss)
    whole = loss.compute(student, teacher, projection)
    parts = [(rows(student, part), rows(teacher, part)) for part in (slice(0, 2), slice(2, 7))]
    counts = [loss.count(ours) for ours, _ in parts]
    assert sum(counts).item() == pytest.approx(loss.count(student).item())
    values = [loss.compute(ours, theirs, projection) for ours, theirs in parts]
    summed = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    relative = abs(summed.item() / whole.item() - 1)
    assert relative < 1e-5 if loss.accumulates() else relative > 0.01


@pytest.mark.parametrize("loss", NAMED)
def test_a_loss_is_a_scalar_that_a_step_against_its_gradient_lowers(loss: Loss) -> None:
    student, teacher, projection = fed(loss)
    moved = next(name for name in sorted(student) if not name.endswith(("mask", "logit_scale")))
    leaf = student[moved][-1] if isinstance(student[moved], tuple) else student[moved]
    leaf.requires_grad_(True)
    before = loss.compute(student, teacher, projection)
    assert before.shape == () and before.dtype == torch.float32
    (gradient,) = torch.autograd.grad(before, leaf)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    with torch.no_grad():
        leaf -= 1e-3 * gradient / gradient.norm()
        assert loss.compute(student, teacher, projection) < before


@pytest.mark.parametrize("loss", NAMED)
def test_a_student_equal_to_its_teacher_has_no_gradient_or_a_task_of_its_own(loss: Loss) -> None:
    teacher = random_outputs(loss.needs(), 2)
    value = loss.compute(teacher, teacher, None).item()
    if loss.component_name() in ("icl", "contrastive_margin", "affinity"):
        assert value > 0.01
    else:
        assert value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", NAMED)
def test_attention_maps_ask_for_eager_attention(loss: Loss) -> None:
    assert loss.attention() == ("eager" if isinstance(loss, AttentionKL) else None)


def test_a_loss_that_says_nothing_compares_its_batch() -> None:
    """The answer that costs the most and is never wrong. The task loss is the family's, which may compare."""

    class Quiet(Loss):
        def needs(self) -> frozenset[str]:
            return frozenset({"vision.embeds"})

    assert not Quiet().accumulates()
    assert not Task().accumulates()
    assert Quiet().count({"vision.embeds": torch.zeros(3, 2)}).item() == 3
