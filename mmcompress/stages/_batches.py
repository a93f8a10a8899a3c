"""Batches for training: encoded once, drawn in an order that follows from seed, epoch and position alone.

::

    <cache>/examples/<key>/          everything that preprocessing costs, kept between stages and runs
        index.json                   arrays, counts, what is told of the examples
        texts.offsets.npy            int64 [n + 1]: the texts of example i are rows offsets[i] to offsets[i + 1]
        <column>.<array>.npy         uint8 pictures [n, h, w, 3], int32 tokens [texts, s], read as memory maps
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mmcompress._cache import used
from mmcompress.component import JSON, digest_json, digest_path
from mmcompress.data import Examples
from mmcompress.errors import InputError
from mmcompress.families import Family, Feeds, Masking, Processor
from mmcompress.stages._augment import augment_pictures
from mmcompress.stages._masking import mask_words
from mmcompress.store import read_json, write_json

Progress = Callable[[str, int, int], None]
Augment = Literal["none", "shift", "crop"]
Stored = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None], Feeds]
CHUNK = 256
"""Examples that are encoded at a time."""
ALTERNATIVES = "texts"
"""The column of which each example holds several values, as good as one another; a processor calls one ``text``."""
DRAWS = ("x", "y", "area", "light", "gap")
"""The parameters of a view of a picture; see :func:`mmcompress.stages._augment.augment_pictures`."""
OF_VIEWS = -1
"""Stands for the seed of views that are the same for every seed."""
_FORMAT = 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Splitmix64's step from one number to the next: a place in a text is that many steps from its example's hash."""


