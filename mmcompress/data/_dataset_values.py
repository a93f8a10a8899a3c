"""From cells of a row to values: what each name of ours takes from columns, and what is wrong with it."""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._sound import Sound, read_sound
from mmcompress.component import digest_json, nearest
from mmcompress.data._dataset_rows import Rows
from mmcompress.data._pictures import Source, decode_bytes, header, locate, read_bytes
from mmcompress.data._tables import Record, fill
from mmcompress.errors import InputError

SILENT = 1e-4
"""The largest sample of a sound that counts as silent: 80 dB below full scale."""
Columns = str | tuple[str, ...]
"""A column, a template with columns in braces, or several of them."""


@dataclass(frozen=True)
class Media:
    """A picture's or a sound's file: its bytes, or where they lie."""

    name: str
    held: bytes | None
    source: Source | None
    picture: bool

    def read(self) -> bytes:
        """The bytes.

        Raises:
            InputError: they cannot be read.
        """
        if self.held is not None:
            return self.held
        assert self.source is not None
        return read_bytes(self.source)

    def open(self) -> Any:
        """The picture or the sound.

        Raises:
            InputError: it cannot be decoded.
        """
        data = self.read()
        return decode_bytes(data, self.name) if self.picture else read_sound(data, self.name)


def raw_values(columns: Mapping[str, Columns], rows: Rows, index: int) -> dict[str, Any]:
    """The values of a row; pictures and sounds are :class:`Media`, classes are as they stand in the row.

    Raises:
        InputError: a column or a file that is not there, a value of the wrong kind, nothing where something must be.
    """
    record = Record(rows.place(index), rows.cells[index])
    return {name: _READ.get(name, _one_text)(name, record, given, rows) for name, given in columns.items()}


def cells_of(record: Record, given: Columns) -> list[Any]:
    """What the columns hold, lists opened: text where a template says so, as it stands otherwise; without None."""
    found: list[Any] = []
    for each in (given,) if isinstance(given, str) else given:
        if "{" in each:
            found += fill(each, record)
            continue
        value = _cell(record, each)
        found += value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    return [item for item in found if item is not None]


def _cell(record: Record, column: str) -> Any:
    """A column; ``json.caption`` is a part of one, also of each item where ``answers`` holds a list."""
    first, *rest = [column] if column in record.cells else column.split(".")
    value = record.cell(first)
    for part in rest:
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, Mapping) or part not in item:
                known = list(item) if isinstance(item, Mapping) else []
                raise InputError(f"{record.where}: no {part!r} in column {first!r}{nearest(part, known)}")
        parts = [item[part] for item in items]
        value = parts if isinstance(value, list) else parts[0]
    return value


def _nothing(name: str, record: Record, given: Columns, expected: str) -> InputError:
    shown = given if isinstance(given, str) else ", ".join(given)
    return InputError(f"{record.where}: no {name} in {shown!r}\n  Expected {expected}.")


# --- texts -----------------------------------------------------------------------------------------------------------


def _strings(record: Record, given: Columns) -> list[str]:
    found = []
    for item in cells_of(record, given):
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise InputError(f"{record.where}: {given!r} holds {item!r:.60}\n  Expected text, or a list of texts.")
        found.append(str(item).strip())
    return [text for text in found if text]


def _texts(name: str, record: Record, given: Columns, rows: Rows) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_strings(record, given)))
    if not found:
        raise _nothing("text", record, given, "at least one")
    return found


def _answers(name: str, record: Record, given: Columns, rows: Rows) -> tuple[str, ...]:
    found = tuple(_strings(record, given))
    if not found:
        raise _nothing("answer", record, given, "at least one: a question without an answer teaches nothing")
    return found


def _one_text(name: str, record: Record, given: Columns, rows: Rows) -> str:
    found = _strings(record, given)
    if len(found) != 1:
        raise _nothing(name, record, given, f"exactly one, got {len(found)}")
    return found[0]


def _words(name: str, record: Record, given: Columns, rows: Rows) -> tuple[str, ...]:
    found = tuple(map(str, cells_of(record, given)))
    if not found or not all(found):
        raise _nothing("word", record, given, "a list of words, none of them empty")
    return found


