"""Many classes as the likeliest ones and all others together: worked out by hand, and bounded by what all classes give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmcompress.errors import UsageError
from mmcompress.losses._top_k import grouped, likeliest, likeliest_of
from mmcompress.losses.logit_standardised_kl import LogitStandardisedKL
from mmcompress.losses.logits_kl import LogitsKL

pytestmark = pytest.mark.unit
SEQUENCE: dict[str, Any] = {"output": "decoder.logits", "mask": "decoder.mask"}


def test_by_hand_with_two_temperatures() -> None:
    teacher = {"fusion.logits": torch.tensor([[math.log(6.0), math.log(2.0), 0.0, 0.0]])}
    student = {"fusion.logits": torch.tensor([[math.log(2.0), 0.0, math.log(3.0), math.log(4.0)]])}
    # The teacher's likeliest is class 0: its outcomes are 6 and 2 + 1 + 1 = 4; the student's of the same classes 2 and 8.
    loss = LogitsKL(top_k=1, temperature=1.0).compute(student, teacher, None)
    assert float(loss) == pytest.approx(0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8))
    # At temperature 2 the outcomes' roots are compared, not the roots of all classes: the classes are joined first.
    loss = LogitsKL(top_k=1, temperature=2.0).compute(student, teacher, None)
    p, q = 6**0.5 / (6**0.5 + 2), 2**0.5 / (2**0.5 + 8**0.5)
    assert float(loss) == pytest.approx(4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))))


def test_standardised_over_the_outcomes_by_hand() -> None:
    teacher = {"fusion.logits": torch.tensor([[math.log(6.0), math.log(2.0), 0.0, 0.0]])}
    student = {"fusion.logits": torch.tensor([[0.0, 2.0, 1.0, 1.0]])}
    # Two outcomes have the Z-scores 1 and -1; the student's are the other way round.
    loss = LogitStandardisedKL(top_k=1, temperature=1.0).compute(student, teacher, None)
    p = 1 / (1 + math.exp(-2))
    assert float(loss) == pytest.approx(p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p), rel=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_never_more_than_all_classes_and_all_of_it_where_none_is_left_out(direction: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = ({"fusion.logits": 3 * torch.randn(20, 30, generator=draw)} for _ in range(2))

    def value(k: int | None) -> float:
        return float(LogitsKL(top_k=k, temperature=1.0, direction=direction).compute(student, teacher, None))

    values = [value(k) for k in (1, 5, 20, 29, 30, None)]
    assert values == sorted(values)
    assert values[-3] == pytest.approx(values[-1], rel=1e-5) and values[-2] == values[-1]


def test_fewer_of_those_that_were_kept_are_those_of_the_whole() -> None:
    logits = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0))
    values, classes = likeliest(logits, 20)
    kept = {"decoder.logits.likeliest": values, "decoder.logits.classes": classes}
    found = likeliest_of(kept, "decoder.logits", 7)
    assert found is not None
    torch.testing.assert_close(found[0], likeliest(logits, 7)[0])
    assert torch.equal(found[1], logits.topk(7).indices)
    with pytest.raises(ValueError, match="20 classes"):
        likeliest_of(kept, "decoder.logits", 21)


def test_gradients_reach_the_classes_that_are_taken_together() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: grouped(z, torch.tensor([[4, 1], [0, 5]])), (logits,))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="independent"):
        LogitsKL(top_k=3, outcomes="independent")
    student, teacher = {"fusion.logits": torch.zeros(2, 5)}, {"fusion.logits": torch.zeros(2, 6)}
    with pytest.raises(UsageError, match=r"\[2, 5\].*\[2, 6\]"):
        LogitsKL(top_k=3).compute(student, teacher, None)
    longer = {"decoder.logits": torch.zeros(2, 5, 9), "decoder.mask": torch.ones(2, 5)}
    with pytest.raises(UsageError, match=r"decoder\.logits"):
        LogitsKL(top_k=3, **SEQUENCE).compute(longer, {"decoder.logits": torch.zeros(2, 4, 9)}, None)
