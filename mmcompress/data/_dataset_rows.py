"""Rows of tables, shards, folders and hub repositories, read with the library ``datasets``.

The library is kept from what it would do beside reading: it decodes no picture and no sound, unpickles nothing, counts no
downloads, and what it writes goes to a temporary folder (for files) or into our own cache (for what the hub sent).
"""

from __future__ import annotations

import csv
import gc
import glob
import os
import shutil
import tarfile
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mmcompress.data._tables import read_table
from mmcompress.errors import InputError, require

Format = Literal["csv", "json", "parquet", "webdataset", "imagefolder", "audiofolder"]
SUFFIXES: Mapping[str, Format] = {
    **{".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"},
    **{".parquet": "parquet", ".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset"},
}
_MEDIA = {
    "imagefolder": frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")),
    "audiofolder": frozenset((".wav", ".flac", ".ogg", ".mp3", ".opus")),
}
_MODULES = frozenset(("csv", "json", "parquet", "webdataset", "imagefolder", "audiofolder", "arrow", "text"))
"""Readers of the library that are let in; others unpickle (pandas) or read what no value of ours is."""


@dataclass(frozen=True)
class Rows:
    """Rows of cells, of which pictures and sounds are ``{"bytes": ..., "path": ...}``."""

    cells: Sequence[Mapping[str, Any]]
    where: str
    """Where they come from, for messages."""
    folder: Path | None
    """That names of files start from; None for the hub."""
    roots: tuple[Path, ...]
    """Folders that paths which the library gives may lie in."""
    class_names: Mapping[str, tuple[str, ...]]
    """Names of the classes of columns that the source names itself."""

    def place(self, index: int) -> str:
        """Where row ``index`` (from 0) stands, for messages."""
        return f"{self.where}: row {index + 1}"


# --- which files -----------------------------------------------------------------------------------------------------


def find_files(path: Path, given: Format | None) -> tuple[Format, list[Path]]:
    """The files that a path names (a file, a pattern, or a folder) in the order of their names, and their format.

    Raises:
        InputError: nothing is there, the format does not show, or several formats are mixed.
    """
    if given in _MEDIA or (given is None and path.is_dir() and not _tables_of(path)):
        return _media_folder(path, given)
    files = _tables_of(path) if path.is_dir() else [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(f"{path}: no such file\n  Expected a file, a pattern such as shards/*.tar, or a folder.")
    formats = {given or _format_of(file) for file in files}
    if len(formats) > 1:
        raise InputError(f"{path}: files of {' and '.join(sorted(formats))}\n  Expected one format: name a pattern.")
    return formats.pop(), files


def _format_of(file: Path) -> Format:
    for suffix, name in SUFFIXES.items():
        if file.name.lower().endswith(suffix):
            return name
    known = ", ".join(SUFFIXES)
    raise InputError(f"{file}: a {file.suffix or 'nameless kind of'} file\n  Expected {known}, or `format` named.")


def _tables_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.name.lower().endswith(tuple(SUFFIXES)))
    # A folder of pictures or sounds has its table beside them.
    return [file for file in found if not file.name.startswith("metadata.")]


def _media_folder(path: Path, given: Format | None) -> tuple[Format, list[Path]]:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder\n  Expected a folder of pictures or of sounds.")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    formats: list[Format] = [given] if given else ["imagefolder", "audiofolder"]
    found = [name for name in formats if any(file.suffix.lower() in _MEDIA[name] for file in files)]
    if len(found) != 1:
        what = "pictures and sounds, and no table" if found else "neither tables, shards, pictures nor sounds"
        raise InputError(f"{path}: holds {what}\n  Expected one of them: name `format`, or a pattern such as *.tar.")
    return found[0], files


# --- reading ---------------------------------------------------------------------------------------------------------


def open_files(path: Path, given: Format | None, folder: Path | None, limit: int | None, streaming: bool) -> Rows:
    """The rows of files on disk.

    Raises:
        InputError: nothing there, a damaged file or one cut short, no rows.
    """
    format_, files = find_files(path, given)
    for file in files:
        _check_whole(format_, file, limit)
    arguments: dict[str, Any] = {}
    if format_ in _MEDIA:
        arguments["data_dir"] = str(path.resolve())
    else:
        arguments["data_files"] = {"train": [glob.escape(str(file.resolve())) for file in files]}
    if format_ == "csv":
        arguments |= _csv_arguments(files)
    base = folder or (path if path.is_dir() else files[0].parent)
    roots = (path.resolve(),) if path.is_dir() else (base.resolve(),)
    where = str(files[0] if len(files) == 1 else path)
    return _load(format_, arguments, where, base, roots, "train", limit, streaming)


def open_hub(name: str, revision: str, split: str, limit: int | None, streaming: bool) -> Rows:
    """The rows of a split of a dataset repository.

    Raises:
        InputError: not there or not reachable, or its files are in a format that is not let in.
    """
    from mmcompress.store import default_store

    cache = default_store() / "cache" / "datasets"
    arguments = {"revision": revision, "cache_dir": str(cache)}
    where = f"{name}@{revision}, split {split}"
    return _load(name, arguments, where, None, (cache.resolve(),), split, limit, streaming)


def _check_whole(format_: Format, file: Path, limit: int | None) -> None:
    """What the library passes over in silence: short rows of a CSV file, a shard that ends between two members."""
    if format_ == "csv":
        read_table(file, limit)
    if format_ == "webdataset" and file.name.lower().endswith(".tar"):
        try:
            with tarfile.open(file, "r:") as archive:
                archive.getmembers()
                end = archive.offset
        except tarfile.TarError as error:
            raise InputError(f"{file}: not a whole tar archive ({error})") from None
        with file.open("rb") as opened:
            opened.seek(end)
            if opened.read(512) != bytes(512):
                raise InputError(
                    f"{file}: cut short: a tar archive ends with empty blocks\n  Copy or download the shard again."
                )


