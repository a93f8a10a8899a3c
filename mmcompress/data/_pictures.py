"""Pictures that a table names: files in a folder or members of a zip in it, and never anything outside that folder."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mmcompress.component import digest_json, digest_path
from mmcompress.errors import InputError, require

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 80_000_000
"""Largest picture that is decoded; below the size from which Pillow warns."""
MAX_BYTES = 100_000_000
"""Largest picture file, unpacked."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow's other readers are left out: some start programs (PostScript), all are seldom tested."""

_OPENED = threading.local()


@dataclass(frozen=True)
class Source:
    """Where the bytes of a picture lie."""

    file: Path
    """The picture's file, or the archive that holds it."""
    member: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.file) if self.member is None else f"{self.file}/{self.member}"


@dataclass(frozen=True)
class Content:
    """What tells pictures apart: CRC-32 and length of the file as it was stored."""

    crc: int
    length: int


def locate(folder: Path, name: str, what: str = "picture") -> Source:
    """The file ``name`` below a folder: ``a/b.png``, or ``archive.zip/b.png`` for a member.

    Raises:
        InputError: the name leads out of the folder, or nothing is there.
    """
    parts = name.split("/")
    unsafe = not name or "\\" in name or "\0" in name or ":" in parts[0] or name.startswith("/") or ".." in parts
    if unsafe:
        raise InputError(f"{name!r} is no path below {folder}\n  Expected such as images/1.png or images.zip/1.png")
    path = PurePosixPath(name)
    for depth, part in enumerate(path.parts, 1):
        file = folder.joinpath(*path.parts[:depth])
        if part.lower().endswith(".zip") and depth < len(path.parts) and file.is_file():
            _check_archive(folder, file)
            return _member(file, "/".join(path.parts[depth:]), what)
    file = folder / path
    if not file.is_file():
        raise InputError(f"{what} not found: {file}")
    _check_inside(folder, file, name)
    return Source(file)


def _check_inside(folder: Path, file: Path, name: str) -> None:
    if not file.resolve().is_relative_to(_resolved(folder)):
        raise InputError(f"{name!r} leads out of {folder} by a link\n  Name the folder that really holds it.")


@lru_cache(maxsize=256)
def _check_archive(folder: Path, file: Path) -> None:
    _check_inside(folder, file, file.relative_to(folder).as_posix())


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _member(archive: Path, member: str, what: str) -> Source:
    names = _archive(archive).NameToInfo
    if member not in names:
        raise InputError(f"{what} not found: no member {member!r} among the {len(names)} of {archive}")
    return Source(archive, member)


def _archive(file: Path) -> zipfile.ZipFile:
    """The opened archive: one per thread and process, since the position in a file is shared by all who hold it."""
    if getattr(_OPENED, "process", None) != os.getpid():
        _OPENED.process, _OPENED.archives = os.getpid(), {}
    archives: dict[tuple[Path, int, int], zipfile.ZipFile] = _OPENED.archives
    key = (file, *_stamp(file))
    if key not in archives:
        try:
            archives[key] = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise InputError(f"{file}: not a zip archive ({error})") from None
    return archives[key]


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def read_bytes(source: Source) -> bytes:
    """The bytes of a picture's file.

    Raises:
        InputError: not readable, larger than :data:`MAX_BYTES`, damaged or encrypted in its archive.
    """
    try:
        return _read_bytes(source)
    except OSError as error:
        raise InputError(f"{source.name}: cannot be read ({error.strerror or error})") from None


def _read_bytes(source: Source) -> bytes:
    archive = None if source.member is None else _archive(source.file)
    info = None if archive is None else archive.getinfo(str(source.member))
    length = source.file.stat().st_size if info is None else info.file_size
    if length > MAX_BYTES:
        raise InputError(f"{source.name}: {length:,} bytes; at most {MAX_BYTES:,} are read")
    if archive is None or info is None:
        return source.file.read_bytes()
    try:
        with archive.open(info) as file:
            # The size in the directory may lie: never unpack more than the limit.
            return file.read(MAX_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{source.name}: cannot be unpacked ({error})") from None


def decode(source: Source, *, quick: bool = False) -> Image:
    """A picture in RGB, or RGBA where it has transparency.

    Args:
        source: Where it lies.
        quick: Decode JPEG at an eighth of its size, to see whether it can be decoded.

    Raises:
        InputError: naming the file: not a picture of :data:`FORMATS`, damaged, too large, more than 8 bits per channel.
    """
    return decode_bytes(read_bytes(source), source.name, quick=quick)


def decode_bytes(data: bytes, name: str, *, quick: bool = False) -> Image:
    """As :func:`decode`, of a file's bytes; ``name`` is for messages."""
    require("PIL", "cpu")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
            if image.mode[0] in "IF":
                raise InputError(f"{name}: more than 8 bits per channel ({image.mode}); convert it to 8 bits")
            if quick:
                image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
            transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
            return image.convert("RGBA" if transparent else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name}: more than {MAX_PIXELS:,} pixels; scale the picture down") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = "no picture that can be read" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{name}: cannot be decoded ({reason})\n  Expected one of {', '.join(FORMATS)}.") from None


def header(data: bytes) -> tuple[int, int, str]:
    """Width, height and mode of a picture that can be decoded, without decoding it."""
    from PIL import Image

    with Image.open(BytesIO(data), formats=FORMATS) as image:
        return image.width, image.height, image.mode


def examine(sources: Sequence[Source]) -> list[Content | InputError]:
    """Read and decode every picture once, in threads: what each one is, or what is wrong with it."""
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(_examine, sources, chunksize=64))


def _examine(source: Source) -> Content | InputError:
    try:
        return _examined(source, _stamp(source.file))
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{source.name}: cannot be read ({error.strerror or error})")


@lru_cache(maxsize=1 << 20)
def _examined(source: Source, stamp: tuple[int, int]) -> Content:
    data = read_bytes(source)
    decode_bytes(data, source.name, quick=True)
    return Content(zlib.crc32(data), len(data))


def digest_sources(folder: Path, sources: Iterable[Source]) -> str:
    """The digest of the files (archives whole) that pictures lie in, with their names below the folder."""
    files = {source.file for source in sources}
    return digest_json({file.relative_to(folder).as_posix(): digest_file(file) for file in files})


def digest_file(file: Path) -> str:
    """The SHA-256 of a file, computed again only when its size or time of change is another."""
    return _digest(file, _stamp(file))


@lru_cache(maxsize=1 << 20)
def _digest(file: Path, stamp: tuple[int, int]) -> str:
    return digest_path(file)


def digest_text(*parts: str | int) -> str:
    """A SHA-256 over several values."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
