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

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

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
    Section,
    TagsOutput,
)
from mmcompress.families._images import ImageSettings, read_object

MODEL_TYPE = "mmcompress-fusion"
RESERVED = ("fusion", "label", "labels", "number", "tags")
"""No names of inputs: parts of outputs, and columns of what the model shall answer."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BICUBIC = 3


# --- inputs --------------------------------------------------------------------------------------------------------


class _Input(Section):
    name: str
    """The column of the data; ``texts`` are alternatives, of which training takes one, and a request calls it ``text``."""

    @field_validator("name")
    @classmethod
    def _usable(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or value in RESERVED:
            raise ValueError(f"{value!r} is no name: expected lower-case letters, not one of {', '.join(RESERVED)}")
        return value

    @property
    def value(self) -> str:
        """What a request calls it."""
        return "text" if self.name == "texts" else self.name


class _Seen(_Input):
    size: int | tuple[int, int] | None = None
    """Side, or height and width, in pixels: short for a ``picture`` of that size with values from -1 to 1."""
    picture: ImageSettings | None = None
    """How a picture becomes numbers, in full; that of a ``pretrained`` encoder where neither is given."""
    encoder: OfPictures

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.size is not None and self.picture is not None:
            raise ValueError("expected size or picture, not both")
        if self.size is None and self.picture is None and self.encoder.pretrained is None:
            raise ValueError("expected size (a number of pixels), or a pretrained encoder that knows its own")
        if self.picture is not None and self.picture.output_size is None:
            raise ValueError("picture: expected a size of height and width, or a crop, so that all pictures are alike")
        return self

    @property
    def settings(self) -> ImageSettings:
        """The resolved settings of a written model; a ``pretrained`` encoder's are resolved when it is written."""
        if self.picture is not None:
            return self.picture
        assert self.size is not None
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        half = (0.5, 0.5, 0.5)
        return ImageSettings(resize=size, resample=_BICUBIC, crop=None, rescale=1 / 255, mean=half, std=half)


class Picture(_Seen):
    """A picture."""

    kind: Literal["picture"]


class Film(_Seen):
    """A film: pictures in their order, the encoder on each."""

    kind: Literal["film"]
    frames: int = Field(8, ge=1)
    """Pictures at most; of longer films that many are taken, evenly spaced."""
    over_time: Literal["mean", "gru"] = "mean"
    """How the pictures' features become the film's: their mean, or the last state of a GRU, which knows their order."""


class Text(_Input):
    """A text, by the tokenizer.json beside config.json; for ``tags``, a tuple of words."""

    kind: Literal["text"]
    max_length: int = Field(64, ge=1)
    """Tokens at most, with the special ones; longer texts lose their end."""
    encoder: OfTexts


class _Standardised(_Input):
    mean: tuple[float, ...] | None = None
    """Per column or channel; those of the training data where absent."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @property
    def channels_in(self) -> int:
        """How many columns or channels the encoder reads."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("expected mean and std, or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels_in:
                raise ValueError(
                    f"{name}: {len(values)} numbers; expected {self.channels_in}, one per column or channel"
                )
        return self


class Sound(_Standardised):
    """A sound, resampled: log-mel frames, or its samples."""

    kind: Literal["sound"]
    rate: int = Field(16_000, ge=1000)
    """Samples per second."""
    seconds: float = Field(gt=0, le=600)
    """At most; longer sounds lose their end."""
    form: Literal["log_mel", "samples"] = "log_mel"
    mels: int = Field(40, ge=4)
    """Bands of ``log_mel``."""
    window: float = Field(0.025, gt=0)
    """Seconds of a frame."""
    hop: float = Field(0.01, gt=0)
    """Seconds between frames."""
    encoder: OfSteps

    @property
    def channels_in(self) -> int:
        """Bands, or the one channel of the samples."""
        return self.mels if self.form == "log_mel" else 1

    @property
    def steps(self) -> int:
        """Frames or samples at most."""
        samples = round(self.seconds * self.rate)
        return samples if self.form == "samples" else 1 + samples // max(1, round(self.hop * self.rate))

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.form == "samples" and self.encoder.kind != "conv1d":
            raise ValueError("samples are read by conv1d; expected it, or form: log_mel")
        if round(self.hop * self.rate) < 1 or round(self.window * self.rate) < 2:
            raise ValueError("a frame of less than two samples; expected a longer window and hop")
        return self


class Table(_Standardised):
    """Numbers of a table's columns, float32 [c]."""

    kind: Literal["table"]
    columns: int = Field(ge=1)
    encoder: Mlp

    @property
    def channels_in(self) -> int:
        """Columns."""
        return self.columns


class Features(_Standardised):
    """A stored feature vector, float32 [d]."""

    kind: Literal["features"]
    width: int = Field(ge=1)
    encoder: Mlp

    @property
    def channels_in(self) -> int:
        """Its width."""
        return self.width


class Series(_Standardised):
    """Readings of sensors, float32 [t, c]."""

    kind: Literal["series"]
    channels: int = Field(1, ge=1)
    length: int = Field(ge=1)
    """Readings at most; longer series lose their end."""
    encoder: OfSteps

    @property
    def channels_in(self) -> int:
        """Channels."""
        return self.channels

    @property
    def steps(self) -> int:
        """Readings at most."""
        return self.length


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
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'config'}: {_message(item)}" for item in error.errors()]
        raise InputError("\n".join([f"{where}: not a fusion model's configuration", *lines])) from None


def _message(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")


def read_config(folder: Path) -> FusionConfig:
    """The configuration of a model folder or package.

    Raises:
        InputError: as :func:`parse_config`; or there is none.
    """
    return parse_config(read_object(folder / "config.json"), str(folder / "config.json"))
