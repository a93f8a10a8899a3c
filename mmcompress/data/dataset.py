"""Any data that the library ``datasets`` reads: tables, shards, folders of pictures or sounds, repositories of the hub.

::

    dataset:
      path: train.csv                     # or *.parquet, shards/*.tar, a folder; or hub: owner/name with a revision
      columns:                            # our name: a column, a template, or a list of them
        image: images.zip/{file}
        question: question
        answers: answers.answer           # of each item of a list
        table: [age, height]
        photographer: source              # a name of your own is a slice
      classes: {label: [cat, dog]}

Names of files start from the folder of the table, and lead into zip archives; nothing outside that folder is read. A
cell may also hold the file itself (parquet, webdataset, the hub). Every row is read and every file decoded once when the
split is opened, and all that is wrong is told at once. Other readers, code of a repository and pickles are refused. What
the library writes lies in a temporary folder while the split is open; what the hub sent stays in
``<store>/cache/datasets``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator

from mmcompress import data
from mmcompress.component import JSON, RecipePath, digest_json, nearest
from mmcompress.data import Example
from mmcompress.data._dataset_rows import Format, Rows, find_files, open_files, open_hub
from mmcompress.data._dataset_values import Columns, check, fingerprint_of, media_in, opened, raw_values
from mmcompress.data._tables import columns_of
from mmcompress.errors import InputError

_SHOWN = 12
_CLASSES = {"label": "label", "labels": "label", "tags": "tags"}
"""Values that count classes, and the name under which ``classes`` names these."""
T = TypeVar("T")


class Dataset(data.Dataset):
    """Files or a hub repository, read with the library ``datasets``; ``columns`` maps their columns to values."""

    path: RecipePath | None = None
    """A file (csv, tsv, json, jsonl, parquet, a webdataset tar), a pattern, or a folder of such, of pictures or sounds."""
    hub: str | None = None
    """A dataset repository, ``owner/name``; needs ``revision``."""
    revision: str | None = None
    """A commit or a tag of the repository."""
    split: str = "train"
    """The split of the repository."""
    columns: Mapping[str, Columns] = Field(min_length=1)
    """By the name of a value: a column, ``part.of.column``, a template ``{column}``, or a list of them."""
    format: Format | None = None
    """How files are read; without it, by their suffix."""
    files: RecipePath | None = None
    """The folder that names of files start from; without it, that of ``path``. A name may not lead out of it."""
    id: str | None = None
    """The column with an id per row; without it ids are made of the content."""
    classes: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names of the classes of ``label`` (also for ``labels``) and of ``tags`` in their order; the same list for each split.

    Without it: the names that the source gives, else numbers count themselves, else in alphabetical order of the names in
    these rows (``O`` first), which is another order where a split lacks a class.
    """
    limit: int | None = Field(None, ge=1)
    """Read the first rows alone."""
    streaming: bool = False
    """Read no more of the source than ``limit`` rows need, and hold them in memory."""
    max_skipped: int = Field(0, ge=0)
    """How many rows with something wrong are left out, and counted, before that is an error."""

    @field_validator("columns")
    @classmethod
    def _well_named(cls, value: Mapping[str, Columns]) -> Mapping[str, Columns]:
        for name, given in value.items():
            each = (given,) if isinstance(given, str) else given
            if not name.isidentifier() or not each or not all(each):
                raise ValueError(f"{name!r}: expected the name of a value with a column, a template, or a list of them")
            for template in each:
                columns_of(template)
        if {"label", "labels"} <= value.keys():
            raise ValueError("expected either label (one class) or labels (several), not both")
        if "tags" in value and "words" not in value:
            raise ValueError("tags belong to words: expected both")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Dataset:
        if (self.path is None) == (self.hub is None):
            raise ValueError("expected exactly one of path and hub")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("a hub id needs a revision (a commit or tag), and a revision needs a hub id")
        if self.streaming and self.limit is None:
            raise ValueError("streaming holds its rows in memory: expected a limit")
        unknown = self.classes.keys() - {_CLASSES[name] for name in self.columns.keys() & _CLASSES.keys()}
        if unknown:
            raise ValueError(f"classes of {', '.join(sorted(unknown))}, which columns do not map")
        return self

    def identity(self) -> JSON:
        """The fields, and the digest of what every row holds, files by their content."""
        fields = self.model_dump(mode="json", exclude={"path", "files"})
        found = scan(self)
        content = digest_json([found.ids, found.fingerprints, [len(found.problems), found.class_names()]])
        return {
            "component": f"{self.kind}/{self.component_name()}",
            "revision": self.revision_of_code,
            "fields": {**fields, "content": content},
        }

    def read(self) -> DatasetExamples:
        """Open the split: read every row and decode every picture and sound once.

        Raises:
            InputError: everything that is wrong, each with its row.
            MissingExtra: the library that reads is not installed.
        """
        return DatasetExamples(self)


