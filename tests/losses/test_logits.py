"""``logits_kl`` and ``logit_standardised_kl``: directions, independent outcomes, masks; by hand, by numpy, by torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from formulas import logits_kl as plain_kl
from formulas import numbers, random_outputs
from pydantic import ValidationError

from mmcompress.component import digest_json
from mmcompress.errors import UsageError
from mmcompress.losses._divergence import divergence, masked_mean
from mmcompress.losses.logit_standardised_kl import LogitStandardisedKL, logit_standardised_kl, standardised
from mmcompress.losses.logits_kl import LogitsKL, logits_kl

pytestmark = pytest.mark.unit

DIRECTIONS = ("forward", "reverse", "jensen_shannon")


def log_odds(*probabilities: float) -> torch.Tensor:
    return torch.tensor([[math.log(p / (1 - p)) for p in probabilities]])


def test_jensen_shannon_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4), m = (5/8, 3/8).
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    to_teacher = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    to_student = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    expected = (to_teacher + to_student) / 2
    assert expected == pytest.approx(0.033822, abs=1e-6)
    assert divergence(student, teacher, "jensen_shannon").item() == pytest.approx(expected, rel=1e-5)
    loss = LogitsKL(temperature=1.0, direction="jensen_shannon")
    got = loss.compute({"fusion.logits": student}, {"fusion.logits": teacher}, None)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_jensen_shannon_is_symmetric_bounded_and_near_equality_a_quarter_of_kl() -> None:
    one, other = torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[0.0, 50.0, 0.0]])
    there, back = (
        logits_kl(*pair, temperature=1.0, direction="jensen_shannon") for pair in ((one, other), (other, one))
    )
    assert there.item() == pytest.approx(math.log(2), rel=1e-5)
    assert back.item() == pytest.approx(there.item())
    near = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    far = near + torch.tensor([[1e-3, -2e-3, 0.0]], dtype=torch.float64)
    ratio = logits_kl(far, near, direction="jensen_shannon") / logits_kl(far, near, direction="forward")
    assert ratio.item() == pytest.approx(0.25, rel=1e-2)


def test_independent_outcomes_by_hand() -> None:
    # Two labels; teacher 3/4 and 1/2, student 1/2 and 1/5, at temperature 1.
    student, teacher = log_odds(0.5, 0.2), log_odds(0.75, 0.5)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    loss = LogitsKL(temperature=1.0, outcomes="independent")
    got = loss.compute({"fusion.logits": student}, {"fusion.logits": teacher}, None)
    assert got.item() == pytest.approx(first + second, rel=1e-5)
    assert first + second == pytest.approx(0.130812 + 0.223144, abs=1e-5)
    # Halving the log odds is temperature 2, whose factor is 4.
    softened = LogitsKL(temperature=2.0, outcomes="independent").compute(
        {"fusion.logits": 2 * student}, {"fusion.logits": 2 * teacher}, None
    )
    assert softened.item() == pytest.approx(4 * (first + second), rel=1e-5)


def test_independent_outcomes_have_the_gradient_of_binary_cross_entropy() -> None:
    student, teacher = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    gradients = []
    for loss in (
        lambda z: logits_kl(z, teacher, temperature=1.0, outcomes="independent"),
        lambda z: torch.nn.functional.binary_cross_entropy_with_logits(z, teacher.sigmoid(), reduction="sum") / 4,
    ):
        leaf = student.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(loss(leaf), leaf)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_factor_keeps_the_size_of_gradients_at_high_temperatures(temperature: float) -> None:
    """For small logits the gradient is (z_s - z_t) / c, whatever the temperature (arXiv:1503.02531, equation 4)."""
    student = torch.tensor([[0.01, -0.02, 0.01]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.01, 0.0, 0.01]], dtype=torch.float64)
    logits_kl(student, teacher, temperature=temperature).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 3, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("outcomes", ["exclusive", "independent"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_kl_is_that_of_numpy(outcomes: str, direction: str, temperature: float) -> None:
    fields: dict[str, Any] = {"temperature": temperature, "direction": direction, "outcomes": outcomes}
    flat = LogitsKL(**fields)
    student, teacher = (random_outputs(flat.needs(), seed) for seed in (1, 2))
    rows = [numbers(outputs)["fusion.logits"] for outputs in (student, teacher)]
    expected = plain_kl(*rows, temperature, direction, outcomes)
    assert flat.compute(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)

    frames = LogitsKL(output="audio.logits", mask="audio.mask", **fields)
    student, teacher = (random_outputs(frames.needs(), seed) for seed in (1, 2))
    counted = numbers(student)["audio.mask"] == 1
    assert 0 < counted.sum() < counted.size
    rows = [numbers(outputs)["audio.logits"][counted] for outputs in (student, teacher)]
    expected = plain_kl(*rows, temperature, direction, outcomes)
    assert frames.compute(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)
    assert frames.count(student).item() == counted.sum()


def test_frames_that_do_not_count_change_nothing_and_get_no_gradient() -> None:
    loss = LogitsKL(output="audio.logits", mask="audio.mask", outcomes="independent")
    student, teacher = (random_outputs(loss.needs(), seed) for seed in (1, 2))
    before = loss.compute(student, teacher, None)
    out = student["audio.mask"] == 0
    student["audio.logits"] = student["audio.logits"].masked_fill(out[..., None], 80.0).requires_grad_(True)
    after = loss.compute(student, teacher, None)
    assert after.item() == pytest.approx(before.item())
    (gradient,) = torch.autograd.grad(after, student["audio.logits"])
    assert gradient[out].abs().sum() == 0 and gradient[~out].abs().sum() > 0


def test_other_frames_or_classes_are_named() -> None:
    with pytest.raises(UsageError, match=r"logits_kl: the student's audio.logits are \[2, 3, 4\].*\[2, 6, 4\]"):
        LogitsKL(output="audio.logits").compute(
            {"audio.logits": torch.zeros(2, 3, 4)}, {"audio.logits": torch.zeros(2, 6, 4)}, None
        )
    with pytest.raises(UsageError, match=r"logit_standardised_kl: the student's fusion.logits are \[2, 3\]"):
        LogitStandardisedKL().compute({"fusion.logits": torch.zeros(2, 3)}, {"fusion.logits": torch.zeros(2, 4)}, None)
    with pytest.raises(ValueError, match=r"the mask is \[2, 5\]; expected \[2, 6\]"):
        masked_mean(torch.zeros(2, 6), torch.ones(2, 5))
    with pytest.raises(ValidationError):
        LogitsKL.model_validate({"outcomes": "some"})


def test_logit_standardised_kl_by_hand() -> None:
    # (0, 3, 6) has mean 3 and deviation sqrt(6); (1, 1, 4) has mean 2 and deviation sqrt(2).
    student, teacher = torch.tensor([[0.0, 3.0, 6.0]]), torch.tensor([[1.0, 1.0, 4.0]])
    ours = np.array([-3.0, 0.0, 3.0]) / math.sqrt(6)
    theirs = np.array([-1.0, -1.0, 2.0]) / math.sqrt(2)
    np.testing.assert_allclose(standardised(student)[0].numpy(), ours, rtol=1e-6)
    expected = plain_kl(ours[None], theirs[None], 2.0, "forward")
    loss = LogitStandardisedKL()
    got = loss.compute({"fusion.logits": student}, {"fusion.logits": teacher}, None)
    assert got.item() == pytest.approx(expected, rel=1e-5)
    # At temperature 2: q_t = softmax(-0.35, -0.35, 0.71), q_s = softmax(-0.61, 0, 0.61).
    weights = {"t": [math.exp(-0.353553), math.exp(-0.353553), math.exp(0.707107)]}
    weights["s"] = [math.exp(-0.612372), 1.0, math.exp(0.612372)]
    t, s = ([w / sum(weights[key]) for w in weights[key]] for key in ("t", "s"))
    assert expected == pytest.approx(4 * sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)), rel=1e-4)


def test_logit_standardised_kl_sees_neither_size_nor_shift() -> None:
    student, teacher = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    before = logit_standardised_kl(student, teacher)
    torch.testing.assert_close(logit_standardised_kl(7 * student - 3, 0.2 * teacher + 5), before, rtol=1e-4, atol=1e-6)
    assert logits_kl(7 * student, teacher) > 2 * logits_kl(student, teacher)
    assert logit_standardised_kl(student, 3 * student + 1).item() == pytest.approx(0, abs=1e-6)


def test_logit_standardised_kl_of_constant_logits_is_finite() -> None:
    student = torch.full((1, 4), 2.0, requires_grad=True)
    value = logit_standardised_kl(student, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    value.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


def test_logit_standardised_kl_counts_what_the_mask_counts() -> None:
    loss = LogitStandardisedKL(output="decoder.logits", mask="decoder.mask", temperature=1.5)
    student, teacher = (random_outputs(loss.needs(), seed) for seed in (1, 2))
    counted = numbers(student)["decoder.mask"] == 1
    scores = []
    for outputs in (student, teacher):
        rows = numbers(outputs)["decoder.logits"][counted]
        scores.append((rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True))
    expected = plain_kl(scores[0], scores[1], 1.5, "forward")
    assert loss.compute(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)


def test_each_field_changes_the_identity() -> None:
    losses = [
        LogitsKL(),
        LogitsKL(outcomes="independent"),
        LogitsKL(direction="jensen_shannon"),
        LogitStandardisedKL(),
        LogitStandardisedKL(temperature=4.0),
        LogitStandardisedKL(mask="fusion.mask"),
    ]
    assert len({digest_json(loss.identity()) for loss in losses}) == len(losses)
