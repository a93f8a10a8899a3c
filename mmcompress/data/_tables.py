"""Tables of examples: JSONL and CSV rows with their line, and texts made from columns by templates."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from string import Formatter
from typing import Any

from mmcompress.component import nearest
from mmcompress.errors import InputError


@dataclass(frozen=True)
class Record:
    """One row of a table."""

    where: str
    """``file:line``, for messages."""
    cells: Mapping[str, Any]

    def cell(self, column: str) -> Any:
        """The value of a column.

        Raises:
            InputError: the row has no such column, with the nearest name.
        """
        if column not in self.cells:
            known = ", ".join(self.cells) or "none"
            raise InputError(
                f"{self.where}: no column {column!r}{nearest(column, list(self.cells))}\n  columns there: {known}"
            )
        return self.cells[column]


def read_table(path: Path, limit: int | None = None) -> list[Record]:
    """The rows of a JSONL (``.jsonl``, ``.ndjson``) or CSV (``.csv``, ``.tsv``) file, at most ``limit``.

    Raises:
        InputError: no such file, another kind of file, not UTF-8, a bad line (with its number), or no rows.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv}
    if not path.exists():
        raise InputError(f"{path}: no such file\n  Expected a JSONL or CSV table with one example per row.")
    if path.is_dir() or path.suffix.lower() not in readers:
        what = "a folder" if path.is_dir() else f"a {path.suffix or 'nameless kind of'} file"
        raise InputError(f"{path}: {what}\n  Expected a table: {', '.join(readers)}")
    try:
        rows = list(islice(readers[path.suffix.lower()](path), limit))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not rows:
        raise InputError(f"{path}: no examples in it\n  Expected one example per row.")
    return rows


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(
                    f"{path}:{number}: not valid JSON ({error})\n  Expected one object per line."
                ) from None
            if not isinstance(cells, dict):
                raise InputError(f'{path}:{number}: expected an object such as {{"image": "1.png"}}, got {line[:40]!r}')
            yield Record(f"{path}:{number}", cells)


def _csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"{path}:1: a column name stands twice in {', '.join(header)}")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(f"{path}:{reader.line_num}: expected {len(header)} cells, got {len(row)}")
                yield Record(f"{path}:{reader.line_num}", dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None


# --- templates -------------------------------------------------------------------------------------------------------


def columns_of(template: str) -> list[str]:
    """The columns that a template names in braces.

    Raises:
        ValueError: unbalanced braces, an empty name, or anything but a column's name in braces.
    """
    columns = []
    for _, column, specification, conversion in Formatter().parse(template):
        if column is None:
            continue
        if not column or specification or conversion or any(mark in column for mark in ".[]"):
            raise ValueError(f"{template!r}: expected the name of a column in braces, such as {{name}}")
        columns.append(column)
    return columns


def fill(template: str, record: Record) -> list[str]:
    """The template with a row's values: one text, or one for each item of a column that holds a list.

    Empty values and white space alone give no text.

    Raises:
        InputError: a column that is not there, or holds neither text nor number nor a list of them.
    """
    columns = list(dict.fromkeys(columns_of(template)))
    choices = [_strings(record, column) for column in columns]
    pieces = list(Formatter().parse(template))
    texts = []
    for chosen in product(*choices):
        values = dict(zip(columns, chosen, strict=True))
        texts.append("".join(literal + (values[name] if name is not None else "") for literal, name, _, _ in pieces))
    return texts


def _strings(record: Record, column: str) -> list[str]:
    value = record.cell(column)
    items: Sequence[Any] = value if isinstance(value, list) else [value]
    for item in items:
        if item is not None and (isinstance(item, bool) or not isinstance(item, (str, int, float))):
            raise InputError(
                f"{record.where}: column {column!r} holds {item!r:.60}\n  Expected text, or a list of texts."
            )
    return [stripped for item in items if item is not None and (stripped := str(item).strip())]