# --- classes and numbers ---------------------------------------------------------------------------------------------


def _class(name: str, record: Record, given: Columns, rows: Rows) -> int | str:
    found = _classes(name, record, given, rows)
    if len(found) != 1:
        raise _nothing(name, record, given, f"exactly one class, got {len(found)}")
    return found[0]


def _classes(name: str, record: Record, given: Columns, rows: Rows) -> tuple[int | str, ...]:
    found: list[int | str] = []
    for item in cells_of(record, given):
        if not isinstance(item, (str, int, np.integer)):
            raise InputError(f"{record.where}: {given!r} holds {item!r:.60}\n  Expected the number or name of a class.")
        if isinstance(item, str) or isinstance(item, bool):
            found += [str(item).strip()] if str(item).strip() else []
        else:
            found.append(int(item))
    return tuple(found)


def _numbers(name: str, record: Record, given: Columns) -> list[float]:
    found = []
    for item in cells_of(record, given):
        try:
            found.append(float(item))
        except (TypeError, ValueError):
            raise InputError(f"{record.where}: {given!r} holds {item!r:.60}\n  Expected a number.") from None
        if not math.isfinite(found[-1]):
            raise InputError(f"{record.where}: {given!r} holds {item!r}\n  Expected a finite number for {name}.")
    return found


def _number(name: str, record: Record, given: Columns, rows: Rows) -> float:
    found = _numbers(name, record, given)
    if len(found) != 1:
        raise _nothing(name, record, given, f"exactly one number, got {len(found)}")
    return found[0]


def _table(name: str, record: Record, given: Columns, rows: Rows) -> NDArray[np.float32]:
    each = (given,) if isinstance(given, str) else given
    found = [_numbers(name, record, column) for column in each]
    for column, numbers in zip(each, found, strict=True):
        if len(each) > 1 and len(numbers) != 1:
            raise _nothing("number", record, column, "one in each column of a table")
    return np.asarray([number for numbers in found for number in numbers], dtype=np.float32)


def _array(dimensions: int) -> Callable[[str, Record, Columns, Rows], NDArray[np.float32]]:
    def read(name: str, record: Record, given: Columns, rows: Rows) -> NDArray[np.float32]:
        cells: Any = cells_of(record, given)
        try:
            if len(cells) == 1 and isinstance(cells[0], (str, dict, bytes)):
                data = media_of(cells[0], record, rows, "array").read()
                cells = np.load(BytesIO(data), allow_pickle=False)
            array = np.asarray(cells, dtype=np.float32)
        except (TypeError, ValueError, EOFError) as error:
            raise InputError(f"{record.where}: {given!r} holds no {name}: {error}") from None
        if dimensions == 2 and array.ndim == 1:
            array = array[:, None]
        if array.ndim != dimensions or not array.size or not np.isfinite(array).all():
            shape = "[t, c]" if dimensions == 2 else "[d]"
            raise InputError(f"{record.where}: {given!r} holds an array {array.shape}\n  Expected finite {shape}.")
        return array

    return read


# --- pictures and sounds ---------------------------------------------------------------------------------------------


def media_of(cell: Any, record: Record, rows: Rows, what: str) -> Media:
    """The file that a cell holds or names.

    Raises:
        InputError: it is not there, or lies outside the folder.
    """
    picture = what == "picture"
    if isinstance(cell, (bytes, bytearray)):
        return Media(f"{record.where}: {what}", bytes(cell), None, picture)
    if isinstance(cell, Mapping) and cell.get("bytes") is not None:
        name = cell.get("path") or what
        return Media(f"{record.where}: {Path(str(name)).name}", bytes(cell["bytes"]), None, picture)
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    if not isinstance(name, str) or not name:
        raise InputError(f"{record.where}: {cell!r:.60} is no {what}\n  Expected its file's name, or its bytes.")
    path = Path(name)
    if isinstance(cell, Mapping) and path.is_absolute():
        if not any(path.resolve().is_relative_to(root) for root in rows.roots):
            raise InputError(f"{record.where}: {name} lies outside the folder of the data")
        if not path.is_file():
            raise InputError(f"{record.where}: {what} not found: {name}")
        return Media(name, None, Source(path), picture)
    if rows.folder is None:
        raise InputError(
            f"{record.where}: {name!r} is the name of a file, and the hub gave no file\n"
            "  Expected a column that holds the file itself; download the repository and name its folder as `path`."
        )
    try:
        # A table beside its folder writes `../sounds/1.wav`, which with `files` named may lie inside.
        plain = posixpath.normpath(name) if "/../" in name else name
        return Media(name, None, locate(rows.folder, plain, what), picture)
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from None


