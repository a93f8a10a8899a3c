"""What the ``clap`` family makes of sounds and texts: numpy and ``tokenizers`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmcompress.errors import InputError
from mmcompress.families import Feeds
from mmcompress.families._class_table import ClassTable, texts_are_a_table
from mmcompress.families._images import read_object
from mmcompress.families._sounds import FLOOR, Samples, mel_filters, power_spectrogram, read_extractor, read_samples
from mmcompress.families._texts import TextEncoder, load_tokenizer, read_text_settings

VIEWS = 4
"""Spectrograms of one sound that a fused model sees: the whole, and its front, middle and back."""


class ClapSettings(BaseModel):
    """How a sound becomes CLAP's input, resolved."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    rate: int = Field(48_000, alias="sampling_rate", gt=0)
    """Samples per second."""
    mels: int = Field(64, alias="feature_size", gt=0)
    """Number of mel bands."""
    window: int = Field(1024, alias="fft_window_size", gt=1)
    """Samples that each spectrum is made of."""
    hop: int = Field(480, alias="hop_length", gt=0)
    """Samples from one spectrum to the next."""
    seconds: int = Field(10, alias="max_length_s", gt=0)
    """What the model hears."""
    lowest: float = Field(0.0, alias="frequency_min", ge=0)
    """Lower edge of the first band in Hz."""
    highest: float = Field(14_000.0, alias="frequency_max", gt=0)
    """Upper edge of the last band in Hz."""
    truncation: Literal["fusion", "rand_trunc"] = "fusion"
    """What is heard of longer sounds. ``rand_trunc``: a part of them; ``fusion``: the whole, shrunk, and three parts."""
    padding: Literal["repeatpad", "repeat", "pad"] = "repeatpad"
    """What fills up shorter sounds: as many whole repetitions as fit and silence, repetitions alone, or silence alone."""
    padding_value: Literal[0] = 0
    top_db: None = None

    @property
    def samples(self) -> int:
        """Samples that the model hears."""
        return self.seconds * self.rate

    @property
    def frames(self) -> int:
        """Spectra that the model hears."""
        return self.samples // self.hop + 1

    @property
    def fused(self) -> bool:
        """Whether the model sees several views of a sound."""
        return self.truncation == "fusion"


def read_clap_settings(folder: Path) -> ClapSettings:
    """The settings of a model folder or package; what they leave out is as in ``ClapFeatureExtractor``.

    Raises:
        InputError: no settings, those of another extractor, or values that are not supported.
    """
    values, file = read_extractor(folder)
    kind = str(values.get("feature_extractor_type", "ClapFeatureExtractor"))
    if kind != "ClapFeatureExtractor":
        raise InputError(f"{file}: settings of a {kind}\n  expected those of a ClapFeatureExtractor")
    try:
        return ClapSettings.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(f"{file}: {told}") from None


# --- sounds --------------------------------------------------------------------------------------------------------


def log_mel(samples: Samples, settings: ClapSettings) -> NDArray[np.float32]:
    """The power of each mel band in decibels, not below that of 1e-10: [1 + n // hop, mels].

    Fused models were trained with HTK's filters (torchaudio's), the others with Slaney's (librosa's).
    """
    scale: Literal["htk", "slaney"] = "htk" if settings.fused else "slaney"
    filters = mel_filters(
        settings.window // 2 + 1,
        settings.mels,
        settings.rate,
        settings.lowest,
        settings.highest,
        scale,
        None if settings.fused else "slaney",
    )
    power = power_spectrogram(samples, settings.window, settings.hop) @ filters
    return np.asarray(10.0 * np.log10(np.maximum(power, FLOOR)), dtype=np.float32)


def filled_up(samples: Samples, settings: ClapSettings) -> Samples:
    """A sound that is no longer than what the model hears, made as long: repeated, as ``padding`` says, then silent."""
    most = settings.samples
    if settings.padding != "pad" and len(samples) < most:
        times = most // len(samples) + (1 if settings.padding == "repeat" else 0)
        samples = np.tile(samples, times)[:most]
    return np.pad(samples, (0, most - len(samples)))


