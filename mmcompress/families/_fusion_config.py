"""config.json of a ``fusion`` model: its inputs with their encoders, how they are joined, and what comes out.

::

    {"model_type": "mmcompress-fusion",
     "inputs": [{"name": "image", "kind": "picture", "size": 32, "encoder": {"kind": "resnet", "config": {...}}},
                {"name": "table", "kind": "table", "columns": 6, "encoder": {"kind": "mlp", "width": 32}}],
     "fusion": {"kind": "early", "hidden": [64]},
     "output": {"kind": "class", "classes": ["cat", "dog"]},
     "missing": 0.2}

Columns of tables, readings of sensors, feature vectors and sounds are standardised inside the model: by ``mean`` and
``std`` where an input gives them, otherwise by those of the training data, which the model gathers while it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from mmcompress.component import nearest
from mmcompress.errors import InputError
from mmcompress.families._fusion_parts import (
    Conv1d,
    Joining,
    Late,
    Mlp,
    NumberOutput,
    OfPictures,
    OfSteps,
    OfTexts,
    Output,
    TagsOutput,
)
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

MODEL_TYPE = "mmcompress-fusion"


# --- inputs --------------------------------------------------------------------------------------------------------


class Picture(PictureInput):
    """A picture."""

    encoder: OfPictures

    @property
    def knows_size(self) -> bool:
        """A pretrained encoder brings its own."""
        return self.encoder.pretrained is not None


class Film(FilmInput):
    """A film: pictures in their order, the encoder on each."""

    over_time: Literal["mean", "gru"] = "mean"
    """How the pictures' features become the film's: their mean, or the last state of a GRU, which knows their order."""
    encoder: OfPictures

    @property
    def knows_size(self) -> bool:
        """A pretrained encoder brings its own."""
        return self.encoder.pretrained is not None


class Text(TextInput):
    """A text, by the tokenizer.json beside config.json; for ``tags``, a tuple of words."""

    encoder: OfTexts


class Sound(SoundInput):
    """A sound, resampled: log-mel frames, or its samples."""

    encoder: OfSteps

    @model_validator(mode="after")
    def _read_by_convolutions(self) -> Self:
        if self.form == "samples" and self.encoder.kind != "conv1d":
            raise ValueError("samples are read by conv1d; expected it, or form: log_mel")
        return self


class Table(TableInput):
    """Numbers of a table's columns, float32 [c]."""

    encoder: Mlp


class Features(FeaturesInput):
    """A stored feature vector, float32 [d]."""

    encoder: Mlp


class Series(SeriesInput):
    """Readings of sensors, float32 [t, c]."""

    encoder: OfSteps


Input = Picture | Film | Text | Sound | Table | Features | Series
Steps = Sound | Series
_AnyInput = Annotated[Input, Field(discriminator="kind")]


# --- the whole ------------------------------------------------------------------------------------------------------


class FusionConfig(Section):
    """The whole configuration."""

    model_type: Literal["mmcompress-fusion"]
    inputs: tuple[_AnyInput, ...] = Field(min_length=2)
    fusion: Joining
    output: Output
    missing: float = Field(0.0, ge=0, lt=1)
    """How often training leaves an input out (never all of them), so that a package works without it; 0 for never."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        names = [item.name for item in self.inputs]
        if len({item.value for item in self.inputs}) < len(names):
            raise ValueError(f"inputs: each name once (texts and text are one); got {', '.join(names)}")
        classes = self.classes
        if len(set(classes)) < len(classes) or (self.output.kind == "class" and len(classes) < 2):
            raise ValueError("output.classes: expected distinct names, two or more of which one is chosen")
        if isinstance(self.output, TagsOutput):
            texts = [item.name for item in self.inputs if isinstance(item, Text)]
            if self.output.of is None and len(texts) != 1:
                raise ValueError(f"output: {len(texts)} inputs are texts; name the one that is tagged in output.of")
            if self.output.of is not None and self.output.of not in texts:
                raise ValueError(
                    f"output.of: {self.output.of!r} is no text input; those are: {', '.join(texts) or 'none'}"
                )
            if isinstance(self.fusion, Late):
                raise ValueError("fusion: late has one vote per input; tags need one per word: early or intermediate")
            if isinstance(self.input(self.tagged).encoder, Conv1d) and self.input(self.tagged).encoder.stride != 1:
                raise ValueError("tags need a state per token; expected stride: 1 of the tagged text's encoder")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none for a number."""
        return () if isinstance(self.output, NumberOutput) else self.output.classes

    @property
    def tagged(self) -> str:
        """The name of the text input whose words are tagged; empty where none are."""
        if not isinstance(self.output, TagsOutput):
            return ""
        return self.output.of or next(item.name for item in self.inputs if isinstance(item, Text))

    @property
    def width(self) -> int:
        """Numbers that come out per example or word."""
        return max(1, len(self.classes))

    def input(self, name: str) -> Any:
        """The input of a name."""
        return next(item for item in self.inputs if item.name == name)


# --- reading -------------------------------------------------------------------------------------------------------


def parse_config(values: Mapping[str, Any], where: str) -> FusionConfig:
    """The configuration that a JSON object describes.

    Raises:
        InputError: another kind of model, or every mistake in it with its place.
    """
    kind = str(values.get("model_type"))
    if kind != MODEL_TYPE:
        raise InputError(
            f"{where}: the fusion family knows no model_type {kind!r}{nearest(kind, [MODEL_TYPE])}\n  known: {MODEL_TYPE}"
        )
    try:
        return FusionConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError("\n".join([f"{where}: not a fusion model's configuration", *mistakes(error)])) from None


def read_config(folder: Path) -> FusionConfig:
    """The configuration of a model folder or package.

    Raises:
        InputError: as :func:`parse_config`; or there is none.
    """
    return parse_config(read_object(folder / "config.json"), str(folder / "config.json"))
