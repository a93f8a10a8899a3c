"""Families that write: what is stored of their teacher-forced logits gives the loss that the model itself gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_blip
import small_captioner
import torch
from PIL import Image
from tiny_whisper import RATE, tiny

from mmcompress._sound import Sound
from mmcompress.data.codes import DIGITS
from mmcompress.families import Family
from mmcompress.families.blip import Blip
from mmcompress.families.captioner import Captioner
from mmcompress.losses.logits_kl import LogitsKL
from mmcompress.stages._batches import Batches, Encoded
from mmcompress.stages._teacher_outputs import Asked, Keeping, stored

Made = tuple[Family, Path, dict[str, list[Any]]]
TEXTS = ["a red star", "a big blue ring left of a small green square", "two stars", "a red ring"]


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(count)]


def written(kind: Callable[..., Family], config: Path, folder: Path, **fields: Any) -> Family:
    family = kind(config=config, **fields)
    family.write(folder, 0)
    return family


def captioner(folder: Path) -> Made:
    family = written(Captioner, small_captioner.write_config(folder / "source"), folder / "model")
    return family, folder / "model", {"image": pictures(20), "text": [TEXTS[i % 4] for i in range(20)]}


def blip(folder: Path) -> Made:
    family = written(Blip, small_blip.write_config(folder / "source"), folder / "model", task="caption")
    return family, folder / "model", {"image": pictures(20), "text": [TEXTS[i % 4] for i in range(20)]}


def whisper(folder: Path) -> Made:
    family, made = tiny(folder, init_std=0.3)
    draw = np.random.default_rng(0)
    sounds = [Sound((draw.standard_normal(RATE) * 0.1).astype(np.float32), RATE) for _ in range(20)]
    return family, made, {"audio": sounds, "text": [" ".join(DIGITS[: 1 + i % 5]) for i in range(20)]}


@pytest.mark.parametrize("make", [captioner, blip, whisper])
@pytest.mark.parametrize("top_k", [None, 4])
def test_stored_logits_of_tokens(tmp_path: Path, make: Callable[[Path], Made], top_k: int | None) -> None:
    torch.set_num_threads(1)
    family, folder, values = make(tmp_path)
    processor = family.processor(folder)
    of = Encoded("", tuple(f"example {i}" for i in range(20)), processor, processor.compact(values), frozenset(), None)
    loss = LogitsKL(output="decoder.logits", mask="decoder.mask", top_k=top_k)
    model = family.load(folder).eval()
    teacher = Asked(family, lambda: model, loss.needs(), nullcontext, torch.device("cpu"))
    keeping = Keeping(tmp_path, "one", "fp32", top_k={} if top_k is None else {"decoder.logits": top_k})
    kept = stored(teacher, of, keeping, lambda *_: None)
    lengths: set[int] = set()
    batches = Batches(of, 3, 0, stored=kept)
    for number in range(batches.per_epoch):
        batch = batches[number]
        live = teacher({name: torch.from_numpy(array) for name, array in batch["inputs"].items()})
        read = {name: torch.from_numpy(array) for name, array in batch["teacher_outputs"].items()}
        draw = torch.Generator().manual_seed(number)
        shape = live["decoder.logits"].shape
        student = {**live, "decoder.logits": torch.randn(shape, generator=draw)}
        values_of = [float(loss.compute(student, outputs, None)) for outputs in (live, read)]
        assert values_of[1] == pytest.approx(values_of[0], rel=1e-3)
        assert ("decoder.logits" in read) == (top_k is None)
        lengths.add(shape[1])
    assert len(lengths) > 1  # batches are as long as their longest text
