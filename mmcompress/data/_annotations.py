"""What published annotation files have in common: JSON beside a folder or a zip archive of pictures."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.component import JSON, Component, digest_json
from mmcompress.data import Example
from mmcompress.data._pictures import Content, Source, decode, digest_file, digest_sources, digest_text, examine, locate
from mmcompress.errors import InputError

_SHOWN = 12


@dataclass(frozen=True)
class Row:
    """An example whose picture is there, and not yet decoded."""

    where: str
    id: str
    source: Source
    values: Mapping[str, Any]
    """All values but the picture."""


def read_json(path: Path, expected: str) -> Mapping[str, Any]:
    """An object from a JSON file; ``expected`` says what of, for messages.

    Raises:
        InputError: no such file, not JSON (as a file cut short is), or no object.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file\n  Expected {expected}.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})\n  Expected {expected}; was the file cut short?") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected {expected}, got a {type(found).__name__}")
    return found


def entries(found: Mapping[str, Any], key: str, path: Path, expected: str) -> list[Mapping[str, Any]]:
    """The objects of a list in an annotation file.

    Raises:
        InputError: there is no such list, or it is empty or holds something else.
    """
    items = found.get(key)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise InputError(f"{path}: no {key!r} among {', '.join(map(repr, found))}\n  Expected {expected}.")
    return items


def field(item: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of an annotation.

    Raises:
        InputError: it is not there or of another type.
    """
    if not isinstance(item.get(key), kind) or isinstance(item.get(key), bool):
        raise InputError(f"{where}: {key!r} is {item.get(key)!r:.60}\n  Expected {key!r} as in the published files.")
    return item[key]


class Pictures:
    """The pictures of a folder or a zip archive, found by path, by name or by the number that their name ends with."""

    def __init__(self, images: Path) -> None:
        if images.is_dir():
            self._folder, self._prefix = images, ""
            names = [file.relative_to(images).as_posix() for file in images.rglob("*") if file.is_file()]
        elif images.is_file():
            self._folder, self._prefix = images.parent, f"{images.name}/"
            try:
                with zipfile.ZipFile(images) as archive:
                    names = [name for name in archive.namelist() if not name.endswith("/")]
            except zipfile.BadZipFile as error:
                raise InputError(f"{images}: not a zip archive ({error})") from None
        else:
            raise InputError(f"{images}: no such folder or archive\n  Expected where the pictures lie.")
        self.images = images
        self._names = frozenset(names)
        self._by_name: dict[str | int, list[str]] = {}
        for name in names:
            self._by_name.setdefault(name.rpartition("/")[2], []).append(name)
            number = re.search(r"(\d+)\.[A-Za-z]+$", name)
            if number is not None:
                self._by_name.setdefault(int(number[1]), []).append(name)

    @property
    def folder(self) -> Path:
        """The folder that sources lie in."""
        return self._folder

    def find(self, name: str | int, where: str) -> Source:
        """A picture by its path below the folder, by its name in any folder below, or by its number.

        Raises:
            InputError: nothing has that name, or several pictures have.
        """
        found = [str(name)] if name in self._names else self._by_name.get(name, [])
        if len(found) != 1:
            how = "not found" if not found else f"stands {len(found)} times: {found[0]}, {found[1]}"
            raise InputError(f"{where}: picture {name} {how} in {self.images}")
        return locate(self._folder, self._prefix + found[0])


def gather(rows: Sequence[Row | InputError], max_skipped: int) -> tuple[tuple[Row, ...], int]:
    """The rows that were understood, and how many were not.

    Raises:
        InputError: more than ``max_skipped`` were not, with the first of them, or no row is left.
    """
    wrong = [str(row) for row in rows if isinstance(row, InputError)]
    good = tuple(row for row in rows if isinstance(row, Row))
    if len(wrong) > max_skipped or not good:
        shown = "\n".join(wrong[:_SHOWN]) + ("\n..." if len(wrong) > _SHOWN else "")
        raise InputError(
            f"{shown}\n  {len(wrong)} of {len(rows)} cannot be used; max_skipped allows {max_skipped}. "
            "Mend or remove them, or raise max_skipped."
        )
    return good, len(wrong)


def identity(spec: Component, rows: Sequence[Row], folder: Path, tables: Mapping[str, Path]) -> JSON:
    """The identity of a data set: its fields, with the digests of its tables and of the files its pictures lie in."""
    fields = spec.model_dump(mode="json", exclude={*tables, "images"})
    found = {name: digest_file(path) for name, path in tables.items()}
    pictures = {
        "pictures": digest_sources(folder, [row.source for row in rows]),
        "names": digest_json([[row.id, row.source.member or row.source.file.name] for row in rows]),
    }
    return {
        "component": f"{spec.kind}/{spec.component_name()}",
        "revision": spec.revision_of_code,
        "fields": {**fields, **found, **pictures},
    }


class AnnotatedExamples:
    """Examples of pictures with annotations; every picture is decoded once when they are opened."""

    def __init__(self, rows: Sequence[Row], skipped: int, max_skipped: int) -> None:
        contents = _contents(tuple(dict.fromkeys(row.source for row in rows)))
        seen = [
            InputError(f"{row.where}: {content}") if isinstance(content := contents[row.source], InputError) else row
            for row in rows
        ]
        self._rows, broken = gather(seen, max_skipped - skipped)
        self._fingerprints = [_fingerprint(row, contents[row.source]) for row in self._rows]
        self.ids: Sequence[str] = tuple(row.id for row in self._rows)
        self.columns = frozenset({"image", *self._rows[0].values})
        left_out = skipped + broken
        self.notes: Mapping[str, int] = {"rows left out": left_out} if left_out else {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        return Example(row.id, {"image": decode(row.source), **row.values})

    def fingerprint(self, index: int) -> str:
        """The digest of the picture file's CRC-32 and length, and of what is said of it."""
        return self._fingerprints[index]

    def classes(self) -> Sequence[str]:
        """None: nothing here is a class."""
        return ()


def _contents(sources: tuple[Source, ...]) -> dict[Source, Content | InputError]:
    return dict(zip(sources, examine(sources), strict=True))


def _fingerprint(row: Row, content: Content | InputError) -> str:
    assert isinstance(content, Content)
    return digest_text(content.crc, content.length, digest_json({k: row.values[k] for k in sorted(row.values)}))
