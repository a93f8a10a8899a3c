"""``affinity``, ``contrastive_margin``, ``cosine`` and the directions of ``contrastive_kl``; by hand, by numpy, by torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from formulas import logits_kl as plain_kl
from formulas import numbers, random_outputs, softmax
from pydantic import ValidationError

from mmcompress.component import find, parse
from mmcompress.losses import Loss
from mmcompress.losses._embeddings import alike
from mmcompress.losses.affinity import Affinity, affinity
from mmcompress.losses.contrastive_kl import ContrastiveKL
from mmcompress.losses.contrastive_margin import ContrastiveMargin, contrastive_margin
from mmcompress.losses.cosine import Cosine, cosine
from mmcompress.losses.feature_mse import FeatureMSE

pytestmark = pytest.mark.unit

EMBEDS = ("vision.embeds", "text.embeds")


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def similarities(outputs: dict[str, Any]) -> Any:
    given = numbers(outputs)
    return given["fusion.logit_scale"] * given["vision.embeds"] @ given["text.embeds"].T


# --- contrastive_kl ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize("sides", ["both", "image_to_text", "text_to_image"])
def test_contrastive_kl_is_that_of_numpy(direction: str, sides: str) -> None:
    loss = ContrastiveKL(direction=direction, sides=sides, temperature=3.0)
    student, teacher = (random_outputs(loss.needs(), seed, width=width) for seed, width in ((1, 8), (2, 5)))
    ours, theirs = similarities(student), similarities(teacher)
    rows = plain_kl(ours, theirs, 3.0, direction)
    columns = plain_kl(ours.T, theirs.T, 3.0, direction)
    expected = {"both": (rows + columns) / 2, "image_to_text": rows, "text_to_image": columns}[sides]
    assert loss.compute(student, teacher, None).item() == pytest.approx(expected, rel=1e-4)


def test_contrastive_jensen_shannon_by_hand() -> None:
    # Similarities: the student's are all equal, the teacher's are (log 3, 0) and (0, log 3) at scale log 3.
    same = unit((1.0, 0.0), (1.0, 0.0))
    student = {"vision.embeds": same, "text.embeds": same, "fusion.logit_scale": torch.tensor(1.0)}
    apart = unit((1.0, 0.0), (0.0, 1.0))
    teacher = {"vision.embeds": apart, "text.embeds": apart, "fusion.logit_scale": torch.tensor(math.log(3))}
    # Each row: (1/2, 1/2) against (3/4, 1/4), whose mean is (5/8, 3/8).
    expected = (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3) + 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)) / 2
    got = ContrastiveKL(direction="jensen_shannon", temperature=1.0).compute(student, teacher, None)
    assert got.item() == pytest.approx(expected, rel=1e-5)


# --- affinity ------------------------------------------------------------------------------------------------------


def test_affinity_by_hand() -> None:
    same, apart = unit((1.0, 0.0), (1.0, 0.0)), unit((1.0, 0.0), (0.0, 1.0))
    scale = torch.tensor(math.log(3))
    # The teacher's affinities are (3/4, 1/4) either way; the student's (1/2, 1/2), then the teacher's own.
    assert affinity(same, same, scale, apart, apart, scale).item() == pytest.approx(math.log(2), rel=1e-5)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert affinity(apart, apart, scale, apart, apart, scale).item() == pytest.approx(entropy, rel=1e-5)
    # A student whose pictures are all alike, at (3/5, 4/5): each ranks the texts by 3/5 and 4/5, each text knows no difference.
    lone = unit((3.0, 4.0), (3.0, 4.0))
    picture = softmax(np.array([0.6, 0.8]) * math.log(3))
    image_to_text = -sum(0.75 * math.log(p) + 0.25 * math.log(q) for p, q in (picture, picture[::-1])) / 2
    got = affinity(lone, apart, scale, apart, apart, scale)
    assert got.item() == pytest.approx((image_to_text + math.log(2)) / 2, rel=1e-5)


def test_affinity_is_that_of_numpy_and_has_the_gradient_of_contrastive_kl_at_temperature_one() -> None:
    student, teacher = (random_outputs(Affinity().needs(), seed, width=width) for seed, width in ((1, 8), (2, 5)))
    ours, theirs = similarities(student), similarities(teacher)
    expected = 0.0
    for s, t in ((ours, theirs), (ours.T, theirs.T)):
        expected -= np.mean([softmax(t[i]) @ np.log(softmax(s[i])) for i in range(len(s))]) / 2
    value = Affinity().compute(student, teacher, None)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    gradients = []
    for loss in (Affinity(), ContrastiveKL(temperature=1.0, direction="forward")):
        leaf = student["vision.embeds"].clone().requires_grad_(True)
        moved = loss.compute({**student, "vision.embeds": leaf}, teacher, None)
        gradients.append(torch.autograd.grad(moved, leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


# --- contrastive_margin --------------------------------------------------------------------------------------------


def test_contrastive_margin_by_hand() -> None:
    image, text = unit((1.0, 0.0), (0.6, 0.8)), unit((0.8, 0.6), (0.0, 1.0))
    # Distances: 1 - 0.8 and 1 - 0 from the first picture, 1 - 0.96 and 1 - 0.8 from the second.
    different = unit((1.0, 0.0), (0.0, 1.0))
    expected = ((0.2 + max(0.0, 0.5 - 1.0)) + (0.2 + (0.5 - 0.04))) / 2
    got = contrastive_margin(image, text, different, different, margin=0.5)
    assert got.item() == pytest.approx(expected, rel=1e-5)
    wide = contrastive_margin(image, text, different, different, margin=1.5)
    assert wide.item() == pytest.approx(((0.2 + 0.5) + (0.2 + 1.46)) / 2, rel=1e-5)


def test_equal_texts_are_no_negatives() -> None:
    image = unit((1.0, 0.0), (0.6, 0.8), (0.0, 1.0))
    text = unit((0.8, 0.6), (0.8, 0.6), (0.0, 1.0))
    teacher_text = unit((0.3, 0.7), (0.3, 0.7), (1.0, 0.0))
    teacher_image = unit((1.0, 0.0), (0.0, 1.0), (0.6, 0.8))
    outputs = [dict(zip(EMBEDS, pair, strict=True)) for pair in ((image, text), (teacher_image, teacher_text))]
    # cos: (0.8, 0.8, 0), (0.96, 0.96, 0.8), (0.6, 0.6, 1); the first two texts match the first two pictures.
    near = (0.2 + 0.04 + 0.0) / 3
    far = (max(0.0, 0.5 - 1.0) + (0.5 - 0.2) + (0.5 - 0.4)) / 3
    loss = ContrastiveMargin(margin=0.5)
    assert loss.compute(*outputs, None).item() == pytest.approx(near + far, rel=1e-5)
    apart = {**outputs[1], "text.embeds": teacher_image}
    assert loss.compute(outputs[0], apart, None).item() > near + far + 0.05
    # Equal pictures likewise: their texts are all captions of the same.
    swapped = {"vision.embeds": teacher_text, "text.embeds": teacher_image}
    assert loss.compute(outputs[0], swapped, None).item() == pytest.approx(near + far, rel=1e-5)


def test_a_batch_of_one_and_the_same_has_no_negatives() -> None:
    same = unit((1.0, 0.0), (1.0, 0.0))
    value = contrastive_margin(unit((1.0, 0.0), (0.0, 1.0)), same, same, same, margin=2.0)
    assert value.item() == pytest.approx((0.0 + 1.0) / 2)


def test_contrastive_margin_is_that_of_torch() -> None:
    student, teacher = (random_outputs(ContrastiveMargin().needs(), seed) for seed in (1, 2))
    image, text = (student[name] for name in EMBEDS)
    count = len(image)
    pairs = [(i, j) for i in range(count) for j in range(count)]
    signs = torch.tensor([1.0 if i == j else -1.0 for i, j in pairs])
    each = torch.nn.functional.cosine_embedding_loss(
        torch.stack([image[i] for i, _ in pairs]),
        torch.stack([text[j] for _, j in pairs]),
        signs,
        margin=1 - 0.7,
        reduction="none",
    )
    assert (each[signs < 0] > 0).any() and (each[signs < 0] == 0).any()
    expected = each[signs > 0].mean() + each[signs < 0].mean()
    got = ContrastiveMargin(margin=0.7).compute(student, teacher, None)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_alike_is_equality_up_to_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(6, 32, generator=generator), dim=-1)
    embeds[3] = torch.nn.functional.normalize(embeds[0] * 3, dim=-1)
    near = embeds[1] + 5e-3 * embeds[2]
    embeds[4] = near / near.norm()
    expected = torch.eye(6, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = True
    assert torch.equal(alike(embeds), expected)
    assert torch.equal(alike(embeds[2:4], embeds), expected[2:4])


# --- cosine --------------------------------------------------------------------------------------------------------


def test_cosine_by_hand() -> None:
    student, teacher = unit((1.0, 0.0), (0.6, 0.8)), unit((0.0, 1.0), (1.0, 0.0))
    assert cosine(student, teacher).item() == pytest.approx(1 - (0.0 + 0.6) / 2)
    assert cosine(5 * student, teacher).item() == pytest.approx(0.7)
    assert cosine(student, -student).item() == pytest.approx(2.0)
    outputs = [dict.fromkeys(EMBEDS, value) for value in (student, teacher)]
    assert Cosine().compute(*outputs, None).item() == pytest.approx(1.4)
    assert Cosine(outputs=("text.embeds",)).compute(*outputs, None).item() == pytest.approx(0.7)


def test_cosine_is_that_of_numpy_and_half_of_feature_mse() -> None:
    student, teacher = (random_outputs(Cosine().needs(), seed) for seed in (1, 2))
    ours, theirs = numbers(student), numbers(teacher)
    expected = sum(1 - np.mean(np.sum(ours[name] * theirs[name], axis=1)) for name in EMBEDS)
    assert Cosine().compute(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)
    assert FeatureMSE().compute(student, teacher, None).item() == pytest.approx(2 * expected, rel=1e-5)


def test_cosine_joins_other_widths_by_a_projection() -> None:
    student, teacher = (random_outputs(Cosine().needs(), seed, width=width) for seed, width in ((1, 4), (2, 6)))
    projection = Cosine().projection(student, teacher)
    assert projection is not None
    maps = {name.replace(".weight", ""): p.detach() for name, p in projection.named_parameters()}
    expected = 0.0
    for name in EMBEDS:
        moved = student[name] @ maps[f"maps.{name.replace('.', '_')}"].T
        expected += 1 - torch.nn.functional.cosine_similarity(moved, teacher[name]).mean().item()
    assert Cosine().compute(student, teacher, projection).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("affinity", {"temperature": 2.0}),
        ("contrastive_margin", {"margin": 0}),
        ("contrastive_margin", {"margin": 2.5}),
        ("cosine", {"outputs": ["vision.logits"]}),
        ("cosine", {"outputs": []}),
        ("contrastive_kl", {"direction": "jeffreys"}),
    ],
)
def test_wrong_fields_are_refused(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        find("losses", name).model_validate(fields)


@pytest.mark.parametrize("name", ["icl", "contrastive_kl", "affinity", "contrastive_margin"])
def test_a_pair_of_other_parts_is_compared_alike(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def made(part: str) -> dict[str, torch.Tensor]:
        first, second = (
            torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1) for _ in range(2)
        )
        return {f"{part}.embeds": first, "text.embeds": second, "fusion.logit_scale": torch.tensor(5.0)}

    seen, taught = made("vision"), made("vision")
    heard, taught_by_sound = (
        {key.replace("vision", "audio"): value for key, value in outputs.items()} for outputs in (seen, taught)
    )
    of_pictures = parse("losses", name)
    of_sounds = parse("losses", {name: {"pair": ["audio", "text"]}})
    assert isinstance(of_pictures, Loss) and isinstance(of_sounds, Loss)
    assert of_sounds.needs() == {need.replace("vision", "audio") for need in of_pictures.needs()}
    assert torch.equal(of_sounds.compute(heard, taught_by_sound, None), of_pictures.compute(seen, taught, None))
