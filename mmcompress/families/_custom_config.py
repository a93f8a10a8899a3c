"""config.json of a ``custom`` model: which installed module it is, what it reads, what comes out.

::

    {"model_type": "mmcompress-custom",
     "mmcompress_model": "my_model",
     "model": {"width": 64},
     "inputs": [{"name": "image", "kind": "picture", "size": 32},
                {"name": "table", "kind": "table", "columns": 6, "mean": [...], "std": [...]}],
     "task": {"kind": "classify", "classes": ["cat", "dog"]}}

``mmcompress_model`` is the name of an entry point of the group ``mmcompress.models`` in an installed package, and
``model`` is whatever that package wants to know. What the module has to do stands in
:mod:`mmcompress.families.custom`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from mmcompress.errors import InputError
from mmcompress.families._images import read_object
from mmcompress.families._inputs import (
    FeaturesInput,
    FilmInput,
    PictureInput,
    Section,
    SeriesInput,
    SoundInput,
    TableInput,
    TextInput,
    mistakes,
)

if TYPE_CHECKING:
    from typing import Self  # not in the Python 3.10 of some devices

MODEL_TYPE: Final = "mmcompress-custom"
EMBEDDED = {"picture": ("embed_image", "vision"), "text": ("embed_text", "text"), "sound": ("embed_audio", "audio")}
"""Kinds of inputs that can be embedded: the request, and the part that outputs are named by."""


class Classify(Section):
    """One of the classes (column ``label``), or with ``several`` any of them (column ``labels``)."""

    kind: Literal["classify"]
    classes: tuple[str, ...] = Field(min_length=2)
    several: bool = False


class PredictNumber(Section):
    """A number (column ``number``)."""

    kind: Literal["predict_number"]
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    """The module's ``number`` times ``std`` plus ``mean`` is the answer: it learns numbers around 0."""


class Embed(Section):
    """Embeddings of two inputs of different kinds in one space."""

    kind: Literal["embed"]
    scale: float = Field(1 / 0.07, gt=0)
    """What similarities are multiplied with in training, where the module gives no ``logit_scale``."""


_Input = PictureInput | FilmInput | TextInput | SoundInput | TableInput | FeaturesInput | SeriesInput
_Task = Classify | PredictNumber | Embed


class CustomConfig(Section):
    """The whole configuration."""

    model_type: Literal["mmcompress-custom"] = MODEL_TYPE
    mmcompress_model: str = Field(min_length=1)
    model: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[Annotated[_Input, Field(discriminator="kind")], ...] = Field(min_length=1)
    task: Annotated[_Task, Field(discriminator="kind")]
    padding: Literal["longest", "max_length"] = "longest"
    """Texts, sounds, series and films are as long as the longest of a batch, or all of the longest there may be: for a
    module that takes one length alone."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        names = [item.value for item in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError(f"inputs: each name once (texts and text are one); got {', '.join(names)}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("task.classes: expected distinct names")
        if isinstance(self.task, Embed):
            parts = [EMBEDDED.get(item.kind, ("", ""))[1] for item in self.inputs]
            if len(parts) != 2 or len(set(parts)) != 2 or "" in parts:
                kinds = ", ".join(item.kind for item in self.inputs)
                raise ValueError(f"embed takes two inputs, of different kinds among {', '.join(EMBEDDED)}; got {kinds}")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none where there are no classes."""
        return self.task.classes if isinstance(self.task, Classify) else ()

    @property
    def target(self) -> str:
        """The column that training learns from; empty where inputs are all there is."""
        if isinstance(self.task, Classify):
            return "labels" if self.task.several else "label"
        return "number" if isinstance(self.task, PredictNumber) else ""


def parse_config(values: Mapping[str, Any], where: str) -> CustomConfig:
    """The configuration that a JSON object describes.

    Raises:
        InputError: another kind of model, or every mistake in it with its place.
    """
    kind = str(values.get("model_type", MODEL_TYPE))
    if kind != MODEL_TYPE or "mmcompress_model" not in values:
        raise InputError(
            f"{where}: not a custom model: model_type {kind!r}, "
            f"mmcompress_model {str(values.get('mmcompress_model', 'absent'))!r}\n"
            f"  expected model_type {MODEL_TYPE} (or none), and mmcompress_model, the name of an entry point of an installed package"
        )
    try:
        return CustomConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError("\n".join([f"{where}: not a custom model's configuration", *mistakes(error)])) from None


def read_config(folder: Path) -> CustomConfig:
    """The configuration of a model folder or package.

    Raises:
        InputError: as :func:`parse_config`; or there is none.
    """
    return parse_config(read_object(folder / "config.json"), str(folder / "config.json"))
