"""Raw values of examples on disk: as a package's probe examples, and handed over to the processes that are timed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress._sound import Sound
from mmcompress.component import JSON
from mmcompress.errors import InputError


def store_value(value: Any, folder: Path, stem: str) -> JSON:
    """A value as JSON; pictures, sounds and arrays become files of ``folder`` that the JSON names.

    Pictures become PNG without loss, transparency kept; a path is a picture's file and is copied.

    Raises:
        InputError: a value of a kind that is not known.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [store_value(item, folder, f"{stem}-{index}") for index, item in enumerate(value)]
    if isinstance(value, Sound):
        np.save(folder / f"{stem}.npy", value.samples, allow_pickle=False)
        return {"file": f"{stem}.npy", "rate": value.rate}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        np.save(folder / f"{stem}.npy", value, allow_pickle=False)
        return {"file": f"{stem}.npy"}
    if isinstance(value, Path):
        shutil.copyfile(value, folder / f"{stem}{value.suffix}")
        return {"file": f"{stem}{value.suffix}"}
    if hasattr(value, "save") and hasattr(value, "mode"):
        image = value if value.mode in ("RGB", "RGBA", "L") else value.convert("RGBA")
        image.save(folder / f"{stem}.png", format="PNG", compress_level=1)
        return {"file": f"{stem}.png"}
    raise InputError(
        f"{stem}: a value of type {type(value).__name__} cannot be written\n"
        "  Expected a picture, a sound, an array, texts or numbers, or a list of them."
    )


def restore_value(value: JSON, folder: Path, *, pictures: bool = False) -> Any:
    """What :func:`store_value` wrote; lists as tuples, pictures as paths, or decoded where ``pictures`` says so.

    Raises:
        InputError: a file that lies outside the folder.
    """
    if isinstance(value, list):
        return tuple(restore_value(item, folder, pictures=pictures) for item in value)
    if not isinstance(value, Mapping):
        return value
    file = folder / str(value["file"])
    if file.resolve().parent != folder.resolve():
        raise InputError(f"{folder}: {value['file']!r} lies outside the folder")
    if file.suffix == ".npy":
        array = np.load(file, allow_pickle=False)
        return Sound(array, int(value["rate"])) if "rate" in value else array
    if not pictures:
        return file
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        return image.copy()
