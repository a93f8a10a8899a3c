"""Inputs of models that take any: what a configuration says of each, and how its values become numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmcompress.families._images import ImageSettings

if TYPE_CHECKING:
    from typing import Self  # not in the Python 3.10 of some devices

RESERVED = ("fusion", "label", "labels", "number", "tags")
"""No names of inputs: parts of outputs, and columns of what a model shall answer."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BICUBIC = 3


class Section(BaseModel):
    """A part of a configuration: frozen, without keys that are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Input(Section):
    """An input: a column of the data."""

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


class _Seen(Input):
    size: int | tuple[int, int] | None = None
    """Side, or height and width, in pixels: short for a ``picture`` of that size with values from -1 to 1."""
    picture: ImageSettings | None = None
    """How a picture becomes numbers, in full; that of a ``pretrained`` encoder where neither is given."""

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.size is not None and self.picture is not None:
            raise ValueError("expected size or picture, not both")
        if self.size is None and self.picture is None and not self.knows_size:
            raise ValueError("expected size (a number of pixels), or a pretrained encoder that knows its own")
        if self.picture is not None and self.picture.output_size is None:
            raise ValueError("picture: expected a size of height and width, or a crop, so that all pictures are alike")
        return self

    @property
    def knows_size(self) -> bool:
        """Whether something else tells the size."""
        return False

    @property
    def settings(self) -> ImageSettings:
        """The resolved settings of a written model; a ``pretrained`` encoder's are resolved when it is written."""
        if self.picture is not None:
            return self.picture
        assert self.size is not None
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        half = (0.5, 0.5, 0.5)
        return ImageSettings(resize=size, resample=_BICUBIC, crop=None, rescale=1 / 255, mean=half, std=half)


class PictureInput(_Seen):
    """A picture."""

    kind: Literal["picture"]


class FilmInput(_Seen):
    """A film: pictures in their order, the encoder on each."""

    kind: Literal["film"]
    frames: int = Field(8, ge=1)
    """Pictures at most; of longer films that many are taken, evenly spaced."""


class TextInput(Input):
    """A text, by the tokenizer.json beside config.json; for ``tags``, a tuple of words."""

    kind: Literal["text"]
    max_length: int = Field(64, ge=1)
    """Tokens at most, with the special ones; longer texts lose their end."""


class _Standardised(Input):
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


class SoundInput(_Standardised):
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
        if round(self.hop * self.rate) < 1 or round(self.window * self.rate) < 2:
            raise ValueError("a frame of less than two samples; expected a longer window and hop")
        return self


class TableInput(_Standardised):
    """Numbers of a table's columns, float32 [c]."""

    kind: Literal["table"]
    columns: int = Field(ge=1)

    @property
    def channels_in(self) -> int:
        """Columns."""
        return self.columns


class FeaturesInput(_Standardised):
    """A stored feature vector, float32 [d]."""

    kind: Literal["features"]
    width: int = Field(ge=1)

    @property
    def channels_in(self) -> int:
        """Its width."""
        return self.width


class SeriesInput(_Standardised):
    """Readings of sensors, float32 [t, c]."""

    kind: Literal["series"]
    channels: int = Field(1, ge=1)
    length: int = Field(ge=1)
    """Readings at most; longer series lose their end."""

    @property
    def channels_in(self) -> int:
        """Channels."""
        return self.channels

    @property
    def steps(self) -> int:
        """Readings at most."""
        return self.length


def mistakes(error: ValidationError) -> list[str]:
    """What is wrong with a configuration, each with its place."""
    return [f"  {'.'.join(map(str, item['loc'])) or 'config'}: {_message(item)}" for item in error.errors()]


def _message(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")
