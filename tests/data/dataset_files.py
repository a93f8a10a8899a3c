"""Pictures, sounds and tables for the tests of the data set over `datasets`."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmcompress.data.dataset import Dataset
from mmcompress.errors import InputError


def png(red: int, size: tuple[int, int] = (6, 4), mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (red,) + (0,) * (len(mode) - 1)).save(buffer, kind)
    return buffer.getvalue()


def wav(value: float, count: int = 100) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(count, value), 8000, format="WAV")
    return buffer.getvalue()


def write_files(folder: Path) -> Path:
    """Three pictures in a folder and a zip archive, three sounds."""
    (folder / "sounds").mkdir()
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for n in range(3):
            archive.writestr(f"{n}.png", png(n * 50))
            (folder / f"{n}.png").write_bytes(png(n * 50))
            (folder / f"sounds/{n}.wav").write_bytes(wav(n / 4))
    return folder


def jsonl(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    return path


def values(columns: dict[str, Any], path: Path, index: int = 0, **fields: Any) -> dict[str, Any]:
    return dict(Dataset(path=path, columns=columns, **fields).read()[index].values)


def message(build: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        build()
    return str(caught.value)
