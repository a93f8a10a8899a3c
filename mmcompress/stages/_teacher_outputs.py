"""What a teacher gives for every training example, computed once and kept, or asked for batch by batch.

::

    <cache>/teacher_outputs/<key>/     one output of one teacher: see :mod:`mmcompress.stages._stored_shards`
    <cache>/teacher_outputs/locks/     who computes which rows now

The key tells the teacher, its preprocessing, its precision and the way of storing; a row's key what the teacher was fed. So
recipes share what they have in common, output by output, and a data set that grew costs what is new in it. Views are in the
keys of their rows by everything that makes them: a row that is found is of the very picture that the student is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._cache import used
from mmcompress.component import JSON, digest_json
from mmcompress.errors import StageError
from mmcompress.families import Family, Feeds
from mmcompress.losses._top_k import CLASSES, VALUES, likeliest
from mmcompress.stages._batches import Augment, Encoded, Progress
from mmcompress.stages._stored_keys import Rows, rows_of, what_rows
from mmcompress.stages._stored_rows import Layout, StoreAs, pick, unpack_rows
from mmcompress.stages._stored_shards import Shards
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    import torch

    from mmcompress.losses import Outputs

FOLDER = "teacher_outputs"
ABOUT = "about.json"
PROBED = 16
"""Examples that the shapes of outputs are taken from."""
_FORMAT = 2


@dataclass(frozen=True)
class Asked:
    """A teacher that can be asked, without gradients; it is loaded when it is asked first."""

    family: Family
    load: Callable[[], torch.nn.Module]
    """Gives the model on its device, ready."""
    want: frozenset[str]
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device

    @cached_property
    def model(self) -> torch.nn.Module:
        """The teacher's model."""
        return self.load()

    def release(self) -> None:
        """Let go of the model: it is loaded again where it is asked again."""
        self.__dict__.pop("model", None)

    def __call__(self, inputs: Mapping[str, Any], want: frozenset[str] | None = None) -> Outputs:
        """The outputs for a batch of tensors on the teacher's device, in FP32."""
        import torch

        names = self.want if want is None else want
        with torch.no_grad(), self.autocast():
            outputs = self.family.outputs(self.model, inputs, names)
        return {name: _float(outputs[name]) for name in names}

    def feeds(self, feeds: Feeds, want: frozenset[str]) -> Outputs:
        """The outputs for arrays."""
        import torch

        return self({name: torch.from_numpy(array).to(self.device) for name, array in feeds.items()}, want)


def _float(value: Any) -> Any:
    return tuple(item.float() for item in value) if isinstance(value, (tuple, list)) else value.float()


@dataclass(frozen=True)
class Keeping:
    """Where and how the outputs of a teacher are kept."""

    cache: Path
    teacher: JSON
    """What tells it from others: :func:`mmcompress.stages._stored_keys.teacher_identity`."""
    precision: str
    """What it computes in."""
    store_as: StoreAs = "int16"
    top_k: Mapping[str, int] = field(default_factory=dict)
    """Of which outputs the likeliest classes alone are kept, and how many."""

    def folder(self, output: str) -> Path:
        """Where an output is kept."""
        return self.cache / FOLDER / digest_json(self.about(output))

    def about(self, output: str) -> dict[str, JSON]:
        """Everything that shapes the rows of an output, besides what the teacher is fed."""
        return {
            "teacher": self.teacher,
            "output": output,
            "top_k": self.top_k.get(output),
            "precision": self.precision,
            "store_as": self.store_as,
            "format": _FORMAT,
        }