@dataclass(frozen=True)
class Encoded:
    """The compact arrays of a split, as memory maps; see :meth:`mmcompress.families.Processor.compact`."""

    key: str
    ids: Sequence[str]
    processor: Processor
    arrays: Mapping[str, NDArray[Any]]
    """By the processor's name; first axis: examples, or texts for those in :attr:`of_texts`."""
    of_texts: frozenset[str]
    offsets: NDArray[np.int64] | None
    """[n + 1]: where the texts of each example begin; None where there are no texts."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What the processor tells of the examples, counted."""
    home: Path | None = None
    """Where the arrays lie, and what else is worth keeping of them."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """One number per example that follows from its id alone, [n]."""
        digests = b"".join(hashlib.blake2b(example.encode(), digest_size=8).digest() for example in self.ids)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

    def texts(self, rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """Which text of each example is taken in an epoch: rows of the text arrays, [b]."""
        if self.offsets is None:
            return rows
        first, count = self.offsets[rows], np.diff(self.offsets)[rows]
        chosen: NDArray[np.int64] = first + (uniform(self.hashes[rows], seed, epoch, "texts") * count).astype(np.int64)
        return chosen

    def feeds(
        self,
        rows: NDArray[np.int64],
        texts: NDArray[np.int64],
        view: View | None = None,
        numbers: NDArray[np.int64] | None = None,
    ) -> Feeds:
        """Graph inputs of examples and texts, as they are or in a view of them.

        ``numbers`` [b] say which of an example's own views is shown (:meth:`View.numbers`); None for views without end.
        """
        compact: Feeds = {}
        for name, array in self.arrays.items():
            compact[name] = np.asarray(array[texts if name in self.of_texts else rows])
        if view is not None:
            compact = self._viewed(compact, self.hashes[rows], view, numbers)
        return self.processor.expand(compact)

    def _viewed(
        self, compact: Feeds, hashes: NDArray[np.uint64], view: View, numbers: NDArray[np.int64] | None
    ) -> Feeds:
        """Altered pictures, texts with hidden words, and inputs left out where the processor has ``leave_out``."""
        result = dict(compact)
        if view.augment != "none":
            draws = {
                stream: view.draw(hashes, stream) if numbers is None else draw_of_view(hashes, numbers, stream)
                for stream in DRAWS
            }
            for name, array in compact.items():
                if is_pictures(array):
                    sizes = compact.get(f"{name}_size")
                    # The pictures of a film are all altered alike: what moves in it is what moved.
                    frames = math.prod(array.shape[1:-3])
                    own = {stream: number.repeat(frames) for stream, number in draws.items()}
                    altered = augment_pictures(array.reshape(-1, *array.shape[-3:]), view.augment, own, sizes)
                    result[name] = altered.reshape(array.shape)
        masking: Mapping[str, Masking] = getattr(self.processor, "masking", {})
        for name in masking.keys() & compact.keys():
            places = np.arange(compact[name].shape[1], dtype=np.uint64) * _GOLDEN
            each = hashes[:, None] + places[None]
            draw = partial(view.draw, each)
            result[name], result[f"{name}_labels"] = mask_words(compact[name], masking[name], draw)
        if view.thin and self.leaves_out:
            leave_out: Any = getattr(self.processor, "leave_out")  # noqa: B009 - few processors have it
            result = leave_out(result, lambda stream: view.draw(hashes, stream))
        return result

    @property
    def leaves_out(self) -> bool:
        """Whether the processor can leave inputs out."""
        return hasattr(self.processor, "leave_out")


@dataclass(frozen=True)
class View:
    """What an epoch shows of the examples."""

    seed: int
    epoch: int
    augment: Augment = "none"
    thin: bool = False
    """Whether inputs are left out, where the model is trained with missing ones."""
    views: int | None = None
    """How many views there are of each example, the same for every seed; a new one in each epoch where None."""

    def numbers(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64] | None:
        """Which of its views an example shows in this epoch, [b]: one after the other, from another one in each seed."""
        if self.views is None or self.augment == "none":
            return None
        first = (uniform(hashes, self.seed, 0, "view") * self.views).astype(np.int64)
        chosen: NDArray[np.int64] = (first + self.epoch) % self.views
        return chosen

    def draw(self, hashes: NDArray[np.uint64], stream: str) -> NDArray[np.float64]:
        """A number in [0, 1) for each of the hashes, by what it is for."""
        return uniform(hashes, self.seed, self.epoch, stream)


def draw_of_view(hashes: NDArray[np.uint64], numbers: NDArray[np.int64], stream: str) -> NDArray[np.float64]:
    """A parameter of an example's own views, in [0, 1), [b]: it follows from the example and the view's number alone."""
    drawn = np.empty(len(hashes), np.float64)
    for number in np.unique(numbers).tolist():
        members = numbers == number
        drawn[members] = uniform(hashes[members], OF_VIEWS, number, stream)
    return drawn


def is_pictures(array: NDArray[Any]) -> bool:
    """Whether an array of a compact batch holds pictures, uint8 [b, h, w, 3], or films, uint8 [b, f, h, w, 3]."""
    return array.dtype == np.uint8 and array.ndim in (4, 5) and array.shape[-1] == 3


@lru_cache(maxsize=64)
def _mix(seed: int, epoch: int, stream: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {epoch} {stream}".encode(), digest_size=8).digest(), "little")


def uniform(hashes: NDArray[np.uint64], seed: int, epoch: int, stream: str) -> NDArray[np.float64]:
    """A number in [0, 1) per example, a pure function of (seed, epoch, stream, example): splitmix64 (Steele, 2014)."""
    z = hashes ^ np.uint64(_mix(seed, epoch, stream))
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True)
class Batches:
    """The batches of a training or a validation, by number."""

    data: Encoded
    size: int
    seed: int
    augment: Augment = "none"
    teacher: Encoded | None = None
    """The same examples as another model is fed them; None where it is fed alike, or is not fed."""
    stored: Stored | None = None
    """Stored outputs of the teacher by rows of examples and of texts, and by numbers of views."""
    asks: bool = False
    """Whether a teacher is asked for every batch."""
    thin: bool = False
    """Whether inputs are left out, where the model is trained with missing ones; not in validation."""
    views: int | None = None
    """How many views there are of each example, the same for every seed; a new one in each epoch where None."""

    def __post_init__(self) -> None:
        if len(self.data) < self.size:
            raise InputError(
                f"batch_size {self.size} is more than the {len(self.data)} training examples\n"
                "  Lower batch_size, or give more data."
            )

    @property
    def per_epoch(self) -> int:
        """Whole batches in an epoch; what is left over comes in other epochs, whose order is another."""
        return len(self.data) // self.size

    def rows(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch and examples [b] of a batch."""
        epoch, position = divmod(number, self.per_epoch)
        order = _order(self.seed, epoch, len(self.data))
        return epoch, order[position * self.size : (position + 1) * self.size]

    def __getitem__(self, number: int) -> dict[str, Feeds]:
        """``inputs`` of the model; ``teacher_inputs`` where they differ, ``teacher_outputs`` where they are stored."""
        epoch, rows = self.rows(number)
        texts = self.data.texts(rows, self.seed, epoch)
        view = View(self.seed, epoch, self.augment, views=self.views)
        numbers = view.numbers(self.data.hashes[rows])
        batch = {"inputs": self.data.feeds(rows, texts, replace(view, thin=self.thin), numbers)}
        # A teacher sees all inputs, so that its answers are the same whether they are stored or not.
        own = self.data if self.thin and self.data.leaves_out and self.asks else None
        whole = self.teacher or own
        if whole is not None:
            batch["teacher_inputs"] = whole.feeds(rows, texts, view, numbers)
        if self.stored is not None:
            batch["teacher_outputs"] = self.stored(rows, texts, numbers)
        return batch


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


# --- encoding ------------------------------------------------------------------------------------------------------


