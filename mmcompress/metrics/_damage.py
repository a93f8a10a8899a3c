"""Stated damage to inputs: what it does to an example follows from the example's id alone, so that models compare.

Strengths are shares (0 to 1) of something that the input itself has, so that they mean the same at every size and rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmcompress._sound import Sound

if TYPE_CHECKING:
    from PIL.Image import Image

Share = Annotated[float, Field(gt=0, le=1)]


class Damage(BaseModel):
    """One kind of damage, as a recipe writes it: ``{noise: 0.1}``, ``{blur: 0.02}``, ``{missing: image}``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    noise: Share | None = None
    """White Gaussian noise: its standard deviation as a share of the full range of a picture, or of the root mean square
    of a sound, of a table's columns, of readings or features."""
    blur: Share | None = None
    """Gaussian blur: its standard deviation as a share of a picture's shorter side."""
    dark: Share | None = None
    """The share of a picture's brightness that is taken away."""
    silence: Share | None = None
    """The share of a sound that is silent, in one stretch."""
    missing: str | None = None
    """An input that is not there, of a model that was trained for it."""
    input: str | None = None
    """The only input that is damaged; every one that the damage is for where it is not named."""

    @model_validator(mode="after")
    def _one_kind(self) -> Damage:
        given = self._given()
        if len(given) != 1:
            kinds = ", ".join(name for name in type(self).model_fields if name != "input")
            raise ValueError(f"expected exactly one of {kinds}; got {', '.join(given) or 'none'}")
        if self.missing is not None and self.input is not None:
            raise ValueError("`missing` names the input itself; leave `input` out")
        return self

    def _given(self) -> dict[str, float | str]:
        return {name: value for name, value in self if name != "input" and value is not None}

    def __str__(self) -> str:
        ((kind, strength),) = self._given().items()
        text = f"{kind} {strength}" if isinstance(strength, str) else f"{kind} {strength:g}"
        return f"{text} on {self.input}" if self.input else text

    def touches(self, name: str, value: Any) -> bool:
        """Whether it changes an input of this name and kind of value."""
        if self.missing is not None or self.input not in (None, name):
            return self.missing == name
        if self.silence is not None:
            return isinstance(value, Sound)
        if self.noise is not None and (isinstance(value, Sound) or _is_readings(value)):
            return True
        return _is_picture(value) or (isinstance(value, tuple) and bool(value) and _is_picture(value[0]))

    def apply(self, name: str, ids: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """The values of an input of the examples ``ids``, damaged; others than it touches as they are."""
        return [
            self._damaged(value, f"{example}/{name}") if self.touches(name, value) else value
            for example, value in zip(ids, values, strict=True)
        ]

    def _damaged(self, value: Any, source: str) -> Any:
        if self.missing is not None:
            return None
        if isinstance(value, tuple):  # a film
            return tuple(self._damaged(frame, f"{source}/{index}") for index, frame in enumerate(value))
        random = np.random.default_rng(int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big"))
        if self.silence is not None:
            return _silent(value, self.silence, random)
        if self.noise is not None:
            return _noisy(value, self.noise, random)
        return _blurred(value, self.blur) if self.blur is not None else _darkened(value, self.dark or 0.0)


def _is_picture(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "mode")


def _is_readings(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _silent(sound: Sound, share: float, random: np.random.Generator) -> Sound:
    count = round(share * len(sound.samples))
    start = int(random.integers(0, len(sound.samples) - count + 1))
    samples = sound.samples.copy()
    samples[start : start + count] = 0.0
    return replace(sound, samples=samples)


def _noisy(value: Any, share: float, random: np.random.Generator) -> Any:
    if isinstance(value, Sound):
        return replace(value, samples=np.clip(_with_noise(value.samples, share, random), -1.0, 1.0))
    if isinstance(value, np.ndarray):
        return _with_noise(value, share, random)
    from PIL import Image

    image = value if value.mode in ("RGB", "RGBA", "L") else value.convert("RGB")
    pixels = np.asarray(image, dtype=np.float32).copy()
    colours = pixels[..., :3]  # of a picture with alpha; a view, and all there is of others
    colours += random.normal(0.0, 255.0 * share, colours.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _with_noise(values: NDArray[Any], share: float, random: np.random.Generator) -> NDArray[Any]:
    strength = share * float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    return (values + random.normal(0.0, strength, values.shape)).astype(values.dtype)


def _blurred(image: Image, share: float) -> Image:
    from PIL import ImageFilter

    shown = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")
    return shown.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def _darkened(image: Image, share: float) -> Image:
    from PIL import ImageEnhance

    shown = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")
    return ImageEnhance.Brightness(shown).enhance(1.0 - share)


def damage_columns(damage: Damage, ids: Sequence[str], raw: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """All columns of some examples, damaged."""
    return {name: damage.apply(name, ids, column) for name, column in raw.items()}
