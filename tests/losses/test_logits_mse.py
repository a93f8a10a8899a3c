"""The squared distance of logits and of numbers, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mmcompress.errors import UsageError
from mmcompress.losses.logits_mse import LogitsMSE, logits_mse

pytestmark = pytest.mark.unit


def test_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert logits_mse(student, teacher).item() == pytest.approx((0.5 * (1 + 4) + 0.5 * 9) / 2)
    assert logits_mse(student, teacher, scale=torch.tensor(2.0)).item() == pytest.approx(
        (0.5 * 5 / 4 + 0.5 * 9 / 4) / 2
    )


def test_tokens_that_do_not_count() -> None:
    student, teacher = torch.tensor([[[1.0], [7.0]], [[3.0], [5.0]]]), torch.zeros(2, 2, 1)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert logits_mse(student, teacher, mask=mask).item() == pytest.approx(0.5 * (1 + 9 + 25) / 3)
    with pytest.raises(ValueError, match="needs logits"):
        logits_mse(student[:, 0], teacher[:, 0], mask=mask)


def test_the_scale_is_the_teachers() -> None:
    loss = LogitsMSE(scale="fusion.scale")
    assert loss.needs() == {"fusion.logits", "fusion.scale"}
    student = {"fusion.logits": torch.tensor([[3.0], [1.0]]), "fusion.scale": torch.tensor(100.0)}
    teacher = {"fusion.logits": torch.tensor([[1.0], [1.0]]), "fusion.scale": torch.tensor(2.0)}
    assert loss.compute(student, teacher, None).item() == pytest.approx(0.25)
    assert loss.count(student).item() == 2
    with pytest.raises(UsageError, match=r"logits_mse: the student's fusion.logits are \[2, 1\]"):
        loss.compute(student, {"fusion.logits": torch.zeros(2, 3), "fusion.scale": torch.tensor(1.0)}, None)
