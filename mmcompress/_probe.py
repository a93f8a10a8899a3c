"""Probe examples: a few inputs that travel with a package, and the teacher's answers to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.data import Example, Examples
from mmcompress.errors import InputError
from mmcompress.families import Family, Request

EXAMPLES = "examples.jsonl"


def raw_values(examples: Sequence[Example], inputs: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a request's inputs: ``text`` is the first of an example's ``texts``, others have their own names."""
    return {
        name: [example.values["texts"][0] if name == "text" else example.values[name] for example in examples]
        for name in inputs
    }


def write_probe(
    folder: Path, requests: Sequence[Request], examples: Examples, teacher: Family, teacher_folder: Path
) -> None:
    """Write examples (pictures as PNG, texts and the rest in JSON lines) and ``<request>.npy``, the teacher's answers."""
    from mmcompress.package import ask
    from mmcompress.runtimes.torch import open_model

    folder.mkdir(parents=True)
    chosen = [examples[index] for index in range(len(examples))]
    inputs = sorted({name for request in requests for name in request.inputs})
    columns = raw_values(chosen, inputs)
    with (folder / EXAMPLES).open("w", encoding="utf-8") as file:
        for index, example in enumerate(chosen):
            values = {name: _stored(columns[name][index], folder, index) for name in inputs}
            file.write(json.dumps({"id": example.id, **values}, ensure_ascii=False) + "\n")
    stored = read_probe(folder)
    session = open_model(teacher, teacher_folder, None)
    processor = teacher.processor(teacher_folder)
    for request in requests:
        answers = ask(teacher, processor, session.run, request.name, {name: stored[name] for name in request.inputs})
        np.save(folder / f"{request.name}.npy", answers, allow_pickle=False)
    session.close()


def _stored(value: Any, folder: Path, index: int) -> Any:
    """A picture becomes a file (without loss, transparency kept); anything else stays as JSON holds it."""
    if not hasattr(value, "save"):
        return value
    name = f"{index:04d}.png"
    image = value if value.mode in ("RGB", "RGBA", "L") else value.convert("RGBA")
    image.save(folder / name, format="PNG")
    return {"file": name}


def read_probe(folder: Path) -> dict[str, list[Any]]:
    """Columns of a package's probe examples; pictures as paths.

    Raises:
        InputError: the file is missing or broken, or a picture lies outside the folder.
    """
    path = folder / EXAMPLES
    if not path.is_file():
        raise InputError(f"{path}: no probe examples\n  Build the package again.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(_restored(value, folder))
    return columns


def _restored(value: Any, folder: Path) -> Any:
    if not isinstance(value, Mapping):
        return value
    file = folder / str(value["file"])
    if file.resolve().parent != folder.resolve():
        raise InputError(f"{folder / EXAMPLES}: {value['file']!r} lies outside the package")
    return file


def read_answers(folder: Path, request: str) -> NDArray[np.float32]:
    """The teacher's answers to a request."""
    answers: NDArray[np.float32] = np.load(folder / f"{request}.npy", allow_pickle=False)
    return answers


def write_expected(folder: Path, request: str, answers: NDArray[np.float32]) -> None:
    """Keep what the package itself answered when it was compiled."""
    np.save(folder / f"{request}.package.npy", answers, allow_pickle=False)


def read_expected(folder: Path, request: str) -> NDArray[np.float32] | None:
    """What the package itself answered when it was compiled; None where that was on another machine class."""
    path = folder / f"{request}.package.npy"
    if not path.is_file():
        return None
    answers: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return answers


def cosines(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """The cosine of each row of two arrays [n, d]: [n]."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    similarities: NDArray[Any] = (found * expected).sum(axis=1) / np.maximum(norms, 1e-12)
    return similarities
