"""A teacher that is a matrix, and data to ask it about: for the tests of stored outputs, also in a process of its own."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mmcompress.families import Family
from mmcompress.stages import _stored_filling
from mmcompress.stages._batches import Encoded
from mmcompress.stages._teacher_outputs import Asked, Keeping, Stored, stored

WIDTH, CLASSES, TOKENS = 128, 40, 6
EVERY = frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale", "decoder.logits", "decoder.mask"})


class Processor:
    """Pictures as numbers from 0 to 1; tokens cut to the longest text there, as the families' processors do."""

    def expand(self, compact: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tokens = compact["text"]
        longest = max(1, int((tokens >= 0).sum(axis=1).max()))
        return {"pixels": compact["image"].astype(np.float32) / 255, "tokens": tokens[:, :longest].astype(np.int64)}


def data(names: Sequence[str], texts: int = 2, home: Path | None = None) -> Encoded:
    """Examples whose picture and texts follow from their name up to a ``#``."""
    pictures, tokens = [], []
    for name in names:
        draw = np.random.default_rng(list(hashlib.sha256(name.partition("#")[0].encode()).digest()))
        pictures.append(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for _ in range(texts):
            row = draw.integers(0, 30, TOKENS, dtype=np.int32)
            row[draw.integers(2, TOKENS + 1) :] = -1
            tokens.append(row)
    arrays = {"image": np.stack(pictures), "text": np.stack(tokens)}
    offsets = np.arange(0, texts * len(names) + 1, texts)
    return Encoded("", tuple(names), cast("Any", Processor()), arrays, frozenset({"text"}), offsets, {}, home)


class Teacher:
    """What :class:`Asked` needs of a family, and a count of what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.vision = torch.randn(192, WIDTH, generator=draw)
        self.words = torch.randn(31, WIDTH, generator=draw)
        self.head = torch.randn(WIDTH, CLASSES, generator=draw)
        self.rows = 0
        self.pictures: list[NDArray[Any]] = []
        self.spoilt: float | None = None
        self.pause = 0.0

    def provides(self) -> frozenset[str]:
        return EVERY

    def outputs(self, model: Any, batch: Mapping[str, torch.Tensor], want: frozenset[str]) -> dict[str, torch.Tensor]:
        pixels, tokens = batch["pixels"], batch["tokens"]
        self.rows += len(pixels)
        self.pictures.append(pixels.numpy())
        time.sleep(self.pause)
        vision = torch.nn.functional.normalize(pixels.flatten(1) @ self.vision, dim=-1)
        if self.spoilt is not None:
            vision = torch.where(pixels[:, 0, 0, :1] == self.spoilt, torch.nan, vision)
        states = self.words[tokens.clamp(min=0)] * (tokens >= 0)[..., None]
        found = {
            "vision.embeds": vision,
            "text.embeds": torch.nn.functional.normalize(states.sum(dim=1), dim=-1),
            "fusion.logit_scale": torch.tensor(31.5),
            "decoder.logits": (states + vision[:, None]) @ self.head,
            "decoder.mask": (tokens >= 0).long(),
        }
        return {name: found[name] for name in want}


def asked(teacher: Teacher, *want: str) -> Asked:
    """The teacher, ready to be asked for some outputs."""
    load: Any = torch.nn.Identity
    return Asked(cast(Family, teacher), load, frozenset(want), nullcontext, torch.device("cpu"))


def keep(
    cache: Path,
    teacher: Teacher,
    of: Encoded,
    /,
    *want: str,
    told: list[str] | None = None,
    view: Any = (),
    **fields: Any,
) -> Stored:
    """Outputs of a teacher in a cache; ``view`` is augment and views."""
    keeping = Keeping(cache, **{"teacher": "one", "precision": "fp32", **fields})
    tell = (lambda message, done, total: told.append(message)) if told is not None else (lambda *_: None)
    return stored(asked(teacher, *(want or ("vision.embeds",))), of, keeping, tell, *view)


def names(count: int, first: int = 0) -> list[str]:
    """Names of examples."""
    return [f"example {i}" for i in range(first, first + count)]


def main(cache: str, count: str, pause: str) -> None:
    """Keep outputs of so many examples in shards of 20, and print how many rows the teacher was asked about."""
    torch.set_num_threads(1)
    _stored_filling.CLAIMED, _stored_filling.ASKED = 20, 10
    teacher = Teacher()
    teacher.pause = float(pause)
    found = keep(Path(cache), teacher, data(names(int(count))))
    rows = np.arange(int(count))
    values = found(rows, rows * 2)["vision.embeds"]
    sys.stdout.write(f"{teacher.rows} {hashlib.sha256(values.tobytes()).hexdigest()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
