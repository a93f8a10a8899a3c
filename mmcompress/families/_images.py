"""Pictures to arrays with numpy and Pillow alone, as transformers' Pillow image processors do it.

The settings come from the checkpoint's own ``preprocessor_config.json`` (or transformers 5's ``processor_config.json``).
A picture with transparency is composed onto :attr:`ImageSettings.background`, white unless the configuration says
otherwise. transformers does the same since version 5; before, it dropped the alpha channel and showed whatever colour
lay below it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mmcompress.errors import InputError, require
from mmcompress.store import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 80_000_000
"""Largest picture that is decoded or made by resizing; below the size from which Pillow warns."""

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": _OPENAI_MEAN,
    "image_std": _OPENAI_STD,
}
_SQUARE: dict[str, Any] = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_VILT = {**_SQUARE, "size": {"shortest_edge": 384}, "resample": 3}
_CONVNEXT = {
    **_SQUARE,
    "size": {"shortest_edge": 384},
    "resample": 3,
    "crop_pct": 224 / 256,
}
"""A ResNet's processor too; see :func:`_cropped_share`."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "ChineseCLIPFeatureExtractor": _CLIP,
    "ConvNextImageProcessor": _CONVNEXT,
    "ConvNextFeatureExtractor": _CONVNEXT,
    "SiglipImageProcessor": {**_SQUARE, "resample": 3},
    "ViTImageProcessor": {**_SQUARE, "resample": 2},
    "ViTFeatureExtractor": {**_SQUARE, "resample": 2},
    "ViltImageProcessor": _VILT,
    "ViltFeatureExtractor": _VILT,
}
"""What transformers' classes do where a configuration is silent, by ``image_processor_type``."""


class ImageSettings(BaseModel):
    """How a picture becomes the model's input, resolved: nothing is left to defaults of a library."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: tuple[int, int] | int | None
    """(height, width), or the length that the shorter edge gets, or None."""
    resample: Literal[0, 1, 2, 3, 4, 5]
    """Pillow's number of the filter: 2 bilinear, 3 bicubic."""
    crop: tuple[int, int] | None
    """(height, width) cut from the middle, padded with black where the picture is smaller."""
    rescale: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour under transparent pixels, RGB."""

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) that every picture ends with, or None where it depends on the picture."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)


# --- settings ------------------------------------------------------------------------------------------------------


def read_image_settings(folder: Path) -> ImageSettings:
    """The settings of a model folder or package.

    Raises:
        InputError: no configuration, one that is no JSON object, or settings that are missing or not supported.
    """
    values, file = read_preprocessor(folder)
    return resolve_image_settings(values, str(file))


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], Path]:
    """The picture part of a folder's preprocessing configuration as it is written, and the file that holds it.

    Raises:
        InputError: there is none.
    """
    for name in PREPROCESSOR_FILES:
        file = folder / name
        if not file.is_file():
            continue
        values = read_object(file)
        nested = values.get("image_processor")
        if nested is not None:
            return nested, file
        if "image_processor_type" in values or "feature_extractor_type" in values or "size" in values:
            return values, file
    raise InputError(
        f"{folder}: no settings for pictures\n"
        f"  expected {' or '.join(PREPROCESSOR_FILES)} with an image processor; copy it from the checkpoint's repository"
    )


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is missing, no JSON, or no object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def resolve_image_settings(values: Mapping[str, Any], where: str) -> ImageSettings:
    """Settings of a transformers image processor (its dict) with every default filled in.

    Raises:
        InputError: an unknown processor that leaves settings out, or a kind of resizing that is not supported.
    """
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    defaults = DEFAULTS.get(kind, {})

    def setting(name: str) -> Any:
        if values.get(name) is not None:
            return values[name]
        if name in defaults:
            return defaults[name]
        raise InputError(
            f"{where}: no {name!r}, and no defaults are known for the image processor {kind or 'without a type'!r}\n"
            f"  known: {', '.join(sorted(DEFAULTS))}; or write the setting out"
        )

    def wanted(name: str, default: bool) -> bool:
        value = values.get(name)
        return bool(defaults.get(name, default) if value is None else value)

    normalize = wanted("do_normalize", True)
    resize = _resize_setting(setting("size"), where) if wanted("do_resize", True) else None
    crop = _height_width(setting("crop_size"), where) if wanted("do_center_crop", False) else None
    if "crop_pct" in defaults and resize is not None:
        resize, crop = _cropped_share(resize, float(setting("crop_pct")), where)
    try:
        return ImageSettings(
            resize=resize,
            resample=setting("resample"),
            crop=crop,
            rescale=values.get("rescale_factor", 1 / 255) if wanted("do_rescale", True) else None,
            mean=setting("image_mean") if normalize else None,
            std=setting("image_std") if normalize else None,
            background=tuple(values.get("background", (255, 255, 255))),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _resize_setting(size: Any, where: str) -> tuple[int, int] | int:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and {k for k, v in size.items() if v is not None} == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return _height_width(size, where)


def _cropped_share(
    resize: tuple[int, int] | int, share: float, where: str
) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    """ConvNeXt's way: below 384 the shorter edge becomes larger by the share and the middle is cut, else both sides are set."""
    if not isinstance(resize, int):
        raise InputError(f"{where}: the size {resize} is not supported here\n  expected shortest_edge alone")
    return (int(resize / share), (resize, resize)) if resize < 384 else ((resize, resize), None)


