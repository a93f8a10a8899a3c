"""Answers that another system gave: a teacher without a model, read from a file.

``.jsonl``: an object per example, its ``id`` and what was answered (``{"id": "7", "vision.embeds": [0.1, ...]}``), and one
without an ``id`` for numbers that hold for all (``{"fusion.logit_scale": 100.0}``). ``.npz``: ``ids`` [n], arrays [n, ...] and
numbers []. Outputs have the names of :mod:`mmcompress.losses`; ``text`` is a text, which a student learns as its label.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import digest_path
from mmcompress.errors import InputError
from mmcompress.families import Family, Feeds
from mmcompress.stages._batches import Encoded

TEXT = "text"
NAMED = 5
"""Examples that a message names."""


@dataclass(frozen=True)
class Given:
    """A file of answers."""

    file: Path
    ids: tuple[str, ...]
    outputs: Mapping[str, NDArray[np.float32]]
    """[n, ...] by name; embeddings have the length 1."""
    scalars: Mapping[str, float]
    texts: tuple[str, ...] | None

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Where the answers about examples stand, [n].

        Raises:
            InputError: examples without an answer, by their ids.
        """
        places = {example: row for row, example in enumerate(self.ids)}
        missing = [example for example in ids if example not in places]
        if missing:
            unknown = set(self.ids) - set(ids)
            also = (
                f"\n  The file answers about examples that the data lack, too: {_named(sorted(unknown))}"
                if unknown
                else ""
            )
            raise InputError(
                f"{self.file}: no answer about {_named(missing)} of {len(ids)} examples{also}\n"
                "  Expected the ids of the data: a column `id` of its table, or what `mmcompress data` shows."
            )
        return np.array([places[example] for example in ids], np.int64)


class AnsweringTeacher(Family):
    """Stands for a file of answers where a recipe is checked: it gives what is in the file, and has no model."""

    @property
    def given(self) -> Given:
        """What the file holds."""
        assert self.path is not None
        return read_answers(self.path)

    @classmethod
    def component_name(cls) -> str:
        """What messages call it."""
        return "answers"

    def provides(self) -> frozenset[str]:
        """The outputs in the file."""
        return frozenset({*self.given.outputs, *self.given.scalars})


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def read_answers(file: Path) -> Given:
    """Read and check a file of answers.

    Raises:
        InputError: no such file, another format, ids that come twice, numbers that are not finite, rows of several widths.
    """
    return _read(file, digest_path(file))


@lru_cache(maxsize=4)
def _read(file: Path, digest: str) -> Given:
    readers: dict[str, Callable[[Path], tuple[list[str], dict[str, Any]]]] = {".jsonl": _jsonl, ".npz": _npz}
    if file.suffix not in readers:
        raise InputError(f"{file}: expected answers as .jsonl or .npz")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    ids, found = readers[file.suffix](file)
    if not ids:
        raise InputError(f"{file}: no answers; expected an `id` for each")
    twice = sorted({example for example, count in zip(*np.unique(ids, return_counts=True), strict=True) if count > 1})
    if twice:
        raise InputError(f"{file}: several answers about {_named(twice)}")
    outputs: dict[str, NDArray[np.float32]] = {}
    texts = found.pop(TEXT, None)
    scalars = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
    for name, value in found.items():
        if name not in scalars:
            outputs[name] = _checked(file, name, ids, value)
    if not outputs and texts is None:
        raise InputError(f"{file}: ids alone; expected outputs such as vision.embeds, or text")
    return Given(file, tuple(ids), outputs, scalars, None if texts is None else tuple(map(str, texts)))


def _checked(file: Path, name: str, ids: Sequence[str], value: Any) -> NDArray[np.float32]:
    if "." not in name:
        raise InputError(f"{file}: {name!r} is no output; expected a name such as vision.embeds, text.embeds or text")
    array: NDArray[np.float32] = np.asarray(value, np.float32)
    if len(array) != len(ids):
        raise InputError(f"{file}: {len(array)} rows of {name} and {len(ids)} ids")
    broken: NDArray[np.bool_] = np.logical_or.reduce(~np.isfinite(array.reshape(len(array), -1)), axis=1)
    if name.endswith(".embeds"):
        length = np.linalg.norm(array, axis=-1, keepdims=True)
        broken = broken | (length == 0).reshape(len(array), -1).any(axis=1)
        array = np.divide(array, np.where(length == 0, 1, length), dtype=np.float32)
    if broken.any():
        wrong = [example for example, is_broken in zip(ids, broken, strict=True) if is_broken]
        raise InputError(f"{file}: {name} is not finite, or 0, for {_named(wrong)}")
    return array


def _npz(file: Path) -> tuple[list[str], dict[str, Any]]:
    try:
        with np.load(file, allow_pickle=False) as content:
            found = {name: content[name] for name in content.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not an .npz file of plain arrays ({error})") from None
    return [str(example) for example in found.pop("ids", [])], found


def _jsonl(file: Path) -> tuple[list[str], dict[str, Any]]:
    ids: list[str] = []
    columns: dict[str, list[Any]] = {}
    found: dict[str, Any] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = dict(json.loads(line))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise InputError(f"{file}:{number}: expected a JSON object ({error})") from None
        if "id" not in record:
            found.update(record)
            continue
        ids.append(str(record.pop("id")))
        names = columns or {name: [] for name in record}
        if record.keys() != names.keys():
            raise InputError(
                f"{file}:{number}: has {', '.join(record)}; expected {', '.join(names)} as the lines before"
            )
        columns = names
        for name, value in record.items():
            known = columns[name]
            if name != TEXT and known and np.shape(value) != np.shape(known[0]):
                raise InputError(
                    f"{file}:{number}: {name} of {ids[-1]} has {np.shape(value)} numbers; expected {np.shape(known[0])} as before"
                )
            known.append(value)
    return ids, {**found, **columns}


@dataclass(frozen=True)
class Matched:
    """Answers about the examples of a split, in the form of stored outputs."""

    outputs: Mapping[str, NDArray[np.float32]]
    rows: NDArray[np.int64]
    scalars: Mapping[str, float]

    def __call__(
        self, rows: NDArray[np.int64], texts: NDArray[np.int64], numbers: NDArray[np.int64] | None = None
    ) -> Feeds:
        """The answers about a batch, by rows of examples: views and other texts of an example have the same ones."""
        found: Feeds = {name: array[self.rows[rows]] for name, array in self.outputs.items()}
        found.update({name: np.array(value, np.float32) for name, value in self.scalars.items()})
        return found


def matched(file: Path, data: Encoded, want: frozenset[str]) -> Matched:
    """The answers about a split.

    Raises:
        InputError: an example without an answer; an output of texts where an example has several.
    """
    given = read_answers(file)
    several = data.offsets is not None and bool((np.diff(data.offsets) > 1).any())
    of_texts = sorted(name for name in want & given.outputs.keys() if name.startswith("text."))
    if several and of_texts:
        raise InputError(
            f"{file}: one row of {', '.join(of_texts)} per example, and some examples of the data have several texts\n"
            "  Give each text an example of its own."
        )
    outputs = {name: array for name, array in given.outputs.items() if name in want}
    scalars = {name: value for name, value in given.scalars.items() if name in want}
    return Matched(outputs, given.rows(data.ids), scalars)
