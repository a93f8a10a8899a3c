"""What tells the rows of stored outputs apart: what the teacher is fed for them, not the data set that they come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import JSON, digest_path
from mmcompress.package import family_fields
from mmcompress.stages import Model
from mmcompress.stages._augment import REVISION
from mmcompress.stages._batches import Augment, Encoded, is_pictures
from mmcompress.stages._stored_shards import KEY, KEY_BYTES, Keys, combined, row_digests

Of = Literal["examples", "texts", "pairs"]
OF_EXAMPLES = ("vision.", "audio.")
"""Outputs of these parts do not depend on the text, where an example has several."""
OF_TEXTS = ("text.embeds",)
"""Outputs that depend on nothing but the text."""


@dataclass(frozen=True)
class Rows:
    """Everything that an output has a row of: examples, texts, or examples with a text; each in each view."""

    of: Of
    examples: NDArray[np.int64]
    """[n]: the example of each row."""
    texts: NDArray[np.int64]
    """[n]: the text of each row."""
    numbers: NDArray[np.int64] | None
    """[n]: the view of each row; None where there is but one."""
    keys: Keys
    views: int

    def places(
        self, rows: NDArray[np.int64], texts: NDArray[np.int64], numbers: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Which rows belong to a batch, [b]."""
        first = rows if self.of == "examples" else texts
        return first if self.views == 1 or numbers is None else first * self.views + numbers


def what_rows(name: str, data: Encoded) -> Of:
    """What an output has one row of."""
    if data.of_texts and name in OF_TEXTS:
        return "texts"
    return "examples" if data.of_texts and name.startswith(OF_EXAMPLES) else "pairs"


def rows_of(data: Encoded, of: Of, augment: Augment, views: int | None) -> Rows:
    """The rows of a split, with their keys. Views are the pictures' alone."""
    several = data.offsets is not None
    examples = np.arange(len(data), dtype=np.int64)
    texts = examples
    if data.offsets is not None:
        texts = data.offsets[:-1]
        if of != "examples":
            examples, texts = np.repeat(examples, np.diff(data.offsets)), np.arange(data.offsets[-1], dtype=np.int64)
    parts: list[Keys] = []
    for name in sorted(data.arrays):
        in_texts = name in data.of_texts
        if not several or of == "pairs" or in_texts == (of == "texts"):
            parts.append(digests_of(data, name)[texts if in_texts else examples])
    keys = combined(*parts) if len(parts) > 1 else parts[0]
    pictures = any(is_pictures(array) for name, array in data.arrays.items() if name not in data.of_texts)
    if augment == "none" or of == "texts" or not pictures:
        return Rows(of, examples, texts, None, keys, 1)
    count = views or 1
    numbers = np.tile(np.arange(count, dtype=np.int64), len(keys))
    examples, texts, keys = np.repeat(examples, count), np.repeat(texts, count), np.repeat(keys, count)
    how = np.array([f"{augment} {REVISION}".ljust(16).encode()] * len(keys), "S16")
    # The parameters of a view follow from the example's hash and the view's number.
    return Rows(of, examples, texts, numbers, combined(keys, data.hashes[examples], numbers, how), count)


def digests_of(data: Encoded, name: str) -> Keys:
    """A digest per row of a compact array, computed once and kept beside it."""
    kept = data.home / f"{name}.digests.npy" if data.home is not None else None
    if kept is not None and kept.is_file():
        found = np.load(kept, allow_pickle=False)
        if found.shape == (len(data.arrays[name]), KEY_BYTES):
            return found.view(KEY).reshape(-1)  # type: ignore[no-any-return]
    digests = row_digests(data.arrays[name])
    if kept is not None:
        part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, digests.view(np.uint8).reshape(-1, KEY_BYTES), allow_pickle=False)
        os.replace(part, kept)
    return digests


def teacher_identity(teacher: Model, key: str) -> JSON:
    """What tells teachers apart, and what they make of the compact arrays."""
    files: dict[str, str] = {}
    for name in sorted(teacher.family.package_files(teacher.folder)):
        files[name] = digest_path(Path(teacher.folder) / name)
    return {
        "teacher": key or digest_path(teacher.folder),
        "family": teacher.family.component_name(),
        "revision": teacher.family.revision_of_code,
        "fields": family_fields(teacher.family),
        "files": files,
    }
