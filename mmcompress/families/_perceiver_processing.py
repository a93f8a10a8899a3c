"""What the ``perceiver`` family makes of texts, pictures and sounds: numpy and Pillow alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mmcompress.errors import InputError
from mmcompress.families import PADDING, Feeds
from mmcompress.families._images import (
    ImageEncoder,
    ImageSettings,
    open_picture,
    read_object,
    read_preprocessor,
    resize_and_crop,
    resolve_image_settings,
)
from mmcompress.families._processing import ColumnProcessor, Labels, Part, class_names
from mmcompress.families._texts import too_long
from mmcompress.families._wav2vec2_processing import Waves, WaveSettings, read_wave_settings

Task = Literal["text", "picture", "sound"]
COLUMN: dict[Task, str] = {"text": "text", "picture": "image", "sound": "audio"}
SPECIAL = ("pad_token", "bos_token", "eos_token", "mask_token", "cls_token", "sep_token")
"""Tokens 0 to 5; a byte b is token 6 + b."""
_BYTES = 256
_IMAGENET: dict[str, Any] = {
    "size": {"height": 224, "width": 224},
    "crop_size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}
"""What PerceiverImageProcessor does where its configuration is silent."""


def make_processor(folder: Path, task: Task) -> ColumnProcessor:
    """The preprocessing of a model folder or package, with the columns of the task.

    Raises:
        InputError: settings that are missing, not supported, or do not fit the model.
    """
    config = read_object(folder / "config.json")
    inputs: Part
    if task == "text":
        inputs = Utf8(read_utf8_settings(folder, config))
    elif task == "picture":
        inputs = CroppedPictures(*read_picture_settings(folder, config))
    else:
        inputs = _sounds(folder, config)
    classes = class_names(config)
    return ColumnProcessor(classes, **{COLUMN[task]: inputs, "label": Labels(classes)})


@dataclass(frozen=True)
class InputSize:
    """How large what a model reads can be."""

    sides: tuple[int, ...]
    """(most tokens,), (height, width) of every picture, or (samples,) of every sound."""


def input_size(processor: ColumnProcessor, task: Task) -> InputSize:
    """The size of what a processor makes."""
    settings = getattr(processor, COLUMN[task]).settings
    if isinstance(settings, Utf8Settings):
        return InputSize((settings.max_length,))
    if isinstance(settings, ImageSettings):
        assert isinstance(settings.resize, tuple)  # pictures are cropped first and resized to this
        return InputSize(settings.resize)
    return InputSize((settings.samples,))


# --- texts ---------------------------------------------------------------------------------------------------------


class Utf8Settings(BaseModel):
    """How texts become tokens, resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int
    """Tokens at most, with the one before and the one after; longer texts lose their end."""
    special: tuple[str, ...] = ("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
    """How the tokens before the bytes are written in a text; see :data:`SPECIAL`."""


def read_utf8_settings(folder: Path, config: Mapping[str, Any]) -> Utf8Settings:
    """The settings of a model folder or package; without a tokenizer_config.json those of PerceiverTokenizer.

    Raises:
        InputError: another tokenizer, or a model of too few tokens.
    """
    file = folder / "tokenizer_config.json"
    values = read_object(file) if file.is_file() else {}
    kind = str(values.get("tokenizer_class") or "PerceiverTokenizer")
    if kind != "PerceiverTokenizer":
        raise InputError(f"{file}: a {kind}\n  expected the PerceiverTokenizer of a model that reads bytes")
    least, known = _BYTES + len(SPECIAL), int(config.get("vocab_size", 262))
    if known < least:
        raise InputError(f"{folder / 'config.json'}: vocab_size {known}\n  expected {least}: 256 bytes after 6 tokens")
    positions, length = int(config.get("max_position_embeddings", 2048)), values.get("model_max_length")
    tokens = [values.get(name) for name in SPECIAL]
    written = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    defaults = Utf8Settings(max_length=1).special
    return Utf8Settings(
        max_length=min(positions, int(length)) if isinstance(length, (int, float)) and length > 0 else positions,
        special=tuple(str(own or default) for own, default in zip(written, defaults, strict=True)),
    )


class Utf8:
    """Texts to the tokens of PerceiverTokenizer: ``[CLS]``, their bytes in UTF-8, ``[SEP]``."""

    def __init__(self, settings: Utf8Settings) -> None:
        self.settings = settings
        self._numbers = {token: number for number, token in enumerate(settings.special)}
        self._special = re.compile(f"({'|'.join(map(re.escape, settings.special))})")

    def compact(self, values: Sequence[Any]) -> NDArray[Any]:
        """int32 [n, max_length], -1 after the last token of each.

        Raises:
            InputError: a value that is no text, or no texts but one string.
        """
        if isinstance(values, str):
            raise InputError("expected a list of texts, got one string")
        found = np.full((len(values), self.settings.max_length), PADDING, np.int32)
        for index, (row, text) in enumerate(zip(found, values, strict=True)):
            where = f"text {index + 1} of {len(values)}"
            if not isinstance(text, str):
                raise InputError(f"{where}: expected a string, got {type(text).__name__}")
            tokens = self._tokens(text, where)[: len(row) - 2]
            begin, end = SPECIAL.index("cls_token"), SPECIAL.index("sep_token")
            row[: len(tokens) + 2] = [begin, *tokens, end]
        return found

    def refuse_long(self, texts: Sequence[Any]) -> None:
        """Refuse texts of which :meth:`compact` would leave out the end.

        Raises:
            InputError: a text has more tokens than the model takes.
        """
        longest = self.settings.max_length
        for text in texts:
            over = len(self._tokens(text, "text")) + 2 - longest if isinstance(text, str) else 0
            if over > 0:
                raise too_long(text, over, longest)

    def _tokens(self, text: str, where: str) -> list[int]:
        tokens: list[int] = []
        for part in self._special.split(text):
            if part in self._numbers:
                tokens.append(self._numbers[part])
                continue
            try:
                tokens += [len(SPECIAL) + byte for byte in part.encode("utf-8")]
            except UnicodeEncodeError as error:
                raise InputError(f"{where}: cannot be written in UTF-8: {error.reason}") from None
        return tokens

    def feeds(self, compact: NDArray[Any]) -> Feeds:
        """``input_ids`` and ``attention_mask`` int64 [n, s], s the longest text there."""
        present = compact != PADDING
        longest = int(present.sum(axis=1).max(initial=2))
        ids = np.where(present, compact, SPECIAL.index("pad_token"))[:, :longest]
        return {"input_ids": ids.astype(np.int64), "attention_mask": present[:, :longest].astype(np.int64)}


# --- pictures ------------------------------------------------------------------------------------------------------


def read_picture_settings(folder: Path, config: Mapping[str, Any]) -> tuple[ImageSettings, tuple[float, float] | None]:
    """How pictures end, and the shares of the shorter side that are cut from the middle before (height, width).

    Raises:
        InputError: settings that are missing or not supported, or a size that is not the model's.
    """
    values, file = read_preprocessor(folder)
    known = {**_IMAGENET, **{name: value for name, value in values.items() if value is not None}}
    for name in ("size", "crop_size"):
        if isinstance(known[name], int):
            known[name] = {"height": known[name], "width": known[name]}
    settings = resolve_image_settings(known, str(file))
    if not isinstance(settings.resize, tuple):
        raise InputError(f"{file}: expected do_resize with a size of height and width, as PerceiverImageProcessor has")
    own = config.get("image_size", 56)
    sides = (own, own) if isinstance(own, int) else tuple(own)
    if "PerceiverForImageClassificationLearned" in (config.get("architectures") or ()) and settings.resize != sides:
        raise InputError(
            f"{file}: pictures of {settings.resize[0]} x {settings.resize[1]}, and the model learned places of"
            f" {sides[0]} x {sides[1]}\n  expected the size that config.json has as image_size"
        )
    shares = None
    if settings.crop is not None:
        shares = (settings.resize[0] / settings.crop[0], settings.resize[1] / settings.crop[1])
    return settings.model_copy(update={"crop": None}), shares


class CroppedPictures:
    """Pictures to ``pixel_values``: cut from the middle first, then resized, as PerceiverImageProcessor does it."""

    def __init__(self, settings: ImageSettings, shares: tuple[float, float] | None) -> None:
        self.settings = settings
        self.shares = shares
        self._images = ImageEncoder(settings)

    def compact(self, values: Sequence[Any]) -> NDArray[Any]:
        """uint8 [n, h, w, 3].

        Raises:
            InputError: a picture that cannot be used, with its position.
        """
        return self._images.compact([self._cut(value, index, len(values)) for index, value in enumerate(values)])

    def _cut(self, value: Any, index: int, count: int) -> Any:
        try:
            picture = open_picture(value, self.settings.background)
        except InputError as error:
            raise InputError(f"picture {index + 1} of {count}: {error}") from None
        if self.shares is None:
            return picture
        shorter = min(picture.size)
        height, width = (max(1, int(share * shorter)) for share in self.shares)
        return resize_and_crop(picture, self.settings.model_copy(update={"resize": None, "crop": (height, width)}))

    def feeds(self, compact: NDArray[Any]) -> Feeds:
        """``pixel_values`` float32 [n, 3, h, w]."""
        return {"pixel_values": self._images.expand(compact)}


# --- sounds --------------------------------------------------------------------------------------------------------


def _sounds(folder: Path, config: Mapping[str, Any]) -> Sounds:
    patch, file = int(config.get("samples_per_patch", 16)), folder / "config.json"
    samples = int(config.get("num_frames", 16)) * int(config.get("audio_samples_per_frame", 1920))
    if samples % patch:
        raise InputError(f"{file}: {samples} samples (num_frames * audio_samples_per_frame) in patches of {patch}")
    settings = read_wave_settings(folder)
    return Sounds(Waves(settings, samples / settings.rate, 1, "Split the sound: the model hears no more."))


@dataclass(frozen=True)
class SoundSettings:
    """How sounds become samples."""

    wave: WaveSettings
    samples: int
    """As many as the model hears."""


class Sounds:
    """Sounds to samples, as Wav2Vec2FeatureExtractor makes them, filled up to the length that the model hears."""

    def __init__(self, waves: Waves) -> None:
        self.settings = SoundSettings(waves.settings, waves.most)
        self._waves = waves

    def compact(self, values: Sequence[Any]) -> NDArray[Any]:
        """float32 [n, samples], not a number after the last sample of each.

        Raises:
            InputError: a sound that cannot be read or is longer than the model hears.
        """
        found = self._waves.compact(values)
        after = np.arange(self._waves.most) >= found["sample_counts"][:, None]
        return np.where(after, np.float32(np.nan), found["samples"])

    def feeds(self, compact: NDArray[Any]) -> Feeds:
        """``input_values`` float32 [n, samples], zero after the end, and ``sample_counts`` int64 [n]."""
        present = ~np.isnan(compact)
        return {"input_values": np.where(present, compact, np.float32(0)), "sample_counts": present.sum(axis=1)}
