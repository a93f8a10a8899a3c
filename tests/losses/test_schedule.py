"""Numbers of losses that follow a schedule, and losses that follow several teachers: against values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from mmcompress.component import digest_json
from mmcompress.errors import UsageError
from mmcompress.losses._mixture import mixed, mixed_independent
from mmcompress.losses._schedule import Ramp
from mmcompress.losses.affinity import Affinity
from mmcompress.losses.contrastive_kl import ContrastiveKL
from mmcompress.losses.feature_mse import FeatureMSE
from mmcompress.losses.logit_standardised_kl import LogitStandardisedKL, standardised
from mmcompress.losses.logits_kl import LogitsKL, logits_kl

pytestmark = pytest.mark.unit


# --- schedules -----------------------------------------------------------------------------------------------------


def test_ramps_by_hand() -> None:
    linear, cosine = Ramp(start=4, to=1), Ramp(start=4, to=1, schedule="cosine")
    assert [linear.at(done) for done in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    assert [cosine.at(done) for done in (0.0, 1.0)] == [4.0, 1.0]
    assert cosine.at(0.5) == pytest.approx(2.5)
    assert cosine.at(0.25) == pytest.approx(4 - 3 * (1 - math.sqrt(0.5)) / 2)


def test_a_loss_at_a_step_has_the_numbers_of_that_step() -> None:
    loss = LogitsKL(temperature={"from": 4, "to": 1}, weight={"from": 0, "to": 2, "schedule": "cosine"})
    half = loss.at(0.5)
    assert (half.temperature, half.weight) == (2.5, pytest.approx(1.0))
    logits, other = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.0, 1.0, 3.0]])
    found = half.compute({"fusion.logits": logits}, {"fusion.logits": other}, None)
    torch.testing.assert_close(found, logits_kl(logits, other, temperature=2.5))
    with pytest.raises(ValueError, match=r"Loss\.at"):
        loss.compute({"fusion.logits": logits}, {"fusion.logits": other}, None)
    plain = LogitsKL()
    assert plain.at(0.3) is plain


def test_schedules_are_dumped_and_part_of_the_identity() -> None:
    written: dict[str, Any] = {"temperature": {"from": 4.0, "to": 1.0, "schedule": "cosine"}, "weight": 0.5}
    loss = ContrastiveKL(**written)
    dumped = loss.model_dump(mode="json")
    assert {name: dumped[name] for name in written} == written
    assert ContrastiveKL.model_validate(dumped) == loss
    others = [ContrastiveKL(**{**written, "temperature": {"from": 4.0, "to": end}}) for end in (1.0, 2.0)]
    assert len({digest_json(one.identity()) for one in [loss, *others, ContrastiveKL()]}) == 4


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"temperature": 0}, ("temperature",)),
        ({"temperature": float("inf")}, ("temperature",)),
        ({"temperature": {"from": 4, "to": 0}}, ("temperature",)),
        ({"temperature": {"from": 4}}, ("temperature", "to")),
        ({"temperature": {"from": 4, "to": 1, "shedule": "cosine"}}, ("temperature", "shedule")),
        ({"temperature": {"from": 4, "to": 1, "schedule": "step"}}, ("temperature", "schedule")),
        ({"weight": {"from": -1, "to": 1}}, ("weight",)),
        ({"weight": -1}, ("weight",)),
    ],
)
def test_impossible_schedules_are_refused_where_they_stand(fields: dict[str, Any], where: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        LogitsKL(**fields)
    assert [item["loc"] for item in refused.value.errors()] == [where]


# --- several teachers ----------------------------------------------------------------------------------------------


def test_a_mixture_is_averaged_after_the_softmax() -> None:
    first, second = torch.log(torch.tensor([[0.8, 0.2]])), torch.log(torch.tensor([[0.1, 0.9]]))
    # 0.75 * 0.8 + 0.25 * 0.1 = 0.625; before the softmax it would be another number.
    torch.testing.assert_close(mixed([first, second], [0.75, 0.25], 1.0).softmax(-1), torch.tensor([[0.625, 0.375]]))
    at_two = 0.75 * (first / 2).softmax(-1) + 0.25 * (second / 2).softmax(-1)
    torch.testing.assert_close((mixed([first, second], [0.75, 0.25], 2.0) / 2).softmax(-1), at_two)


def test_a_mixture_of_independent_classes() -> None:
    first, second = torch.tensor([[0.0, 2.0]]), torch.tensor([[math.log(3.0), -1.0]])
    expected = 0.5 * torch.tensor([[0.5, 0.0]]) + 0.5 * torch.tensor([[0.75, 0.0]])
    found = mixed_independent([first, second], [0.5, 0.5], 1.0).sigmoid()
    torch.testing.assert_close(found[:, 0], expected[:, 0])


def several(loss: Any, student: dict[str, Any], *teachers: dict[str, Any], shares: tuple[float, ...]) -> float:
    return float(loss.compute_several(student, teachers, shares, [None] * len(teachers)))


def test_logits_kl_from_two_teachers_by_hand() -> None:
    student = {"fusion.logits": torch.log(torch.tensor([[0.5, 0.5]]))}
    teachers = [{"fusion.logits": torch.log(torch.tensor([one]))} for one in ([0.8, 0.2], [0.1, 0.9])]
    mixture = (0.625, 0.375)
    expected = sum(p * math.log(p / 0.5) for p in mixture)
    loss = LogitsKL(temperature=1.0)
    assert several(loss, student, *teachers, shares=(0.75, 0.25)) == pytest.approx(expected, rel=1e-5)
    reverse = LogitsKL(temperature=1.0, direction="reverse")
    expected = sum(0.5 * math.log(0.5 / p) for p in mixture)
    assert several(reverse, student, *teachers, shares=(0.75, 0.25)) == pytest.approx(expected, rel=1e-5)
    # Twice the same teacher is that teacher.
    alone = float(loss.compute(student, teachers[0], None))
    assert several(loss, student, teachers[0], teachers[0], shares=(0.75, 0.25)) == pytest.approx(alone, rel=1e-5)
    kept = {"fusion.logits.likeliest": teachers[0]["fusion.logits"]}
    with pytest.raises(UsageError, match="top_k"):
        several(LogitsKL(top_k=1), student, teachers[0], kept, shares=(0.75, 0.25))


def test_standardised_logits_from_two_teachers() -> None:
    draw = torch.Generator().manual_seed(0)
    student, *teachers = ({"fusion.logits": torch.randn(4, 5, generator=draw)} for _ in range(3))
    target = sum(
        share * (standardised(one["fusion.logits"]) / 2).softmax(-1)
        for share, one in zip((0.3, 0.7), teachers, strict=True)
    )
    ours = (standardised(student["fusion.logits"]) / 2).log_softmax(-1)
    expected = 4 * float((target * (target.log() - ours)).sum(-1).mean())
    found = several(LogitStandardisedKL(temperature=2.0), student, *teachers, shares=(0.3, 0.7))
    assert found == pytest.approx(expected, rel=1e-4)


def embeddings(seed: int, width: int, scale: float) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    sides = {f"{part}.embeds": normalize(torch.randn(6, width, generator=draw), dim=-1) for part in ("vision", "text")}
    return {**sides, "fusion.logit_scale": torch.tensor(scale)}


def test_contrastive_kl_from_two_teachers_of_other_widths_averages_their_distributions() -> None:
    student, one, other = embeddings(0, 4, 3.0), embeddings(1, 5, 7.0), embeddings(2, 9, 11.0)

    def logits(model: dict[str, Any]) -> torch.Tensor:
        return model["fusion.logit_scale"] * model["vision.embeds"] @ model["text.embeds"].T

    terms = []
    for axis in (1, 0):
        target = 0.3 * (logits(one) / 2).softmax(axis) + 0.7 * (logits(other) / 2).softmax(axis)
        ours = (logits(student) / 2).log_softmax(axis)
        terms.append(4 * (target * (target.log() - ours)).sum() / 6)
    found = several(ContrastiveKL(temperature=2.0, direction="forward"), student, one, other, shares=(0.3, 0.7))
    assert found == pytest.approx(float(sum(terms)) / 2, rel=1e-4)


@pytest.mark.parametrize("loss", [FeatureMSE(), Affinity()])
def test_other_losses_are_averaged(loss: Any) -> None:
    student, one, other = (embeddings(seed, 4, 5.0) for seed in range(3))
    expected = 0.3 * float(loss.compute(student, one, None)) + 0.7 * float(loss.compute(student, other, None))
    assert several(loss, student, one, other, shares=(0.3, 0.7)) == pytest.approx(expected, rel=1e-5)