# --- every row once --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What the rows hold, before any file is decoded."""

    rows: Rows
    kept: tuple[int, ...]
    ids: tuple[str, ...]
    fingerprints: tuple[str, ...]
    problems: tuple[str, ...]
    classes: Mapping[str, frozenset[int | str]]
    """All classes that occur, by value."""
    files: tuple[tuple[Path, int, int], ...]
    """With size and time of change: as long as these stay, so does the rest."""

    def class_names(self) -> dict[str, list[str]]:
        """The classes as text, for digests."""
        return {name: sorted(map(str, found)) for name, found in self.classes.items()}


_SCANS: dict[str, Scan] = {}
_MAX_SCANS = 8


def scan(spec: Dataset) -> Scan:
    """Read every row and the content of every file; again only when a file has changed.

    Raises:
        InputError: the source cannot be read, a column is not there, or too many rows are wrong.
    """
    key = spec.model_dump_json()
    found = _SCANS.get(key)
    tables = () if spec.path is None else _stamps(find_files(spec.path, spec.format)[1])
    if found is None or not set(tables) <= set(found.files) or _stamps(f[0] for f in found.files) != found.files:
        while len(_SCANS) >= _MAX_SCANS:
            _SCANS.pop(next(iter(_SCANS)))
        found = _SCANS[key] = _scan(spec, tables)
    return found