def _height_width(size: Any, where: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {k for k, v in size.items() if v is not None} == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise InputError(
        f"{where}: the size {size!r} is not supported\n  expected height and width, or shortest_edge alone"
    )


# --- one picture ---------------------------------------------------------------------------------------------------


def open_picture(value: Any, background: tuple[int, int, int] = (255, 255, 255)) -> Image:
    """A picture in RGB from a path, bytes, a Pillow image or uint8 [h, w, 3] RGB.

    Raises:
        InputError: none of these, not decodable, more than 8 bits per channel, empty, or more than MAX_PIXELS.
    """
    require("PIL", "cpu")
    from PIL import Image

    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise InputError(
                f"a picture given as an array must be uint8 [h, w, 3] in RGB, got {value.dtype} {value.shape}"
            )
        _check_size(value.shape[1], value.shape[0], "the picture")
        return Image.fromarray(value)
    if isinstance(value, Image.Image):
        return _to_rgb(value, "the picture", background)
    if isinstance(value, (bytes, bytearray)):
        return _decode(BytesIO(value), "the picture", background)
    if isinstance(value, (str, Path)):
        if not Path(value).is_file():
            raise InputError(f"{value}: no such picture")
        # Read at once: each of Pillow's many small reads would let other threads in, and threads that decode slow each other.
        try:
            content = Path(value).read_bytes()
        except OSError as error:
            raise InputError(f"{value}: cannot be read: {error.strerror}") from None
        return _decode(BytesIO(content), str(value), background)
    raise InputError(
        f"a picture must be a path, bytes, a Pillow image or a uint8 array [h, w, 3], got {type(value).__name__}"
    )


def _decode(source: BytesIO, name: str, background: tuple[int, int, int]) -> Image:
    from PIL import Image

    try:
        with Image.open(source) as image:
            _check_size(image.width, image.height, name)
            return _to_rgb(image, name, background)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name}: more than {MAX_PIXELS:,} pixels; scale the picture down") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise InputError(f"{name}: cannot be decoded as a picture: {error}") from None


def _to_rgb(image: Image, name: str, background: tuple[int, int, int]) -> Image:
    from PIL import Image as images

    _check_size(image.width, image.height, name)
    if image.mode.startswith("I") or image.mode == "F":
        raise InputError(
            f"{name}: pictures of mode {image.mode!r} have no defined brightness; store it with 8 bits per channel"
        )
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        canvas = images.new("RGBA", image.size, (*background, 255))
        return images.alpha_composite(canvas, image).convert("RGB")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name}: an empty picture ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width} x {height} is more than {MAX_PIXELS:,} pixels; scale the picture down")


def resize_and_crop(image: Image, settings: ImageSettings) -> NDArray[np.uint8]:
    """An RGB picture at the model's size: uint8 [h, w, 3]."""
    if settings.resize is not None:
        height, width = _target_size(image.height, image.width, settings.resize)
        _check_size(width, height, "the resized picture")
        image = image.resize((width, height), resample=settings.resample)
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels if settings.crop is None else _center_crop(pixels, *settings.crop)


def _target_size(height: int, width: int, resize: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(resize, tuple):
        return resize
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle, rounded as transformers does: crops start at floor, pads at ceil."""
    pad_top, pad_left = (
        max(0, ceil((size - have) / 2)) for size, have in zip((height, width), pixels.shape, strict=False)
    )
    if pad_top or pad_left:
        canvas = np.zeros((max(height, pixels.shape[0]), max(width, pixels.shape[1]), 3), np.uint8)
        canvas[pad_top : pad_top + pixels.shape[0], pad_left : pad_left + pixels.shape[1]] = pixels
        top, left = ((have - size) // 2 for size, have in zip((height, width), pixels.shape, strict=False))
        top, left = max(0, top + pad_top), max(0, left + pad_left)
        return canvas[top : top + height, left : left + width]
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


# --- many pictures -------------------------------------------------------------------------------------------------


class ImageEncoder:
    """Pictures to the model's input in two halves: the costly one that is small to keep, and the cheap one."""

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(height, width) of every picture.

        Raises:
            InputError: it depends on the picture.
        """
        size = self.settings.output_size
        if size is None:
            raise InputError(
                "the pictures' settings give each picture another size (shortest edge without a crop)\n"
                "  expected a crop_size with do_center_crop, or a size of height and width, in preprocessor_config.json"
            )
        return size

    def compact(self, pictures: Sequence[Any]) -> NDArray[np.uint8]:
        """Pictures in any accepted form to uint8 [n, h, w, 3].

        Raises:
            InputError: a picture that cannot be used, with its position.
        """
        result = np.empty((len(pictures), *self.fixed_size, 3), np.uint8)
        for index, picture in enumerate(pictures):
            try:
                image = open_picture(picture, self.settings.background)
                result[index] = resize_and_crop(image, self.settings)
            except InputError as error:
                raise InputError(f"picture {index + 1} of {len(pictures)}: {error}") from None
        return result

    def expand(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, h, w, 3] to float32 [n, 3, h, w], rescaled and normalised."""
        channels = [np.take(table, pixels[..., channel]) for channel, table in enumerate(self.tables)]
        return np.stack(channels, axis=1)

    @cached_property
    def tables(self) -> NDArray[np.float32]:
        """float32 [3, 256]: the result for each of the 256 values of each channel: transformers' arithmetic, done once."""
        settings = self.settings
        values = np.arange(256, dtype=np.float64)
        scaled = (values if settings.rescale is None else values * settings.rescale).astype(np.float32)
        if settings.mean is None or settings.std is None:
            return np.stack([scaled] * 3)
        mean, std = (np.array(x, np.float32)[:, None] for x in (settings.mean, settings.std))
        table: NDArray[np.float32] = (scaled[None] - mean) / std
        return table
