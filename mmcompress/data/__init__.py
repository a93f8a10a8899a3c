"""Data sets: one file each. An example is an id and named values; nothing here knows of models.

======== ================================== =======================================================
value    type                               meaning
======== ================================== =======================================================
image    PIL.Image.Image (RGB or RGBA)      a picture as it was drawn or photographed
texts    tuple[str, ...]                    texts that describe it, each as good as the others
label    int                                a class
======== ================================== =======================================================

Further names (``audio``, ``question``, ``answers``, ...) come with the families that need them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from mmcompress.component import Component, Slot


@dataclass(frozen=True)
class Example:
    """One example: an id that is unique in its data set, and its values by name."""

    id: str
    values: Mapping[str, Any]


class Examples(Protocol):
    """A split: examples by index, the same ones each time they are asked for. Safe to read from several processes."""

    ids: Sequence[str]
    """One per example, in order, without reading the examples."""
    columns: frozenset[str]
    """Names of the values that every example has."""
    notes: Mapping[str, int]
    """What was left out or mended while reading, counted, by reason: told in the report."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def fingerprint(self, index: int) -> str:
        """What tells that two examples are the same one, whatever their ids: cheap, without decoding."""
        ...

    def classes(self) -> Sequence[str]:
        """Names of the classes that ``label`` counts; empty where there are none."""
        ...


class Dataset(Component):
    """A named source of examples."""

    kind: ClassVar[str] = "data"

    def read(self) -> Examples:
        """Open the split.

        Raises:
            InputError: what is missing or wrong, with file and line.
        """
        raise NotImplementedError


AnyDataset = Annotated[Dataset, Slot("data")]
