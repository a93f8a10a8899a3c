"""Losses over all pairs in blocks of rows: equal to the plain form, in memory that does not grow with the square."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from formulas import random_outputs

from mmcompress.losses import Loss, _chunked
from mmcompress.losses._chunked import summed_over_rows
from mmcompress.losses.affinity import Affinity
from mmcompress.losses.contrastive_kl import ContrastiveKL
from mmcompress.losses.contrastive_margin import ContrastiveMargin
from mmcompress.losses.icl import ICL

pytestmark = pytest.mark.unit

Gradients = dict[str, torch.Tensor]
LOSSES = [
    ContrastiveKL(),
    ContrastiveKL(direction="reverse", temperature=1.0),
    ContrastiveKL(direction="jensen_shannon", sides="image_to_text"),
    ContrastiveKL(sides="text_to_image"),
    ICL(),
    Affinity(),
    ContrastiveMargin(margin=0.8),
]


def value_and_gradients(loss: Loss, student: dict[str, Any], teacher: dict[str, Any]) -> tuple[float, Gradients]:
    leaves = {name: value.clone().requires_grad_(True) for name, value in student.items()}
    value = loss.compute(leaves, teacher, None)
    (3 * value).backward()  # type: ignore[no-untyped-call]
    return value.item(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.component_name())
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_blocks_give_the_loss_and_gradients_of_the_whole(
    loss: Loss, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = 37
    student, teacher = (random_outputs(loss.needs(), seed, batch=batch, width=16) for seed in (1, 2))
    teacher["text.embeds"][7] = teacher["text.embeds"][30]  # a repeated caption, in another block
    whole, gradients = value_and_gradients(loss, student, teacher)
    blocks: list[slice] = []

    def told(term: Callable[..., torch.Tensor], tensors: Any, *, rows: int | None = None) -> torch.Tensor:
        def noted(block: slice, *given: torch.Tensor) -> torch.Tensor:
            blocks.append(block)
            return term(block, *given)

        return summed_over_rows(noted, tensors, rows=rows)

    monkeypatch.setattr(sys.modules[type(loss).__module__], "summed_over_rows", told)
    monkeypatch.setattr(sys.modules[type(loss).__module__], "WHOLE_BATCH", 36, raising=False)
    monkeypatch.setattr(_chunked, "WHOLE_BATCH", 36)
    monkeypatch.setattr(_chunked, "BLOCK_NUMBERS", rows * batch)
    value, in_blocks = value_and_gradients(loss, student, teacher)
    assert len(blocks) == -(-batch // rows)
    assert value == pytest.approx(whole, rel=1e-5)
    assert in_blocks.keys() == gradients.keys() >= {"vision.embeds", "text.embeds"}
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(in_blocks[name], gradient, rtol=1e-5, atol=1e-5 * largest)


def test_without_gradients_nothing_is_differentiated() -> None:
    student, teacher = (random_outputs(Affinity().needs(), seed) for seed in (1, 2))
    calls = []

    def term(block: slice, image: torch.Tensor) -> torch.Tensor:
        calls.append(image.requires_grad)
        return image[block].sum()

    leaf = student["vision.embeds"].requires_grad_(True)
    with torch.no_grad():
        value = summed_over_rows(term, [leaf], rows=3)
    assert calls == [False] * 3
    assert not value.requires_grad and value.item() == pytest.approx(leaf.sum().item(), rel=1e-6)
    assert not summed_over_rows(term, [teacher["vision.embeds"]], rows=3).requires_grad


MEASURE = """
import json, resource, sys, time
import torch
from mmcompress.component import parse

torch.set_num_threads(2)
batch, width = int(sys.argv[2]), 512
generator = torch.Generator().manual_seed(0)
names = ("vision.embeds", "text.embeds")
def outputs():
    embeds = {n: torch.nn.functional.normalize(torch.randn(batch, width, generator=generator), dim=-1) for n in names}
    return {**embeds, "fusion.logit_scale": torch.tensor(20.0)}
student, teacher = outputs(), outputs()
for name in names:
    student[name].requires_grad_(True)
loss = parse("losses", sys.argv[1])
small = {n: v[:64] if v.ndim else v for n, v in student.items()}, {n: v[:64] if v.ndim else v for n, v in teacher.items()}
loss.compute(*small, None).backward()
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before, began = peak(), time.monotonic()
value = loss.compute(student, teacher, None)
value.backward()
finite = all(torch.isfinite(student[n].grad).all().item() for n in names)
seconds = time.monotonic() - began
print(json.dumps({"value": value.item(), "finite": finite, "bytes": peak() - before, "seconds": seconds}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive_kl", "icl"])
def test_32768_pairs_fit_without_their_matrix(name: str) -> None:
    """One [32768, 32768] matrix in FP32 is 4 GiB, and the plain form holds several."""
    arguments = [sys.executable, "-c", MEASURE, name, "32768"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=1800)
    measured = json.loads(done.stdout)
    assert measured["finite"] and measured["value"] > 0
    assert measured["bytes"] < 2**30
