"""What a model shall answer, from the columns of the data to numbers: a class, several, a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError


def class_numbers(values: Sequence[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """A class per example, by its number or its name: int64 [n].

    Raises:
        InputError: a value that is no class.
    """
    return np.array(
        [class_number(value, classes, f"example {index + 1} of {len(values)}") for index, value in enumerate(values)],
        np.int64,
    )


def class_sets(values: Sequence[Sequence[Any]], classes: Sequence[str]) -> NDArray[np.float32]:
    """Any classes per example: float32 [n, c], 1 where one holds.

    Raises:
        InputError: a value that is no class.
    """
    chosen = np.zeros((len(values), len(classes)), np.float32)
    for index, some in enumerate(values):
        place = f"example {index + 1} of {len(values)}"
        chosen[index, [class_number(value, classes, place) for value in some]] = 1
    return chosen


def finite_numbers(values: Sequence[Any]) -> NDArray[np.float32]:
    """A number per example: float32 [n].

    Raises:
        InputError: a value that is none.
    """
    numbers = np.array(values, np.float64)
    if numbers.shape != (len(values),) or not np.isfinite(numbers).all():
        raise InputError("number: expected one finite number per example")
    return numbers.astype(np.float32)


def class_number(value: Any, classes: Sequence[str], place: str) -> int:
    """A class by its number or its name; ``place`` says where it stands.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, str):
        if value in classes:
            return list(classes).index(value)
    elif isinstance(value, (int, np.integer)) and 0 <= value < len(classes):
        return int(value)
    raise InputError(
        f"{place}: {value!r} is no class; expected a number from 0 to {len(classes) - 1} or one of: "
        f"{', '.join(classes[:8])}"
    )
