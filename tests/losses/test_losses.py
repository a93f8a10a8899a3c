"""Every loss against values computed by hand, in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmcompress.component import digest_json, dump, every, find, parse
from mmcompress.losses import Loss
from mmcompress.losses.contrastive_kl import ContrastiveKL, contrastive_kl, similarities
from mmcompress.losses.feature_mse import FeatureMSE, feature_mse
from mmcompress.losses.icl import ICL, alike, icl
from mmcompress.losses.logits_kl import LogitsKL, logits_kl
from mmcompress.losses.task import Task

pytestmark = pytest.mark.unit

STUDENT = [[2.0, 0.5, -1.0], [0.0, 1.0, 0.25]]
TEACHER = [[3.0, -0.5, 0.0], [0.5, 0.5, 2.0]]


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def kl(of: list[float], against: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(of, against, strict=True))


def by_hand(student: list[list[float]], teacher: list[list[float]], temperature: float, direction: str) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total += kl(p, q) if direction == "forward" else kl(q, p)
    return temperature**2 * total / len(student)


def embeds(*rows: tuple[float, ...]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logits_kl_by_hand(direction: str, temperature: float) -> None:
    loss = LogitsKL(temperature=temperature, direction=direction)
    outputs = [{"fusion.logits": torch.tensor(rows)} for rows in (STUDENT, TEACHER)]
    got = loss.compute(outputs[0], outputs[1], None)
    assert got.item() == pytest.approx(by_hand(STUDENT, TEACHER, temperature, direction), rel=1e-5)


def test_logits_kl_directions_differ_and_forward_is_kl_of_teacher_from_student() -> None:
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    forward = logits_kl(student, teacher, temperature=1.0)
    reverse = logits_kl(student, teacher, temperature=1.0, direction="reverse")
    assert abs(forward.item() - reverse.item()) > 0.01
    p, q = (torch.distributions.Categorical(logits=x) for x in (teacher, student))
    torch.testing.assert_close(forward, torch.distributions.kl_divergence(p, q).mean())


def test_logits_kl_of_sequences_averages_over_the_tokens_that_count() -> None:
    student = torch.tensor([STUDENT, [[9.0, -9.0, 0.0], [1.0, 1.0, 1.0]]])
    teacher = torch.tensor([TEACHER, [[-9.0, 9.0, 0.0], [1.0, 1.0, 4.0]]])
    mask = torch.tensor([[1, 1], [0, 1]])
    third = by_hand([[1.0, 1.0, 1.0]], [[1.0, 1.0, 4.0]], 2.0, "forward")
    expected = (2 * by_hand(STUDENT, TEACHER, 2.0, "forward") + third) / 3
    loss = LogitsKL(output="decoder.logits", mask="decoder.mask")
    assert loss.needs() == {"decoder.logits", "decoder.mask"}
    student_outputs = {"decoder.logits": student, "decoder.mask": mask}
    got = loss.compute(student_outputs, {"decoder.logits": teacher, "decoder.mask": mask}, None)
    assert got.item() == pytest.approx(expected, rel=1e-5)
    assert logits_kl(student, teacher, mask=torch.zeros(2, 2)).item() == 0
    with pytest.raises(ValueError, match="mask"):
        logits_kl(torch.tensor(STUDENT), torch.tensor(TEACHER), mask=torch.ones(2, 1))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("sides", ["both", "image_to_text", "text_to_image"])
def test_contrastive_kl_by_hand(direction: str, sides: str) -> None:
    student = {
        "vision.embeds": embeds((1.0, 0.0), (0.6, 0.8)),
        "text.embeds": embeds((0.8, 0.6), (0.0, 1.0)),
        "fusion.logit_scale": torch.tensor(5.0),
    }
    teacher = {
        "vision.embeds": embeds((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        "text.embeds": embeds((0.6, 0.0, 0.8), (0.6, 0.8, 0.0)),
        "fusion.logit_scale": torch.tensor(10.0),
    }
    of_student = [[5 * 0.8, 0.0], [5 * 0.96, 5 * 0.8]]
    of_teacher = [[10 * 0.6, 10 * 0.6], [0.0, 10 * 0.8]]
    rows = by_hand(of_student, of_teacher, 2.0, direction)
    transposed = [[list(column) for column in zip(*m, strict=True)] for m in (of_student, of_teacher)]
    columns = by_hand(transposed[0], transposed[1], 2.0, direction)
    expected = {"both": (rows + columns) / 2, "image_to_text": rows, "text_to_image": columns}[sides]
    got = ContrastiveKL(temperature=2.0, direction=direction, sides=sides).compute(student, teacher, None)
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_contrastive_kl_is_zero_for_equal_models_and_blind_to_a_bias() -> None:
    image, text = embeds((1.0, 0.2), (0.3, 0.8)), embeds((0.5, 0.6), (0.1, 1.0))
    scaled = similarities(image, text, torch.tensor(20.0))
    assert contrastive_kl(scaled, scaled).item() == pytest.approx(0, abs=1e-6)
    other = scaled.flip(0)
    torch.testing.assert_close(contrastive_kl(scaled - 7.0, other), contrastive_kl(scaled, other))


def test_feature_mse_by_hand() -> None:
    student, teacher = embeds((1.0, 0.0), (0.6, 0.8)), embeds((0.0, 1.0), (0.6, 0.8))
    assert feature_mse(student, teacher).item() == pytest.approx((2.0 + 0.0) / 2)
    assert feature_mse(student, -student).item() == pytest.approx(4.0)
    both = [{"vision.embeds": x, "text.embeds": x} for x in (student, teacher)]
    assert FeatureMSE().compute(both[0], both[1], None).item() == pytest.approx(2.0)
    assert FeatureMSE(outputs=("text.embeds",)).compute(both[0], both[1], None).item() == pytest.approx(1.0)
    assert FeatureMSE().projection(both[0], both[1]) is None


@pytest.mark.parametrize("loss", [FeatureMSE(), ICL()])
def test_projection_where_widths_differ(loss: Loss) -> None:
    student = {"vision.embeds": embeds((1.0, 0.0), (0.6, 0.8)), "text.embeds": embeds((1.0, 0.0, 0.0), (0.0, 0.6, 0.8))}
    teacher = {name: embeds((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)) for name in student}
    teacher["fusion.logit_scale"] = torch.tensor(1.0)
    projection = loss.projection(student, teacher)
    assert projection is not None
    assert [tuple(p.shape) for p in projection.parameters()] == [(3, 2)]
    with torch.no_grad():
        next(projection.parameters()).copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    value = loss.compute(student, teacher, projection)
    if isinstance(loss, FeatureMSE):
        # Pictures, projected: (0 + |(0.6, 0.8, 0) - (0, 1, 0)|^2) / 2; texts as they are: (0 + |(0, 0.6, 0.8) - ...|^2) / 2.
        assert value.item() == pytest.approx((0.36 + 0.04) / 2 + (0.16 + 0.64) / 2)
    value.backward()
    gradient = next(projection.parameters()).grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_icl_by_hand() -> None:
    image, text = embeds((1.0, 0.0), (0.6, 0.8)), embeds((0.8, 0.6), (0.0, 1.0))
    teacher_image, teacher_text = embeds((1.0, 0.0), (0.0, 1.0)), embeds((0.6, 0.8), (-0.6, 0.8))
    scale = 3.0

    def cross_entropy(rows: list[list[float]]) -> float:
        return -sum(math.log(softmax(row, 1.0)[i]) for i, row in enumerate(rows)) / len(rows)

    pictures = [[scale * 0.6, scale * -0.6], [scale * 1.0, scale * (0.64 - 0.36)]]
    texts = [[scale * 0.8, scale * 0.6], [0.0, scale * 1.0]]
    expected = (cross_entropy(pictures) + cross_entropy(texts)) / 2
    got = icl(image, text, teacher_image, teacher_text, torch.tensor(scale))
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_icl_counts_a_repeated_text_as_a_positive() -> None:
    teacher_text = embeds((0.6, 0.8), (0.6, 0.8), (1.0, 0.0))
    teacher_image = embeds((1.0, 0.0), (0.0, 1.0), (0.6, 0.8))
    assert alike(teacher_text).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    image = embeds((1.0, 0.0), (0.0, 1.0), (0.6, 0.8))
    got = icl(image, teacher_text, teacher_image, teacher_text, torch.tensor(4.0))
    logits = [(4 * image @ teacher_text.T).tolist(), (4 * teacher_text @ teacher_image.T).tolist()]
    targets = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    expected = 0.0
    for rows in logits:
        for row, target in zip(rows, targets, strict=True):
            expected -= sum(t * math.log(p) for t, p in zip(target, softmax(row, 1.0), strict=True)) / 3 / 2
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_every_loss_dumps_and_loads_equal_and_each_field_changes_its_identity() -> None:
    losses = list(every("losses"))
    assert {loss.component_name() for loss in losses} >= {"contrastive_kl", "logits_kl", "feature_mse", "icl", "task"}
    for loss in losses:
        assert parse("losses", dump(loss())) == loss()
    changed = [
        ContrastiveKL(),
        ContrastiveKL(weight=2.0),
        ContrastiveKL(temperature=1.0),
        ContrastiveKL(direction="forward"),
        ContrastiveKL(sides="image_to_text"),
        LogitsKL(),
        LogitsKL(temperature=1.0),
        LogitsKL(output="decoder.logits"),
        LogitsKL(output="decoder.logits", mask="decoder.mask"),
        FeatureMSE(),
        FeatureMSE(outputs=("vision.embeds",)),
        ICL(),
        Task(),
    ]
    assert len({digest_json(loss.identity()) for loss in changed}) == len(changed)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("contrastive_kl", {"temperature": 0}),
        ("contrastive_kl", {"direction": "sideways"}),
        ("contrastive_kl", {"weight": -1}),
        ("logits_kl", {"output": "vision.embeds"}),
        ("feature_mse", {"outputs": []}),
        ("feature_mse", {"outputs": ["vision.logits"]}),
        ("feature_mse", {"outputs": ["text.embeds", "text.embeds"]}),
        ("icl", {"temperature": 1.0}),
    ],
)
def test_wrong_fields_are_refused(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        find("losses", name).model_validate(fields)


def test_task_compares_with_no_teacher() -> None:
    assert Task().needs() == frozenset()
    with pytest.raises(TypeError, match="task_loss"):
        Task().compute({}, {}, None)
