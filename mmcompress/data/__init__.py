"""Data sets: one file each. An example is an id and named values; nothing here knows of models.

A column may have any name; the Python type of its values says what they are. The names below are those that our own data
sets, families and metrics use; every other name is a *slice*: a short text by which a quality is told apart in a report.

========= ============================== ===============================================================
value     type                           meaning
========= ============================== ===============================================================
image     PIL.Image.Image (RGB or RGBA)  a picture as it was drawn or photographed
image2    PIL.Image.Image (RGB or RGBA)  a second picture, for texts about two
frames    tuple[PIL.Image.Image, ...]    a film: pictures of one size in their order
audio     mmcompress._sound.Sound        a sound: one channel in [-1, 1] and its rate
texts     tuple[str, ...]                texts that describe it, each as good as the others
text      str                            a text that is an input, not an answer
question  str                            a question about the picture, the film or the sound
answers   tuple[str, ...]                what each annotator answered, equal answers as often as given
label     int                            a class; names from ``classes()``
labels    tuple[int, ...]                several classes in rising order, or none; names from ``classes()``
number    float                          a quantity
table     float32 [c]                    columns of a table
series    float32 [t, c]                 readings of sensors: t times, c channels
features  float32 [d]                    a stored feature vector
words     tuple[str, ...]                a text cut into words
tags      tuple[int, ...]                a class per word of ``words``; names from ``tag_classes()``
others    str                            slices
========= ============================== ===============================================================
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