def _media(what: str) -> Callable[[str, Record, Columns, Rows], Media]:
    def read(name: str, record: Record, given: Columns, rows: Rows) -> Media:
        found = [cell for cell in cells_of(record, given) if cell != ""]
        if len(found) != 1:
            raise _nothing(what, record, given, f"exactly one, got {len(found)}")
        return media_of(found[0], record, rows, what)

    return read


def _frames(name: str, record: Record, given: Columns, rows: Rows) -> tuple[Media, ...]:
    found = tuple(media_of(cell, record, rows, "picture") for cell in cells_of(record, given) if cell != "")
    if not found:
        raise _nothing("picture", record, given, "the pictures of a film")
    return found


_READ: dict[str, Callable[[str, Record, Columns, Rows], Any]] = {
    **{"image": _media("picture"), "image2": _media("picture"), "audio": _media("sound"), "frames": _frames},
    **{"texts": _texts, "answers": _answers, "words": _words},
    **{"label": _class, "labels": _classes, "tags": _classes},
    **{"number": _number, "table": _table, "series": _array(2), "features": _array(1)},
}


# --- checking and opening --------------------------------------------------------------------------------------------


def media_in(values: Mapping[str, Any]) -> list[Media]:
    """Every file of a row."""
    found: list[Media] = []
    for value in values.values():
        found += [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Media)]
    return found


def fingerprint_of(values: Mapping[str, Any], without: frozenset[str]) -> str:
    """The SHA-256 of a row's values: files by their content, whatever their names.

    Raises:
        InputError: a file cannot be read.
    """
    return digest_json({name: _digest(value) for name, value in values.items() if name not in without})


def _digest(value: Any) -> Any:
    if isinstance(value, Media):
        return hashlib.sha256(value.read()).hexdigest()
    if isinstance(value, np.ndarray):
        return [list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    return [_digest(item) for item in value] if isinstance(value, tuple) else value


def check(values: Mapping[str, Any]) -> list[str]:
    """Decode every file of a row once: what is worth telling of it.

    Raises:
        InputError: what cannot be decoded, an empty sound, pictures of a film that differ in size, words without tags.
    """
    notes: list[str] = []
    for media in media_in(values):
        data = media.read()
        if media.picture:
            decode_bytes(data, media.name, quick=True)
            width, height, mode = header(data)
            notes += ["pictures of one pixel's width or height"] if min(width, height) == 1 else []
            notes += ["pictures in CMYK, converted to RGB"] if mode == "CMYK" else []
            notes += ["pictures with transparency"] if mode in ("RGBA", "LA", "PA") else []
        else:
            sound: Sound = read_sound(data, media.name)
            notes += ["silent sounds"] if float(np.abs(sound.samples).max()) <= SILENT else []
    films = [value for value in values.values() if isinstance(value, tuple) and value and isinstance(value[0], Media)]
    for film in films:
        sizes = {header(media.read())[:2] for media in film}
        if len(sizes) > 1:
            raise InputError(f"{film[0].name}: a film of pictures of several sizes\n  Expected one size.")
    if "tags" in values and len(values["tags"]) != len(values.get("words", values["tags"])):
        raise InputError(f"{len(values['words'])} words and {len(values['tags'])} tags\n  Expected a tag per word.")
    return list(dict.fromkeys(notes))


def opened(value: Any) -> Any:
    """A value with its files decoded."""
    if isinstance(value, Media):
        return value.open()
    if isinstance(value, tuple):
        return tuple(opened(item) for item in value)
    return value