def views(samples: Samples, settings: ClapSettings) -> tuple[NDArray[np.float32], bool]:
    """What the model sees of a sound, [1 or 4, frames, mels], and whether it is longer than what the model hears.

    ``ClapFeatureExtractor`` takes a random part of a long sound; here it is the middle one. Of a fused model's three parts
    each is the middle one of its third, where ``ClapFeatureExtractor`` takes one at random; it also calls one short sound
    of a batch longer where none is, which does not happen here.
    """
    if len(samples) <= settings.samples:
        spectrogram = log_mel(filled_up(samples, settings), settings)
        return np.repeat(spectrogram[None], VIEWS if settings.fused else 1, axis=0), False
    if not settings.fused:
        start = (len(samples) - settings.samples) // 2
        return log_mel(samples[start : start + settings.samples], settings)[None], True
    whole = log_mel(samples, settings)
    frames = settings.frames
    if len(whole) <= frames:
        return np.repeat(whole[None], VIEWS, axis=0), False
    starts = [
        int(part[len(part) // 2]) if len(part) else 0 for part in np.array_split(np.arange(len(whole) - frames + 1), 3)
    ]
    parts = [whole[start : start + frames] for start in starts]
    return np.stack([shrunk(whole, frames), *parts]), True


def shrunk(spectrogram: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """A spectrogram [t, mels] with fewer frames, between two old ones each (torch's bilinear ``interpolate``)."""
    places = np.maximum((np.arange(frames) + 0.5) * (len(spectrogram) / frames) - 0.5, 0.0)
    below = places.astype(np.int64)
    above = np.minimum(below + 1, len(spectrogram) - 1)
    share = (places - below)[:, None]
    return np.asarray(spectrogram[below] * (1.0 - share) + spectrogram[above] * share, dtype=np.float32)


class ClapSounds:
    """Sounds to CLAP's input in two halves."""

    def __init__(self, settings: ClapSettings) -> None:
        self.settings = settings

    def compact(self, sounds: Sequence[Any]) -> Feeds:
        """``spectrograms`` float32 [n, 1 or 4, frames, mels]; of fused models ``longer`` bool [n].

        Raises:
            InputError: a sound that cannot be read.
        """
        found = [views(samples, self.settings) for samples in read_samples(sounds, self.settings.rate)]
        shape = (0, VIEWS if self.settings.fused else 1, self.settings.frames, self.settings.mels)
        compact: Feeds = {"spectrograms": np.stack([v for v, _ in found]) if found else np.zeros(shape, np.float32)}
        if self.settings.fused:
            compact["longer"] = np.array([longer for _, longer in found], dtype=np.bool_)
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """``input_features`` float32, and ``is_longer`` bool [n, 1] of fused models."""
        feeds: Feeds = {"input_features": np.asarray(compact["spectrograms"], dtype=np.float32)}
        if "longer" in compact:
            feeds["is_longer"] = np.asarray(compact["longer"])[:, None]
        return feeds


class ClapProcessor:
    """Sounds (``audio``) and texts (``text``) to graph inputs; see :class:`mmcompress.families.Processor`."""

    def __init__(self, folder: Path, classes: ClassTable | None = None) -> None:
        text = read_object(folder / "config.json").get("text_config") or {}
        # The first positions are those of padding, which has none of its own.
        positions = int(text.get("max_position_embeddings", 514)) - int(text.get("pad_token_id", 1)) - 1
        self.sounds = ClapSounds(read_clap_settings(folder))
        self.classes = () if classes is None else classes.names
        self.texts: TextEncoder | None = None
        self.text_encoders: dict[str, TextEncoder] = {}
        if texts_are_a_table(classes, folder):
            return
        self.texts = TextEncoder(load_tokenizer(folder), read_text_settings(folder, positions))
        self.text_encoders = {"text": self.texts}

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``audio`` to spectrograms, ``text`` to int32 [n, s] with -1 as padding.

        Raises:
            InputError: a sound or text that cannot be used, or a column of another name.
        """
        taken = ["audio"] if self.texts is None else ["audio", "text"]
        unknown = sorted(set(values) - set(taken))
        if unknown:
            raise InputError(f"clap takes the columns {' and '.join(taken)}, got {', '.join(unknown)}")
        compact: Feeds = {}
        if "audio" in values:
            compact.update(self.sounds.compact(values["audio"]))
        if "text" in values and self.texts is not None:
            compact["text"] = self.texts.compact(values["text"])
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """``input_features`` float32 [n, 1 or 4, t, mels] (and ``is_longer``); ``input_ids``, ``attention_mask`` int64 [n, s]."""
        feeds: Feeds = {}
        if "spectrograms" in compact:
            feeds.update(self.sounds.expand(compact))
        if "text" in compact and self.texts is not None:
            feeds.update(self.texts.expand(compact["text"]))
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))
