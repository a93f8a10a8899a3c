"""Pictures and texts from a table: JSONL or CSV, pictures beside it in folders or zip archives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import Field, field_validator

from mmcompress.component import JSON, RecipePath, digest_json
from mmcompress.data import Dataset, Example
from mmcompress.data._pictures import (
    Content,
    Source,
    decode,
    digest_file,
    digest_sources,
    digest_text,
    examine,
    locate,
)
from mmcompress.data._tables import Record, columns_of, fill, read_table
from mmcompress.errors import InputError


class ImageText(Dataset):
    """One picture and one or more texts per row. Every picture is decoded once when the split is opened."""

    path: RecipePath
    """The table: ``.jsonl`` or ``.csv``."""
    image: str
    """The column that names the picture (``1.png``, ``images.zip/1.png``), or a template: ``images.zip/{file}``."""
    text: str | tuple[str, ...]
    """A template such as ``a picture of {name}``, or several. A column that holds a list gives alternatives."""
    label: str | None = None
    """The column with the name of the class; classes are counted in alphabetical order of the names in this table."""
    id: str | None = None
    """The column with an id per row; without it ids are made of the picture's name and content."""
    pictures: RecipePath | None = None
    """The folder that pictures are named from; without it, that of the table."""
    lower: bool = False
    """Put texts in lower case."""
    limit: int | None = Field(None, ge=1)
    """Read the first rows alone."""
    max_skipped: int = Field(0, ge=0)
    """How many pictures that cannot be decoded are left out, and counted, before that is an error."""

    @field_validator("image")
    @classmethod
    def _one_picture(cls, value: str) -> str:
        if not value:
            raise ValueError("expected the name of a column, or a template such as images.zip/{file}")
        columns_of(value)
        return value

    @field_validator("text")
    @classmethod
    def _names_a_column(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for template in [value] if isinstance(value, str) else value:
            if not columns_of(template):
                raise ValueError(
                    f"{template!r} is the same for every picture: name a column in braces, such as {{name}}"
                )
        if not value:
            raise ValueError("expected at least one template, such as {name}")
        return value

    @property
    def folder(self) -> Path:
        """Where pictures are looked for."""
        return self.path.parent if self.pictures is None else self.pictures

    def identity(self) -> JSON:
        """Fields, the table's digest, and that of every picture file or archive that its rows name."""
        fields = self.model_dump(mode="json", exclude={"path", "pictures"})
        found = {"table": "absent", "pictures": "absent"}
        if self.path.is_file():
            rows = read_rows(self)
            found = {
                "table": digest_file(self.path),
                "pictures": digest_sources(self.folder, [row.source for row in rows]),
                "names": digest_json([row.picture for row in rows]),
            }
        return {
            "component": f"{self.kind}/{self.component_name()}",
            "revision": self.revision_of_code,
            "fields": {**fields, **found},
        }

    def read(self) -> ImageTextExamples:
        """Open the split: read the table, find and decode every picture.

        Raises:
            InputError: the table, a row, a picture or too many pictures; with file and line.
        """
        return ImageTextExamples(self)


@dataclass(frozen=True)
class Row:
    """A row that was understood; its picture is there, and not yet decoded."""

    where: str
    id: str | None
    picture: str
    source: Source
    texts: tuple[str, ...]
    label: str | None


def read_rows(spec: ImageText) -> tuple[Row, ...]:
    """The rows of a table with their texts, each with the place of its picture.

    Raises:
        InputError: what is wrong with the table or a row, and where.
    """
    if not spec.path.is_file():
        read_table(spec.path)
    stat = spec.path.stat()
    return _rows(spec, (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=8)
def _rows(spec: ImageText, stamp: tuple[int, int]) -> tuple[Row, ...]:
    """As :func:`read_rows`; ``stamp`` is the table's size and time of change."""
    folder = spec.folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder\n  Expected the folder that the pictures of {spec.path} lie in.")
    templates = (spec.text,) if isinstance(spec.text, str) else spec.text
    return tuple(_row(spec, templates, folder, record) for record in read_table(spec.path, spec.limit))


def _row(spec: ImageText, templates: Sequence[str], folder: Path, record: Record) -> Row:
    names = fill(spec.image if "{" in spec.image else f"{{{spec.image}}}", record)
    if len(names) != 1:
        raise InputError(f"{record.where}: {len(names)} pictures named by {spec.image!r}\n  Expected exactly one.")
    try:
        source = locate(folder, names[0])
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from None
    texts = [text.lower() if spec.lower else text for template in templates for text in fill(template, record)]
    if not texts:
        raise InputError(f"{record.where}: no text in {', '.join(templates)}\n  Expected at least one per picture.")
    return Row(
        record.where,
        _only(spec.id, record),
        names[0],
        source,
        tuple(dict.fromkeys(texts)),
        _only(spec.label, record),
    )


def _only(column: str | None, record: Record) -> str | None:
    if column is None:
        return None
    values = fill(f"{{{column}}}", record)
    if len(values) != 1:
        raise InputError(f"{record.where}: {len(values)} values in column {column!r}\n  Expected exactly one.")
    return values[0]


class ImageTextExamples:
    """The examples of an :class:`ImageText` split. Holds names alone; archives are opened where they are read."""

    def __init__(self, spec: ImageText) -> None:
        rows = read_rows(spec)
        kept: list[Row] = []
        contents: list[Content] = []
        wrong: list[str] = []
        for row, content in zip(rows, examine([row.source for row in rows]), strict=True):
            if isinstance(content, InputError):
                wrong.append(f"{row.where}: {content}")
            else:
                kept.append(row)
                contents.append(content)
        if len(wrong) > spec.max_skipped:
            raise InputError(
                f"{wrong[0]}\n  {len(wrong)} of {len(rows)} pictures cannot be decoded; max_skipped allows "
                f"{spec.max_skipped}. Mend or remove them, or raise max_skipped."
            )
        if not kept:
            raise InputError(f"{wrong[0]}\n  None of the {len(rows)} pictures of {spec.path} can be decoded.")
        self._rows = kept
        self._fingerprints = [
            digest_text(content.crc, content.length, *row.texts) for row, content in zip(kept, contents, strict=True)
        ]
        self._classes = tuple(sorted({row.label for row in kept if row.label is not None}))
        self._labels = {name: number for number, name in enumerate(self._classes)}
        self.ids: Sequence[str] = _ids(kept, self._fingerprints, spec.id)
        self.columns = frozenset({"image", "texts", "label"} if self._classes else {"image", "texts"})
        self.notes: Mapping[str, int] = {"pictures that cannot be decoded": len(wrong)} if wrong else {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        values = {"image": decode(row.source), "texts": row.texts}
        if row.label is not None:
            values["label"] = self._labels[row.label]
        return Example(self.ids[index], values)

    def fingerprint(self, index: int) -> str:
        """The digest of the picture file's CRC-32 and length, and of the texts."""
        return self._fingerprints[index]

    def classes(self) -> Sequence[str]:
        """The names of the label column, in alphabetical order."""
        return self._classes


def _ids(rows: Sequence[Row], fingerprints: Sequence[str], column: str | None) -> tuple[str, ...]:
    if column is not None:
        first: dict[str, str] = {}
        for row in rows:
            name = row.id or ""
            if name in first:
                raise InputError(
                    f"{row.where}: the id {name!r} stands already at {first[name]}\n"
                    f"  Expected a column of distinct ids: {column!r} is none. Leave `id` out to have ids made."
                )
            first[name] = row.where
        return tuple(first)
    # By content as well as by name: other folders hold pictures of the same name.
    seen: Counter[str] = Counter()
    ids = []
    for row, fingerprint in zip(rows, fingerprints, strict=True):
        name = f"{row.picture}@{fingerprint[:12]}"
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(ids)
