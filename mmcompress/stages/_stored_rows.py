"""How a teacher's numbers are kept: two bytes each or one, sequences without their padding, of many classes the likeliest.

- n: rows (examples, or examples with a text, in a view), m: rows or the tokens of all rows, c: numbers, k: classes kept
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import JSON
from mmcompress.errors import StageError

StoreAs = Literal["int16", "int8", "bf16"]
"""``int16`` and ``int8``: whole numbers with a scale per row (per token of sequences); ``bf16``: the upper half of FP32."""
FEW = 16
"""Rows of fewer numbers are kept in FP32: what they are found by takes more room than they do."""
COARSE = 0.02
"""A step between whole numbers that no embedding and no logit suffers from."""
SHORT_CLASSES = 1 << 16
"""Fewer classes than these are numbered in two bytes."""
_LARGEST = {"int16": 32767, "int8": 127}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """What a row of an output is."""

    shape: tuple[int, ...]
    """Of one row; of one token where it is a sequence; [k + 1] where only the likeliest classes are kept."""
    sequence: bool = False
    """Whether a row has tokens, as many as its mask counts to the last one that does."""
    classes: int | None = None
    """How many classes there are, where only the likeliest and the rest's mass are kept."""
    store_as: StoreAs = "int16"

    def to_json(self) -> JSON:
        """As :meth:`from_json` reads it."""
        return {**asdict(self), "shape": list(self.shape)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Layout:
        """From a file of the store."""
        return Layout(**{**value, "shape": tuple(value["shape"])})

    @property
    def width(self) -> int:
        """c: numbers that share a scale."""
        return self.shape[-1] if self.shape else 1

    @property
    def whole(self) -> bool:
        """Whether rows are kept in FP32."""
        return not self.sequence and int(np.prod(self.shape)) < FEW

    def row_bytes(self, tokens: float = 1.0) -> float:
        """Bytes of a row of so many tokens, without its key."""
        each = float(np.prod(self.shape))
        if self.whole:
            return 4 * each
        size = each * (1 if self.store_as == "int8" else 2)
        if self.store_as != "bf16":
            size += 4 * each / self.width
        if self.classes is not None:
            size += (each - 1) * class_type(self.classes).itemsize
        return size * tokens + (8 if self.sequence else 0)


def class_type(classes: int) -> np.dtype[Any]:
    """What classes are numbered with."""
    return np.dtype(np.uint16 if classes <= SHORT_CLASSES else np.uint32)


def pack(values: NDArray[np.float32], store_as: StoreAs) -> Arrays:
    """Numbers [m, c] as ``values`` [m, c] and, of whole numbers, ``scales`` [m].

    Raises:
        StageError: numbers that lie too far apart for whole numbers with one scale per row.
    """
    if store_as == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # To the nearest, a tie to the even one: what is added carries into the upper half.
        return {"values": ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)}
    largest = _LARGEST[store_as]
    size = np.abs(values)
    scales = (size.max(axis=1, initial=0.0) / largest).astype(np.float32)
    if ((scales > COARSE) & (scales > np.median(size, axis=1))).any():
        raise StageError(
            f"the teacher gives numbers as far as {float(size.max()):.4g} from 0 among numbers near {np.median(size):.4g},"
            f" which {store_as} with one scale per row cannot tell apart\n  Use store_as: bf16."
        )
    scales[scales == 0] = 1
    kind = np.int16 if store_as == "int16" else np.int8
    return {"values": np.rint(values / scales[:, None]).astype(kind), "scales": scales}


def unpack(values: NDArray[Any], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """What :func:`pack` was given, about: float32, of the shape of ``values``."""
    if values.dtype == np.float32:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert scales is not None
    return cast("NDArray[np.float32]", values.astype(np.float32) * scales[..., None])


def pack_rows(
    values: NDArray[np.float32], layout: Layout, mask: NDArray[Any] | None, classes: NDArray[Any] | None
) -> Arrays:
    """An output of a batch as the arrays that a shard holds of it; the first axis of each is rows, or all rows' tokens.

    Args:
        values: [n, ...], [n, s, ...] for sequences.
        layout: what a row is.
        mask: [n, s], for sequences.
        classes: [n, k] or [n, s, k] where only the likeliest are kept.
    """
    count = len(values)
    lengths: NDArray[np.int64] | None = None
    if layout.sequence:
        assert mask is not None
        counted = mask != 0
        lengths = np.where(counted.any(axis=1), counted.shape[1] - np.argmax(counted[:, ::-1], axis=1), 0)
        inside = np.arange(counted.shape[1])[None] < lengths[:, None]
        values = values[inside]
        classes = None if classes is None else classes[inside]
    flat = values.reshape(-1, layout.width)
    arrays: Arrays = {"values": flat.astype(np.float32)} if layout.whole else pack(flat, layout.store_as)
    first = int(lengths.sum()) if lengths is not None else count
    arrays["values"] = arrays["values"].reshape(first, *layout.shape)
    if "scales" in arrays:
        arrays["scales"] = arrays["scales"].reshape(first, *layout.shape[:-1])
    if layout.classes is not None:
        assert classes is not None
        arrays["classes"] = classes.astype(class_type(layout.classes))
    if lengths is not None:
        arrays["lengths"] = lengths.astype(np.int64)
    return arrays


def unpack_rows(parts: Sequence[Arrays], layout: Layout, order: NDArray[np.int64]) -> Arrays:
    """Rows of several shards in one array, in the order of a batch.

    Args:
        parts: what :func:`pick` gave of each shard.
        layout: what a row is.
        order: [b]: where each row of the parts, one part after the other, stands in the batch.

    Returns:
        ``values`` float32 [b, ...], and ``classes`` int64 [b, k]; sequences [b, s, ...], zeros after the last token.
    """
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    values = unpack(joined["values"], joined.get("scales"))
    classes = joined["classes"].astype(np.int64) if "classes" in joined else None
    if not layout.sequence:
        found: Arrays = {"values": np.empty_like(values)}
        found["values"][order] = values
        if classes is not None:
            found["classes"] = np.empty_like(classes)
            found["classes"][order] = classes
        return found
    lengths = joined["lengths"]
    rows = np.repeat(order, lengths)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    longest = max(1, int(lengths.max(initial=1)))
    padded = np.zeros((len(order), longest, *layout.shape), np.float32)
    padded[rows, places] = values
    found = {"values": padded}
    if classes is not None:
        found["classes"] = np.zeros((len(order), longest, classes.shape[-1]), np.int64)
        found["classes"][rows, places] = classes
    return found


def pick(arrays: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> Arrays:
    """Some rows of a shard's arrays, all their tokens one after the other in sequences."""
    if "starts" not in arrays:
        return {name: array[rows] for name, array in arrays.items()}
    first = np.asarray(arrays["starts"])[rows]
    lengths = np.asarray(arrays["starts"])[rows + 1] - first
    tokens = np.arange(int(lengths.sum())) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    found = {name: array[tokens] for name, array in arrays.items() if name != "starts"}
    return {**found, "lengths": lengths}


def join(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of a shard from those of its batches; ``lengths`` become ``starts`` [n + 1]."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    lengths = joined.pop("lengths", None)
    if lengths is not None:
        joined["starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return joined
