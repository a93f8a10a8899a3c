"""``hidden_mse`` and ``attention_kl``: layer maps, masks, widths, heads; by hand and by numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from formulas import kl, numbers, random_outputs
from pydantic import ValidationError

from mmcompress.errors import UsageError
from mmcompress.losses._layers import LayerLoss, evenly, layer_map
from mmcompress.losses.attention_kl import AttentionKL, attention_kl
from mmcompress.losses.hidden_mse import HiddenMSE, hidden_mse

pytestmark = pytest.mark.unit


def test_layers_are_mapped_evenly() -> None:
    assert evenly(3, 6) == [0, 2, 5]
    assert evenly(4, 12) == [0, 4, 7, 11]
    assert evenly(6, 6) == [0, 1, 2, 3, 4, 5]
    assert evenly(1, 6) == [5]
    assert evenly(6, 12) == [0, 2, 4, 7, 9, 11], "not the layers whose weights a cut student inherits"
    assert evenly(5, 3) == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({}, [(0, 0), (1, 2), (2, 5)]),
        ({"student_layers": (-1,)}, [(2, 5)]),
        ({"student_layers": (0, 1)}, [(0, 0), (1, 2)]),
        ({"teacher_layers": (1, 3, -1)}, [(0, 1), (1, 3), (2, 5)]),
        ({"student_layers": (2, 0), "teacher_layers": (4, 1)}, [(2, 4), (0, 1)]),
    ],
)
def test_explicit_lists(lists: dict[str, tuple[int, ...]], expected: list[tuple[int, int]]) -> None:
    assert layer_map("hidden_mse", 3, 6, **lists) == expected


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"student_layers": (3,)}, "hidden_mse: the student has no layer 3; expected -3 to 2"),
        ({"teacher_layers": (0, 1, -7)}, "the teacher has no layer -7; expected -6 to 5"),
        ({"teacher_layers": (0, 1)}, "names 2 layers for the student's 3"),
    ],
)
def test_layers_that_are_not_there_are_named(lists: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layer_map("hidden_mse", 3, 6, **lists)


@pytest.mark.parametrize("loss", [HiddenMSE, AttentionKL])
def test_wrong_fields_are_refused(loss: type[LayerLoss]) -> None:
    for fields in ({"part": "Vision.0"}, {"student_layers": []}, {"student_layers": [0, 1], "teacher_layers": [3]}):
        with pytest.raises(ValidationError):
            loss.model_validate(fields)
    assert loss(part="text").needs() == {f"text.{loss.what}", "text.mask"}
    assert loss(part="text", masked=False).needs() == {f"text.{loss.what}"}


def test_hidden_mse_by_hand() -> None:
    # Tokens: (1, 2) against (1, 4): mean of 0 and 4 is 2; (0, 0) against (3, 1): mean of 9 and 1 is 5; the third is padding.
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0, 4.0], [3.0, 1.0], [0.0, 0.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert hidden_mse(student, teacher, mask).item() == pytest.approx((2 + 5) / 2)
    assert hidden_mse(student, teacher).item() == pytest.approx((2 + 5 + 81) / 3)
    ours = {"text.hidden_states": (student, teacher), "text.mask": mask}
    theirs = {"text.hidden_states": (student, student, teacher + 1), "text.mask": mask}
    # Evenly: 0 with 0 (equal), 1 with 2 (off by one everywhere).
    loss = HiddenMSE(part="text")
    assert loss.compute(ours, theirs, None).item() == pytest.approx((0 + 1) / 2)
    assert loss.count(ours).item() == 2
    last = HiddenMSE(part="text", student_layers=(-1,), teacher_layers=(0,))
    assert last.compute(ours, theirs, None).item() == pytest.approx(3.5)


def test_hidden_mse_is_that_of_numpy_with_projections_sized_to_the_widths() -> None:
    loss = HiddenMSE(part="text")
    student = random_outputs(loss.needs(), 1, width=4, layers=2)
    teacher = random_outputs(loss.needs(), 2, width=7, layers=5)
    projection = loss.projection(student, teacher)
    assert projection is not None
    maps = [parameter.detach().double().numpy() for parameter in projection.parameters()]
    assert [m.shape for m in maps] == [(7, 4), (7, 4)]
    assert not np.array_equal(maps[0], maps[1])
    ours, theirs = numbers(student), numbers(teacher)
    terms = []
    for pair, (one, other) in enumerate([(0, 0), (1, 4)]):
        off = ours["text.hidden_states"][one] @ maps[pair].T - theirs["text.hidden_states"][other]
        terms.append((off**2).mean(axis=-1)[ours["text.mask"] == 1].mean())
    value = loss.compute(student, teacher, projection)
    assert value.item() == pytest.approx(np.mean(terms), rel=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projection.parameters())
    assert loss.projection(teacher, teacher) is None


def test_attention_kl_by_hand() -> None:
    # Two queries of one head: (1/2, 1/2) against (3/4, 1/4); the second sees the first key alone in both models.
    student = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    teacher = torch.tensor([[[[0.75, 0.25], [1.0, 0.0]]]])
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert attention_kl(student, teacher).item() == pytest.approx(first / 2, rel=1e-5)
    assert attention_kl(student, teacher, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(first, rel=1e-5)
    assert attention_kl(student, teacher, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(0, abs=1e-7)
    # Two heads of the teacher, whose mean is (5/8, 3/8) and (1, 0).
    two = torch.cat([student, teacher], dim=1)
    averaged = 0.625 * math.log(0.625 / 0.5) + 0.375 * math.log(0.375 / 0.5)
    assert attention_kl(student, two).item() == pytest.approx(averaged / 2, rel=1e-5)
    # As many heads: each with its own, no mean of maps.
    assert attention_kl(two.flip(1), two).item() == pytest.approx(
        (first + kl_of((0.5, 0.5), (0.75, 0.25))) / 4, rel=1e-5
    )


def kl_of(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return kl(np.array(one), np.array(other))


@pytest.mark.parametrize("heads", [(4, 4), (2, 4)])
def test_attention_kl_is_that_of_numpy(heads: tuple[int, int]) -> None:
    loss = AttentionKL(part="text")
    student = random_outputs(loss.needs(), 1, heads=heads[0], layers=2)
    teacher = random_outputs(loss.needs(), 2, heads=heads[1], layers=4)
    ours, theirs = numbers(student), numbers(teacher)
    terms = []
    for one, other in [(0, 0), (1, 3)]:
        s, t = ours["text.attentions"][one], theirs["text.attentions"][other]
        if heads[0] != heads[1]:
            s, t = s.mean(axis=1, keepdims=True), t.mean(axis=1, keepdims=True)
        rows = [
            np.mean([kl(t[b, h, q], s[b, h, q]) for h in range(s.shape[1])])
            for b in range(s.shape[0])
            for q in range(s.shape[2])
            if ours["text.mask"][b, q]
        ]
        terms.append(np.mean(rows))
    assert loss.compute(student, teacher, None).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_keys_that_are_hidden_give_finite_gradients() -> None:
    scores = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    causal = torch.ones(3, 3).tril() == 0
    maps = [values.masked_fill(causal, -math.inf).softmax(dim=-1) for values in (scores, scores.detach() * 2)]
    value = attention_kl(*maps)
    value.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert value > 0 and torch.isfinite(scores.grad).all() and scores.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [HiddenMSE(), AttentionKL()])
def test_models_with_other_tokens_are_named(loss: LayerLoss) -> None:
    student = random_outputs(loss.needs(), 1)

    def cut(layer: torch.Tensor) -> torch.Tensor:
        return layer[:, :4] if loss.what == "hidden_states" else layer[:, :, :4, :4]

    teacher: dict[str, Any] = {**student, loss.output: tuple(cut(layer) for layer in student[loss.output])}
    with pytest.raises(UsageError, match=rf"{loss.component_name()}: the student's {loss.output} are \[7, 6"):
        loss.compute(student, teacher, None)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_maps_that_sdpa_did_not_give_are_named(role: str) -> None:
    both = {name: random_outputs(AttentionKL().needs(), 1) for name in ("student", "teacher")}
    both[role]["vision.attentions"] = ()
    with pytest.raises(UsageError, match=rf"attention_kl: the {role} gave no vision.attentions; .* eager attention"):
        AttentionKL().compute(both["student"], both["teacher"], None)
