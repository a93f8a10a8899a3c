"""Probe examples: a few inputs that travel with a package, and the teacher's answers to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._values import restore_value, store_value
from mmcompress.data import Example, Examples
from mmcompress.errors import InputError
from mmcompress.families import Family, Request

EXAMPLES = "examples.jsonl"


def raw_values(examples: Sequence[Example], inputs: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a request's inputs: ``text`` is the first of an example's ``texts``, others have their own names."""
    return {name: [_raw_value(example, name) for example in examples] for name in inputs}


def _raw_value(example: Example, name: str) -> Any:
    if name == "text" and name not in example.values:
        return example.values["texts"][0]
    return example.values[name]


def write_probe(
    folder: Path, requests: Sequence[Request], examples: Examples, teacher: Family, teacher_folder: Path
) -> None:
    """Write examples (pictures and sounds as files, the rest in JSON lines) and ``<request>.npy``, the teacher's answers."""
    from mmcompress._ask import ask
    from mmcompress.runtimes.torch import open_model

    folder.mkdir(parents=True)
    chosen = [examples[index] for index in range(len(examples))]
    inputs = sorted({name for request in requests for name in request.inputs})
    columns = raw_values(chosen, inputs)
    with (folder / EXAMPLES).open("w", encoding="utf-8") as file:
        for index, example in enumerate(chosen):
            values = {name: store_value(columns[name][index], folder, _stem(index, name)) for name in inputs}
            file.write(json.dumps({"id": example.id, **values}, ensure_ascii=False) + "\n")
    stored = read_probe(folder)
    session = open_model(teacher, teacher_folder, None)
    processor = teacher.processor(teacher_folder)
    for request in requests:
        answers = ask(teacher, processor, session.run, request.name, {name: stored[name] for name in request.inputs})
        np.save(folder / f"{request.name}.npy", answers, allow_pickle=False)
    session.close()


def _stem(index: int, name: str) -> str:
    return f"{index:04d}" if name == "image" else f"{index:04d}-{name}"


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
            columns.setdefault(name, []).append(restore_value(value, folder))
    return columns


def read_answers(folder: Path, request: str) -> NDArray[Any]:
    """The teacher's answers to a request."""
    answers: NDArray[Any] = np.load(folder / f"{request}.npy", allow_pickle=False)
    return answers


def write_expected(folder: Path, request: str, answers: NDArray[Any]) -> None:
    """Keep what the package itself answered when it was compiled."""
    np.save(folder / f"{request}.package.npy", answers, allow_pickle=False)


def read_expected(folder: Path, request: str) -> NDArray[Any] | None:
    """What the package itself answered when it was compiled; None where that was on another machine class."""
    path = folder / f"{request}.package.npy"
    if not path.is_file():
        return None
    answers: NDArray[Any] = np.load(path, allow_pickle=False)
    return answers