def _csv_arguments(files: Sequence[Path]) -> dict[str, Any]:
    """Every cell as text, as it stands: the library would guess types by what it happens to find."""
    datasets = require("datasets", "data")
    separator = "\t" if files[0].suffix.lower() == ".tsv" else ","
    headers = []
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            headers.append(next(csv.reader(opened, delimiter=separator)))
    for file, header in zip(files, headers, strict=True):
        if header != headers[0]:
            raise InputError(f"{file}: has other columns than {files[0]}\n  Expected {', '.join(headers[0])}.")
    features = datasets.Features({name: datasets.Value("string") for name in headers[0]})
    return {"features": features, "na_filter": False, "sep": separator, "encoding": "utf-8-sig"}


def _load(
    name: str,
    arguments: dict[str, Any],
    where: str,
    folder: Path | None,
    roots: tuple[Path, ...],
    split: str,
    limit: int | None,
    streaming: bool,
) -> Rows:
    datasets = require("datasets", "data")
    scratch = None if "cache_dir" in arguments else Path(tempfile.mkdtemp(prefix="mmcompress-data-"))
    kept = False
    wrong = (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, KeyError, EOFError, tarfile.TarError)
    try:
        with _harmless(datasets, unfinished=streaming or name in _MEDIA):
            builder = datasets.load_dataset_builder(name, **{"cache_dir": str(scratch), **arguments})
            _check_reader(builder, where)
            if streaming:
                opened = _undecoded(datasets, builder.as_streaming_dataset(split=split))
                cells: Sequence[Mapping[str, Any]] = [_held(row) for row in islice(opened, limit)]
            else:
                builder.download_and_prepare()
                opened = _undecoded(datasets, builder.as_dataset(split=split))
                cells = _Table(opened.select(range(min(limit or len(opened), len(opened)))), scratch)
                kept = True
    except wrong as error:
        raise InputError(f"{where}: cannot be read: {_reason(error)}") from None
    finally:
        if scratch is not None and not kept:
            shutil.rmtree(scratch, ignore_errors=True)
    if not cells:
        raise InputError(f"{where}: no examples in it\n  Expected one example per row.")
    return Rows(cells, where, folder, roots, _class_names(opened.features or {}))


def _reason(error: BaseException) -> str:
    """The innermost cause: the library wraps what happened in `An error occurred`."""
    while error.__cause__ is not None:
        error = error.__cause__
    from huggingface_hub import constants

    text = " ".join(str(error).split())[:300]
    offline = isinstance(error, ConnectionError) and constants.HF_HUB_OFFLINE
    told = "\n  HF_HUB_OFFLINE is set: unset it, or read files from disk as `path`." if offline else ""
    return f"{type(error).__name__}: {text}{told}"


@contextmanager
def _harmless(datasets: ModuleType, unfinished: bool) -> Iterator[None]:
    """Reading without progress bars, counted downloads, torch's unpickler and torchcodec; all as it was afterwards."""
    from datasets.packaged_modules.webdataset import webdataset

    decoders, bars = dict(webdataset.DECODERS), datasets.are_progress_bars_disabled()
    counted, encode = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, datasets.Audio.encode_example
    # The library's own asks for torchcodec, even where it only passes bytes on.
    datasets.Audio.encode_example = _passed_on
    webdataset.DECODERS["pth"] = _refuse
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    try:
        # Its readers leave files open that they have not read to the end, and tables beside folders.
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            yield
            if unfinished:
                gc.collect()
    finally:
        datasets.Audio.encode_example = encode
        webdataset.DECODERS.update(decoders)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        if not bars:
            datasets.enable_progress_bars()


def _refuse(data: bytes) -> Any:
    raise ValueError("a member ends with .pth, which is a pickle and is not opened; store arrays as .npy")


def _passed_on(feature: Any, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return {"bytes": None, "path": value} if isinstance(value, str) else {"bytes": value, "path": None}


def _check_reader(builder: Any, where: str) -> None:
    module = type(builder).__module__
    if not any(module == f"datasets.packaged_modules.{name}.{name}" for name in _MODULES):
        raise InputError(
            f"{where}: would be read by {module}\n  Expected one of {', '.join(sorted(_MODULES))}; code of others is "
            "not run, and pickled tables are not opened."
        )


def _undecoded(datasets: ModuleType, opened: Any) -> Any:
    for name, feature in (opened.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
            opened = opened.cast_column(name, type(feature)(decode=False))
    return opened


def _held(row: Mapping[str, Any]) -> dict[str, Any]:
    """A streamed row with the bytes of what lies on a server."""
    from datasets.utils.file_utils import xopen

    found = dict(row)
    for name, cell in row.items():
        if isinstance(cell, dict) and cell.get("bytes", b"") is None and "://" in str(cell.get("path")):
            with xopen(cell["path"], "rb") as file:
                found[name] = {"path": cell["path"], "bytes": file.read()}
    return found


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, feature in features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[name] = tuple(names)
    return found


class _Table(Sequence[Mapping[str, Any]]):
    """Rows on disk; the folder that holds them goes when the process that made them lets them go."""

    def __init__(self, table: Any, scratch: Path | None) -> None:
        self._table = table
        if scratch is not None:
            weakref.finalize(self, _remove, scratch, os.getpid())

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._table[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Table, (self._table, None)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