def _stamps(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    found = []
    for file in files:
        status = file.stat() if file.exists() else None
        found.append((file, -1 if status is None else status.st_size, 0 if status is None else status.st_mtime_ns))
    return tuple(found)


def _scan(spec: Dataset, tables: tuple[tuple[Path, int, int], ...]) -> Scan:
    if spec.path is not None:
        rows = open_files(spec.path, spec.format, spec.files, spec.limit, spec.streaming)
    else:
        assert spec.hub is not None and spec.revision is not None
        rows = open_hub(spec.hub, spec.revision, spec.split, spec.limit, spec.streaming)
    _check_columns(spec, rows)
    named = {"id": spec.id} if spec.id is not None else {}
    without = frozenset({"id"})

    def read(index: int) -> tuple[str, str, list[Path], dict[str, Any]]:
        values = raw_values({**spec.columns, **named}, rows, index)
        files = [media.source.file for media in media_in(values) if media.source is not None]
        classes = {name: values[name] for name in _CLASSES if name in values}
        return values.get("id", ""), fingerprint_of(values, without), files, classes

    kept, problems = _each(read, range(len(rows.cells)), rows)
    _refuse(problems, len(rows.cells), spec)
    occurring: dict[str, set[int | str]] = {}
    for _, (_, _, _, classes) in kept:
        for name, value in classes.items():
            occurring.setdefault(name, set()).update(value if isinstance(value, tuple) else {value})
    fingerprints = tuple(fingerprint for _, (_, fingerprint, _, _) in kept)
    media = dict.fromkeys(file for _, (_, _, files, _) in kept for file in files)
    return Scan(
        rows=rows,
        kept=tuple(index for index, _ in kept),
        ids=_ids(spec.id, [(rows.place(index), name) for index, (name, _, _, _) in kept], fingerprints),
        fingerprints=fingerprints,
        problems=tuple(problems),
        classes={name: frozenset(found) for name, found in occurring.items()},
        files=(*tables, *_stamps(media)),
    )


def _each(work: Callable[[int], T], indices: Sequence[int], rows: Rows) -> tuple[list[tuple[int, T]], list[str]]:
    """What ``work`` gives for each row, and what is wrong with the others; in threads, since files are read."""

    def attempt(index: int) -> tuple[int, T] | str:
        try:
            return index, work(index)
        except InputError as error:
            where, text = rows.place(index), str(error)
            return text if text.startswith(where) else f"{where}: {text}"

    def block(start: int) -> list[tuple[int, T] | str]:
        return [attempt(index) for index in indices[start : start + 64]]

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        found = [item for items in pool.map(block, range(0, len(indices), 64)) for item in items]
    return [item for item in found if not isinstance(item, str)], [item for item in found if isinstance(item, str)]


def _refuse(problems: Sequence[str], total: int, spec: Dataset) -> None:
    if len(problems) > spec.max_skipped or len(problems) == total:
        shown = "\n".join(problems[:_SHOWN]) + ("\n..." if len(problems) > _SHOWN else "")
        raise InputError(
            f"{shown}\n  {len(problems)} of {total} rows cannot be used; max_skipped allows {spec.max_skipped}. "
            "Mend or remove them, or raise max_skipped."
        )


def _check_columns(spec: Dataset, rows: Rows) -> None:
    """All columns that are named and not there, at once."""
    there = list(rows.cells[0])
    missing = []
    for name, given in [*spec.columns.items(), *([("id", spec.id)] if spec.id is not None else [])]:
        for each in (given,) if isinstance(given, str) else given:
            for column in columns_of(each) if "{" in each else [each]:
                if column not in there and column.partition(".")[0] not in there:
                    missing.append(f"{rows.where}: no column {column!r} for {name}{nearest(column, there)}")
    if missing:
        raise InputError("\n".join(missing) + f"\n  columns there: {', '.join(there)}")


def _ids(column: str | None, named: Sequence[tuple[str, str]], fingerprints: Sequence[str]) -> tuple[str, ...]:
    if column is not None:
        first: dict[str, str] = {}
        for where, name in named:
            if name in first:
                raise InputError(
                    f"{where}: the id {name!r} stands already at {first[name]}\n"
                    f"  Expected a column of distinct ids: {column!r} is none. Leave `id` out to have ids made."
                )
            first[name] = where
        return tuple(first)
    seen: Counter[str] = Counter()
    ids = []
    for fingerprint in fingerprints:
        seen[fingerprint] += 1
        ids.append(fingerprint[:20] if seen[fingerprint] == 1 else f"{fingerprint[:20]}#{seen[fingerprint]}")
    return tuple(ids)


# --- classes ---------------------------------------------------------------------------------------------------------


def class_names(spec: Dataset, found: Scan) -> dict[str, tuple[str, ...]]:
    """The names of the classes by value; see :attr:`Dataset.classes`.

    Raises:
        InputError: numbers below zero, names and numbers mixed, or a class that is not among those named.
    """
    names = {}
    for value, occurring in found.classes.items():
        column = spec.columns[value]
        given = spec.classes.get(_CLASSES[value])
        if given is None and isinstance(column, str):
            given = found.rows.class_names.get(column)
        numbers = {int(item) for item in occurring if isinstance(item, int) or item.isdecimal()}
        if given is None and len(numbers) == len(occurring):
            given = tuple(map(str, range(max(numbers, default=-1) + 1)))
        elif given is None:
            given = tuple(sorted(map(str, occurring), key=lambda name: (name != "O", name)))
        names[value] = given
        for item in sorted(occurring, key=str):
            if class_number(item, given) is None:
                near = nearest(str(item), given)
                raise InputError(f"{found.rows.where}: the class {item!r} of {value} is none of {len(given)}{near}")
    return names


def class_number(item: int | str, names: Sequence[str]) -> int | None:
    """The number of a class by number or name; None where it has none."""
    if isinstance(item, str):
        return _numbered(tuple(names)).get(item)
    return item if 0 <= item < len(names) else None


@lru_cache(maxsize=16)
def _numbered(names: tuple[str, ...]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


class DatasetExamples:
    """The examples of a :class:`Dataset` split."""

    def __init__(self, spec: Dataset) -> None:
        found = scan(spec)
        self._columns, self._rows = dict(spec.columns), found.rows

        def decoded(index: int) -> list[str]:
            return check(raw_values(spec.columns, found.rows, index))

        checked, problems = _each(decoded, found.kept, found.rows)
        _refuse([*found.problems, *problems], len(found.rows.cells), spec)
        good = {index for index, _ in checked}
        kept = [place for place, index in enumerate(found.kept) if index in good]
        self._indices = [found.kept[place] for place in kept]
        self._fingerprints = [found.fingerprints[place] for place in kept]
        self._names = class_names(spec, found)
        self.ids: Sequence[str] = tuple(found.ids[place] for place in kept)
        self.columns = frozenset(self._columns)
        left_out = len(found.problems) + len(problems)
        notes = Counter(note for _, told in checked for note in told)
        self.notes: Mapping[str, int] = {
            **notes,
            **({"rows left out" if left_out else "": left_out} if left_out else {}),
        }

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        raw = raw_values(self._columns, self._rows, self._indices[index])
        values = {name: opened(value) for name, value in raw.items()}
        for name, names in self._names.items():
            found = values[name]
            several = isinstance(found, tuple)
            numbers = [class_number(item, names) for item in (found if several else (found,))]
            values[name] = tuple(sorted(numbers) if name == "labels" else numbers) if several else numbers[0]
        return Example(self.ids[index], values)

    def fingerprint(self, index: int) -> str:
        """The digest of all values of the row, files by their content."""
        return self._fingerprints[index]

    def classes(self) -> Sequence[str]:
        """The names of the classes of ``label`` or ``labels``."""
        return self._names.get("label", self._names.get("labels", ()))

    def tag_classes(self) -> Sequence[str]:
        """The names of the classes of ``tags``."""
        return self._names.get("tags", ())
