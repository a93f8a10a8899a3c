"""Classes of the data and classes of models as one list: the same ones are those of the same name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import nearest
from mmcompress.errors import InputError

_GENERIC = re.compile(r"LABEL_\d+")
"""What transformers calls a class that was given no name."""
_SHOWN = 5


@dataclass(frozen=True)
class ClassSpace:
    """All classes that the data or a model know, the data's first, in their own order."""

    names: tuple[str, ...]
    places: Mapping[str, NDArray[np.int64]]
    """By subject name: the index in ``names`` of each class of that model."""


def class_space(
    data: Sequence[str], models: Mapping[str, Sequence[str]], truth: Sequence[tuple[int, ...]]
) -> ClassSpace:
    """Match the classes of the data (none, where they have no names) with those of each model.

    By name; by index where the model's names are the generic ``LABEL_0`` and so on, or the data have no names.

    Raises:
        InputError: a class of the data that a model does not know, another number of classes where only the index
            tells them apart, or a label that counts no class.
    """
    names = list(data) or list(next(iter(models.values())))
    wrong = next((index for classes in truth for index in classes if not 0 <= index < len(names)), None)
    if wrong is not None:
        raise InputError(f"the test data have the label {wrong}, and there are {len(names)} classes: {_some(names)}")
    places = {}
    for subject, classes in models.items():
        if list(classes) == names or _by_index(subject, classes, data):
            places[subject] = np.arange(len(classes))
            continue
        _check_names(subject, classes, data)
        names += [name for name in dict.fromkeys(classes) if name not in names]
        places[subject] = np.array([names.index(name) for name in classes], dtype=np.int64)
    return ClassSpace(tuple(names), places)


def _by_index(subject: str, classes: Sequence[str], data: Sequence[str]) -> bool:
    """Whether a model's classes have no names of their own, and so only their index tells which is which."""
    if not data or not all(_GENERIC.fullmatch(name) for name in classes):
        return False
    if len(classes) != len(data):
        raise InputError(
            f"{subject} scores {len(classes)} classes without names ({_some(classes)}), and the test data have "
            f"{len(data)}: {_some(data)}\n  Give the model the names of its classes (id2label in its config.json)."
        )
    return True


def _check_names(subject: str, classes: Sequence[str], data: Sequence[str]) -> None:
    unknown = [name for name in data if name not in classes]
    if unknown:
        near = nearest(unknown[0], list(classes))
        raise InputError(
            f"{subject} does not know {len(unknown)} of the {len(data)} classes of the test data: {_some(unknown)}{near}\n"
            f"  it knows: {_some(classes)}\n  Classes are the same where their names are, letter by letter."
        )
    twice = [name for name in data if list(data).count(name) > 1]
    if twice:
        raise InputError(f"the test data have two classes called {twice[0]!r}, and the model's stand in another order")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
