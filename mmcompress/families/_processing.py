"""Processors put together from a part per column, for families whose columns do not depend on one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import Feeds
from mmcompress.families._images import ImageEncoder


class Part(Protocol):
    """The two halves of one column's preprocessing."""

    def compact(self, values: Sequence[Any]) -> NDArray[Any]:
        """Raw values to one small array, the same shape per value at every call."""
        ...

    def feeds(self, compact: NDArray[Any]) -> Feeds:
        """The small array to inputs of graphs and losses, by name."""
        ...


class Pictures:
    """Pictures to ``pixel_values`` float32 [n, 3, h, w]."""

    def __init__(self, images: ImageEncoder) -> None:
        self.settings = images.settings
        self._images = images

    def compact(self, values: Sequence[Any]) -> NDArray[Any]:
        """uint8 [n, h, w, 3]."""
        return self._images.compact(values)

    def feeds(self, compact: NDArray[Any]) -> Feeds:
        """``pixel_values``."""
        return {"pixel_values": self._images.expand(compact)}


class Labels:
    """Numbers of classes to ``labels`` int64 [n]."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes

    def compact(self, values: Sequence[Any]) -> NDArray[Any]:
        """int64 [n].

        Raises:
            InputError: a label that is no class.
        """
        for index, label in enumerate(values):
            if not isinstance(label, (int, np.integer)) or not 0 <= label < len(self._classes):
                raise InputError(
                    f"label {index + 1} of {len(values)}: {label!r} is no class of this model\n"
                    f"  expected 0 to {len(self._classes) - 1}: {', '.join(self._classes[:6])}"
                )
        return np.asarray(values, dtype=np.int64)

    def feeds(self, compact: NDArray[Any]) -> Feeds:
        """``labels``."""
        return {"labels": compact}


class ColumnProcessor:
    """A part per column; see :class:`mmcompress.families.Processor`."""

    def __init__(self, classes: Sequence[str] = (), **parts: Part) -> None:
        """``classes``: names of what is scored; ``parts``: by the name of the column."""
        self.classes = tuple(classes)
        self._parts = parts
        self.text_encoders = {name: part for name, part in parts.items() if hasattr(part, "refuse_long")}
        vars(self).update({name: part for name, part in parts.items() if hasattr(part, "settings")})

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """Columns to small arrays of the same names.

        Raises:
            InputError: a column of another name, or what a part says.
        """
        unknown = sorted(set(values) - set(self._parts))
        if unknown:
            raise InputError(f"expected the columns {', '.join(sorted(self._parts))}; got {', '.join(unknown)}")
        return {name: self._parts[name].compact(column) for name, column in values.items()}

    def expand(self, compact: Feeds) -> Feeds:
        """Small arrays to inputs of graphs and losses."""
        return {key: value for name in compact for key, value in self._parts[name].feeds(compact[name]).items()}

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a checkpoint's classes, by ``id2label`` of its configuration, in their order."""
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[key]) for key in sorted(names, key=int))