def encode(
    examples: Examples,
    family: Family,
    folder: Path,
    cache: Path,
    identity: JSON,
    tell: Progress,
    columns: frozenset[str] | None = None,
) -> Encoded:
    """The compact arrays of a split for the preprocessing of a model folder: found in the cache, or made.

    Args:
        examples: the split.
        family: knows the preprocessing and the columns that training reads.
        folder: a model folder.
        cache: where they are kept, whole or not at all; a process that makes the same ones is waited for.
        identity: what tells the split from others; its ids and fingerprints where None.
        tell: told of progress.
        columns: those that are read; all of the family's where None.

    Raises:
        InputError: a column is missing, a picture cannot be decoded, an example has no text.
    """
    columns = family.columns if columns is None else columns
    missing = sorted(columns - examples.columns)
    if missing:
        raise InputError(
            f"{family.component_name()} is trained with {', '.join(sorted(columns))}; the data has no"
            f" {', '.join(missing)} (it has {', '.join(sorted(examples.columns))})"
        )
    if not len(examples):
        raise InputError("the training data is empty")
    processor = family.processor(folder)
    ids = tuple(examples.ids)
    shown = identity if identity is not None else [examples.fingerprint(i) for i in range(len(examples))]
    key = digest_json(
        {
            "examples": shown,
            "ids": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
            "columns": sorted(columns),
            "preprocessing": preprocessing_identity(examples, family, folder, processor, columns),
            "format": _FORMAT,
        }
    )
    home = cache / "examples" / key
    if not (home / "index.json").is_file():
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.parent / f"{key}.lock"):
            if not (home / "index.json").is_file():
                _write(examples, columns, processor, home, tell)
    used(home, "index.json")
    index = read_json(home / "index.json")
    arrays = {name: np.load(home / file, mmap_mode="r", allow_pickle=False) for name, file in index["arrays"].items()}
    offsets = np.load(home / "texts.offsets.npy", allow_pickle=False) if index["of_texts"] else None
    return Encoded(key, ids, processor, arrays, frozenset(index["of_texts"]), offsets, index["notes"], home)


def preprocessing_identity(
    examples: Examples, family: Family, folder: Path, processor: Processor, columns: frozenset[str]
) -> JSON:
    """What tells two preprocessings apart: their files, and what they make of a few examples.

    ``config.json`` is left out, so that a student shares the arrays of its teacher; what it says of sizes and lengths
    shows in the examples.
    """
    files = {n: digest_path(folder / n) for n in sorted(family.package_files(folder)) if n != "config.json"}
    values_of, _ = _columns([examples[i].values for i in range(min(4, len(examples)))], columns)
    sample = [
        [column, name, str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for column, values in values_of.items()
        for name, array in sorted(processor.compact({column: values}).items())
    ]
    return {"family": family.component_name(), "revision": family.revision_of_code, "files": files, "sample": sample}


def _columns(examples: Sequence[Mapping[str, Any]], names: frozenset[str]) -> tuple[dict[str, list[Any]], list[int]]:
    """Values by the processor's column, texts in one list; and how many texts each example has."""
    columns: dict[str, list[Any]] = {}
    counts: list[int] = []
    for name in sorted(names):
        if name == ALTERNATIVES:
            columns["text"] = [text for values in examples for text in values[name]]
            counts = [len(values[name]) for values in examples]
        else:
            columns[name] = [values[name] for values in examples]
    return columns, counts


def _write(examples: Examples, names: frozenset[str], processor: Processor, home: Path, tell: Progress) -> None:
    part = home.with_name(home.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    maps: dict[str, Any] = {}
    texts: dict[str, list[NDArray[Any]]] = {}
    counts: list[int] = []
    notes: Counter[str] = Counter()
    noted: Callable[[Feeds], Mapping[str, int]] = getattr(processor, "notes", lambda compact: {})
    for start in range(0, len(examples), CHUNK):
        tell("encoding the examples", start, len(examples))
        chunk = [examples[i] for i in range(start, min(start + CHUNK, len(examples)))]
        columns, chunk_counts = _columns([example.values for example in chunk], names)
        _refuse_without_text(chunk, chunk_counts)
        counts += chunk_counts
        for column, values in columns.items():
            compact = processor.compact({column: values})
            notes.update(noted(compact))
            for name, array in compact.items():
                if column == "text" and ALTERNATIVES in names:
                    texts.setdefault(name, []).append(array)
                    continue
                if len(array) != len(values):
                    raise InputError(
                        f"{column} of the examples {chunk[0].id} to {chunk[-1].id}: {len(values)} values became"
                        f" {len(array)} rows, and training takes one of each\n  A sound that is longer than what the"
                        " model hears at a time is split: split it before, with its text, or leave it out."
                    )
                if name not in maps:
                    shape = (len(examples), *array.shape[1:])
                    maps[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", array.dtype, shape)
                maps[name][start : start + len(array)] = array
    for name, chunks in texts.items():
        np.save(part / f"{name}.npy", np.concatenate(chunks), allow_pickle=False)
    if texts:
        np.save(part / "texts.offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    for array in maps.values():
        array.flush()
    files = {name: f"{name}.npy" for name in (*maps, *texts)}
    index = {"arrays": files, "of_texts": sorted(texts), "examples": len(examples), "notes": dict(notes)}
    write_json(part / "index.json", index)
    shutil.rmtree(home, ignore_errors=True)
    os.replace(part, home)
    told = "".join(f"; {count} {what}" for what, count in notes.items() if count)
    tell(f"encoding the examples{told}", len(examples), len(examples))


def _refuse_without_text(chunk: Sequence[Any], counts: Sequence[int]) -> None:
    for example, count in zip(chunk, counts, strict=False):
        if count == 0:
            raise InputError(f"example {example.id} has no text\n  Leave it out, or give it one.")