@dataclass(frozen=True)
class Kept:
    """The rows of one output."""

    layout: Layout
    shards: Shards
    rows: Rows
    tokens: float = 1.0
    """Tokens of a row, about; 1 where it is no sequence."""

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Where each row lies."""
        found = self.shards.find(self.rows.keys)
        if (found < 0).any():
            raise StageError(
                f"{int((found < 0).sum())} rows of {self.shards.folder} were removed while they were read\n"
                "  Run the same command again."
            )
        return found

    def read(self, places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """``values``, and ``classes`` where the likeliest alone are kept, for a batch."""
        parts = self.shards.split(self.positions[places])
        picked = [
            pick({name: array for name, array in shard.arrays.items() if name != "keys"}, rows)
            for shard, rows, _ in parts
        ]
        return unpack_rows(picked, self.layout, np.concatenate([members for _, _, members in parts]))


@dataclass(frozen=True)
class Stored:
    """Outputs of a teacher as memory maps."""

    kept: Mapping[str, Kept]
    scalars: Mapping[str, float]

    def __call__(
        self, rows: NDArray[np.int64], texts: NDArray[np.int64], numbers: NDArray[np.int64] | None = None
    ) -> Feeds:
        """The outputs for a batch, by rows of examples and of texts and by numbers of views, in FP32."""
        found: Feeds = {}
        for name, kept in self.kept.items():
            read = kept.read(kept.rows.places(rows, texts, numbers))
            if "classes" in read:
                found[name + VALUES], found[name + CLASSES] = read["values"], read["classes"]
            else:
                found[name] = read["values"]
        found.update({name: np.array(value, np.float32) for name, value in self.scalars.items()})
        return found


def stored(
    teacher: Asked,
    data: Encoded,
    keeping: Keeping,
    tell: Progress,
    augment: Augment = "none",
    views: int | None = None,
) -> Stored:
    """Find the teacher's outputs for a split in the cache; compute and keep those that are not there.

    Args:
        teacher: what is asked.
        data: the split, encoded for the teacher.
        keeping: where and how they are kept; other processes may write there at the same time.
        tell: told of the size before anything is computed, and of progress.
        augment: how pictures are altered.
        views: how many views there are of each example.

    Raises:
        StageError: outputs that cannot be stored or are not finite; a full disk.
    """
    from mmcompress.stages._stored_filling import fill

    names = sorted(name for name in teacher.want if not name.endswith(".mask"))
    about = _abouts(teacher, data, keeping, names)
    scalars = {name: float(about[name]["scalar"]) for name in names if "scalar" in about[name]}
    kept: dict[str, Kept] = {}
    rows: dict[str, Rows] = {}
    for name in names:
        if name in scalars:
            continue
        of = what_rows(name, data)
        if of not in rows:
            rows[of] = rows_of(data, of, augment, views)
        layout = Layout.from_json(about[name]["layout"])
        kept[name] = Kept(layout, Shards(keeping.folder(name)), rows[of], about[name]["tokens"])
    for same in rows.values():
        fill(teacher, data, {n: k for n, k in kept.items() if k.rows is same}, augment, tell)
    return Stored(kept, scalars)


def _abouts(teacher: Asked, data: Encoded, keeping: Keeping, names: list[str]) -> dict[str, dict[str, Any]]:
    """What is kept of each output, from its folder or by asking about a few examples."""
    files = {name: keeping.folder(name) / ABOUT for name in names}
    unknown = [name for name in names if not files[name].is_file()]
    if unknown:
        rows = np.arange(min(PROBED, len(data)), dtype=np.int64)
        texts = rows if data.offsets is None else data.offsets[:-1][rows]
        masks = {name: mask_of(teacher.family, name) for name in unknown}
        want = frozenset(unknown) | {mask for mask in masks.values() if mask is not None}
        outputs = teacher.feeds(data.feeds(rows, texts), want)
        for name in unknown:
            mask = masks[name]
            shape = _layout(name, outputs[name], None if mask is None else outputs[mask], keeping, teacher.want)
            files[name].parent.mkdir(parents=True, exist_ok=True)
            write_json(files[name], {**keeping.about(name), **shape})
    for name in names:
        used(files[name].parent, ABOUT)
    return {name: read_json(files[name]) for name in names}


def mask_of(family: Family, output: str) -> str | None:
    """The mask of a part's logits, where the family gives one."""
    part, _, what = output.rpartition(".")
    mask = f"{part}.mask"
    return mask if what == "logits" and mask in family.provides() else None


def _layout(name: str, value: Any, mask: Any, keeping: Keeping, want: frozenset[str]) -> dict[str, JSON]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise StageError(f"{name} is one tensor per layer, which is not stored\n  Use teacher_outputs: online.")
    if value.ndim == 0:
        if not value.isfinite():
            raise StageError(f"the teacher's {name} is not finite\n  Look at its checkpoint.")
        return {"scalar": float(value)}
    sequence = mask is not None and value.ndim == 3 and mask.shape == value.shape[:2]
    if sequence and f"{name.rpartition('.')[0]}.mask" not in want:
        raise StageError(
            f"{name} are of tokens, and no loss says which of them count, so that padding would have to be stored\n"
            f"  Name the mask in the losses (mask: {name.rpartition('.')[0]}.mask), or use teacher_outputs: online."
        )
    shape = tuple(value.shape[2 if sequence else 1 :])
    k = keeping.top_k.get(name)
    classes = shape[-1] if k is not None and shape[-1] > k else None
    if classes is not None and k is not None:
        shape = (*shape[:-1], k + 1)
    tokens = float((mask != 0).sum() / len(mask)) if sequence else 1.0
    layout = Layout(shape, sequence, classes, keeping.store_as)
    return {"layout": layout.to_json(), "tokens": round(tokens, 1)}


def few_classes(value: torch.Tensor, layout: Layout) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    """An output as it is kept: all of it, or the likeliest classes with the rest's mass, and which they are."""
    if layout.classes is None:
        return value.cpu().numpy(), None
    values, classes = likeliest(value, layout.width - 1)
    return values.cpu().numpy(), classes.cpu().numpy()
