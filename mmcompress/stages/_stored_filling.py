"""Asking a teacher about the rows that are not kept yet, by several processes at once, and never for the same rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mmcompress.component import digest_json
from mmcompress.errors import StageError
from mmcompress.stages._batches import Augment, Encoded, Progress, View
from mmcompress.stages._stored_rows import Arrays, join, pack_rows
from mmcompress.stages._teacher_outputs import Asked, Kept, few_classes, mask_of

if TYPE_CHECKING:
    from mmcompress.losses import Outputs

CLAIMED = 2048
"""Rows that a process claims at a time."""
ASKED = 128
"""Rows that the teacher is asked about at a time."""
SHARD_BYTES = 1 << 26
"""A shard is closed when it has grown to this size, ..."""
SHARD_SECONDS = 20.0
"""... or after this time, so that a process that is killed loses no more than that."""
WAIT_SECONDS = 0.2
"""Between two looks at rows that other processes have claimed."""
NAMED = 5
"""Examples that an error names."""


def fill(teacher: Asked, data: Encoded, kept: Mapping[str, Kept], augment: Augment, tell: Progress) -> None:
    """Ask for the rows that are missing of some outputs, which have the same rows, and keep them.

    Raises:
        StageError: outputs that cannot be stored or are not finite; a full disk.
    """
    rows = next(iter(kept.values())).rows
    for name, output in kept.items():
        output.shards.tidy()
        output.shards.refresh()
        for path in output.shards.damaged:
            tell(f"{path} is not as it was written: asking the teacher for its {name} again", 0, 0)
    # Equal rows (a caption that comes twice) are asked about once, in the data's order.
    first = np.sort(np.unique(rows.keys, return_index=True)[1])
    lacking = {name: int((k.shards.find(rows.keys[first]) < 0).sum()) for name, k in kept.items()}
    total, most = len(first), max(lacking.values())
    if not most:
        return
    size = sum(count * (16 + kept[name].layout.row_bytes(kept[name].tokens)) for name, count in lacking.items())
    tell(f"asking the teacher about {most} of {total}, {_bytes(size)} to keep", total - most, total)
    locks = next(iter(kept.values())).shards.folder.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    waiting = deque(first[start : start + CLAIMED] for start in range(0, total, CLAIMED))
    done, passed = 0, 0
    while waiting:
        chunk = waiting.popleft()
        lock = locks / f"{digest_json([rows.of, rows.keys[chunk].tobytes().hex()])}.lock"
        try:
            with FileLock(lock, timeout=0):
                _claimed(teacher, data, kept, augment, chunk, tell, (done, total))
        except Timeout:
            waiting.append(chunk)
            passed += 1
            if passed >= len(waiting):
                time.sleep(WAIT_SECONDS)
                passed = 0
            continue
        done, passed = done + len(chunk), 0
        tell("asking the teacher", done, total)


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _claimed(
    teacher: Asked,
    data: Encoded,
    kept: Mapping[str, Kept],
    augment: Augment,
    chunk: NDArray[np.int64],
    tell: Progress,
    done: tuple[int, int],
) -> None:
    """What is missing of the claimed rows, in shards."""
    rows = next(iter(kept.values())).rows
    missing: dict[str, NDArray[np.bool_]] = {}
    for name, output in kept.items():
        output.shards.refresh()
        missing[name] = output.shards.find(rows.keys[chunk]) < 0
    asked_for = {name: output for name, output in kept.items() if missing[name].any()}
    if not asked_for:
        return
    either = np.logical_or.reduce([missing[name] for name in asked_for])
    wanted = chunk[either]
    masks = {name: mask_of(teacher.family, name) for name, output in asked_for.items() if output.layout.sequence}
    want = frozenset(asked_for) | {mask for mask in masks.values() if mask is not None}
    open_shards = {name: _Open(output) for name, output in asked_for.items()}
    for start in range(0, len(wanted), ASKED):
        part = wanted[start : start + ASKED]
        numbers = None if rows.numbers is None else rows.numbers[part]
        feeds = data.feeds(rows.examples[part], rows.texts[part], View(0, 0, augment), numbers)
        outputs = teacher.feeds(feeds, want)
        for name, output in asked_for.items():
            own = missing[name][either][start : start + ASKED]
            if own.any():
                arrays = _arrays(
                    name, output, outputs, masks.get(name), own, [data.ids[i] for i in rows.examples[part]]
                )
                open_shards[name].add(part[own], arrays)
        tell("asking the teacher", done[0] + start + len(part), done[1])
    for shard in open_shards.values():
        shard.close()


class _Open:
    """A shard that grows in memory until it is written."""

    def __init__(self, output: Kept) -> None:
        self.output = output
        self._start()

    def _start(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.parts: list[Arrays] = []
        self.size = 0
        self.began = time.monotonic()

    def add(self, rows: NDArray[np.int64], arrays: Arrays) -> None:
        """Add rows; write them where they are many or long in coming."""
        self.rows.append(rows)
        self.parts.append(arrays)
        self.size += sum(array.nbytes for array in arrays.values())
        if self.size >= SHARD_BYTES or time.monotonic() - self.began >= SHARD_SECONDS:
            self.close()

    def close(self) -> None:
        """Write what there is."""
        if self.rows:
            self.output.shards.write(self.output.rows.keys[np.concatenate(self.rows)], join(self.parts))
            self.output.shards.refresh()
        self._start()


def _arrays(
    name: str, output: Kept, outputs: Outputs, mask: str | None, own: NDArray[np.bool_], ids: list[str]
) -> Arrays:
    """An output of a batch as it is kept, of those rows that are ``own``."""
    layout, value = output.layout, outputs[name]
    mask_values: NDArray[Any] | None = None if mask is None else outputs[mask].cpu().numpy()
    tokens = 2 if layout.sequence else 1
    expected = layout.shape if layout.classes is None else (*layout.shape[:-1], layout.classes)
    if tuple(value.shape[tokens:]) != expected:
        raise StageError(
            f"{name} has another shape in each batch ({list(value.shape[1:])}, expected {list(expected)} per"
            f" {'token' if layout.sequence else 'example'}), which cannot be stored\n  Use teacher_outputs: online."
        )
    finite = value.isfinite()
    broken = ~finite.flatten(1).all(dim=1).cpu().numpy() if value.ndim > 1 else ~finite.cpu().numpy()
    if (broken & own).any():
        named = sorted({example for example, is_broken in zip(ids, broken, strict=True) if is_broken})
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        raise StageError(
            f"the teacher's {name} is not finite for {', '.join(named[:NAMED])}{more}\n"
            "  Look at these examples, or let the teacher compute in fp32 (precision: fp32)."
        )
    values, classes = few_classes(value, layout)
    select = np.flatnonzero(own)
    return pack_rows(
        values[select],
        layout,
        None if mask_values is None else mask_values[select],
        None if classes is None else classes[select],
    )
