"""What a teacher gives for every training example, computed once and kept, or asked for batch by batch.

::

    <cache>/teacher_outputs/<key>/     whole or not at all; a killed run goes on in <key>.part
        index.json                     names, scalars
        <output>.npy                   [examples, ...] or [texts, ...], read as memory maps
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mmcompress.component import digest_json
from mmcompress.errors import StageError
from mmcompress.families import Family, Feeds
from mmcompress.stages._batches import CHUNK, Encoded, Progress
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    import torch

    from mmcompress.losses import Outputs

OF_EXAMPLES = ("vision.", "audio.")
"""Outputs of these parts do not depend on the text: one per example, all others one per text."""
SINGLE_PRECISION_NUMBERS = 4096
"""Outputs of more numbers per example are kept in half precision."""
FLUSH_EVERY = 16
"""Chunks between two notes of how far a pass has come."""


@dataclass(frozen=True)
class Asked:
    """A teacher that is ready to be asked: on its device, without gradients."""

    family: Family
    model: torch.nn.Module
    want: frozenset[str]
    autocast: Callable[[], AbstractContextManager[Any]]

    def __call__(self, inputs: Mapping[str, Any], want: frozenset[str] | None = None) -> Outputs:
        """The outputs for a batch of tensors on the teacher's device, in FP32."""
        import torch

        with torch.no_grad(), self.autocast():
            outputs = self.family.outputs(self.model, inputs, self.want if want is None else want)
        names = self.want if want is None else want
        return {name: _float(outputs[name]) for name in names}


def _float(value: Any) -> Any:
    return tuple(item.float() for item in value) if isinstance(value, (tuple, list)) else value.float()


@dataclass(frozen=True)
class Stored:
    """Outputs of a teacher as memory maps."""

    of_examples: Mapping[str, NDArray[Any]]
    of_texts: Mapping[str, NDArray[Any]]
    scalars: Mapping[str, float]

    def __call__(self, rows: NDArray[np.int64], texts: NDArray[np.int64]) -> Feeds:
        """The outputs for a batch, by rows of examples and of texts, in FP32."""
        found: Feeds = {name: np.asarray(array[rows], np.float32) for name, array in self.of_examples.items()}
        found.update({name: np.asarray(array[texts], np.float32) for name, array in self.of_texts.items()})
        found.update({name: np.array(value, np.float32) for name, value in self.scalars.items()})
        return found


def stored(teacher: Asked, data: Encoded, teacher_key: str, precision: str, cache: Path, tell: Progress) -> Stored:
    """Find the teacher's outputs for a split in the cache, or compute and keep them.

    Args:
        teacher: what is asked.
        data: the split, encoded for the teacher.
        teacher_key: what tells the teacher from others.
        precision: what it computes in.
        cache: where outputs are kept; another process that computes the same ones is waited for.
        tell: told of progress.

    Raises:
        StageError: an output whose shape differs between batches: such a one cannot be stored.
    """
    key = digest_json(
        {"teacher": teacher_key, "data": data.key, "want": sorted(teacher.want), "precision": precision, "format": 1}
    )
    home = cache / "teacher_outputs" / key
    if not (home / "index.json").is_file():
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.parent / f"{key}.lock"):
            if not (home / "index.json").is_file():
                _write(teacher, data, home, tell)
    index = read_json(home / "index.json")

    def maps(names: list[str]) -> dict[str, NDArray[Any]]:
        return {name: np.load(home / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}

    return Stored(maps(index["of_examples"]), maps(index["of_texts"]), index["scalars"])


def _write(teacher: Asked, data: Encoded, home: Path, tell: Progress) -> None:
    part = home.with_name(home.name + ".part")
    part.mkdir(exist_ok=True)
    fixed = frozenset(n for n in teacher.want if n.startswith(OF_EXAMPLES)) if data.of_texts else teacher.want
    scalars: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    examples = np.arange(len(data), dtype=np.int64)
    for kind, want in (("of_examples", fixed), ("of_texts", teacher.want - fixed)):
        names[kind] = []
        if not want:
            continue
        if kind == "of_examples":
            rows, texts = examples, examples if data.offsets is None else data.offsets[:-1]
        else:
            assert data.offsets is not None
            rows, texts = np.repeat(examples, np.diff(data.offsets)), np.arange(data.offsets[-1], dtype=np.int64)
        names[kind], found = _pass(teacher, data, kind, want, rows, texts, part, tell)
        scalars.update(found)
    write_json(part / "index.json", {**names, "scalars": scalars})
    shutil.rmtree(home, ignore_errors=True)
    os.replace(part, home)


def _pass(
    teacher: Asked,
    data: Encoded,
    kind: str,
    want: frozenset[str],
    rows: NDArray[np.int64],
    texts: NDArray[np.int64],
    part: Path,
    tell: Progress,
) -> tuple[list[str], dict[str, float]]:
    """Ask for some outputs of all rows, into .npy files in ``part``; goes on where a killed pass noted it was."""
    import torch

    note = part / f"{kind}.note.json"
    state: dict[str, Any] = read_json(note) if note.is_file() else {"done": 0, "names": [], "scalars": {}}
    maps: dict[str, Any] = {name: np.load(part / f"{name}.npy", mmap_mode="r+") for name in state["names"]}
    device = next(teacher.model.parameters()).device
    scalars: dict[str, float] = dict(state["scalars"])

    def keep(done: int) -> None:
        for array in maps.values():
            array.flush()
        write_json(note, {"done": done, "names": sorted(maps), "scalars": scalars})

    for number, start in enumerate(range(state["done"], len(rows), CHUNK)):
        tell("asking the teacher", start, len(rows))
        chosen = slice(start, min(start + CHUNK, len(rows)))
        feeds = data.feeds(rows[chosen], texts[chosen])
        outputs = teacher({name: torch.from_numpy(array).to(device) for name, array in feeds.items()}, want)
        for name, value in outputs.items():
            if not isinstance(value, torch.Tensor):
                raise StageError(f"{name} is one tensor per layer, which is not stored\n  Use teacher_outputs: online.")
            if value.ndim == 0:
                scalars[name] = float(value)
                continue
            _keep_rows(maps, name, value.cpu().numpy(), chosen, len(rows), part)
        if number % FLUSH_EVERY == FLUSH_EVERY - 1:
            keep(chosen.stop)
    keep(len(rows))
    tell("asking the teacher", len(rows), len(rows))
    return sorted(maps), scalars


def _keep_rows(
    maps: dict[str, Any], name: str, value: NDArray[np.float32], chosen: slice, total: int, part: Path
) -> None:
    if not np.isfinite(value).all():
        raise StageError(f"the teacher's {name} is not finite for examples {chosen.start} to {chosen.stop - 1}")
    if name not in maps:
        half = value[0].size > SINGLE_PRECISION_NUMBERS
        shape = (total, *value.shape[1:])
        maps[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.float16 if half else np.float32, shape)
    if value.shape[1:] != maps[name].shape[1:]:
        raise StageError(
            f"{name} has another shape in each batch ({list(value.shape[1:])} after {list(maps[name].shape[1:])}),"
            " which cannot be stored\n  Use teacher_outputs: online."
        )
    maps[name][chosen] = value
