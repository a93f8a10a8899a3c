"""Sounds to arrays with numpy alone, as transformers' feature extractors do it: reading, resampling, log-mel spectrograms.

The settings come from the checkpoint's own ``preprocessor_config.json`` (or transformers 5's ``processor_config.json``).
A sound of another rate than the model's is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmcompress._sound import read_sound
from mmcompress.errors import InputError
from mmcompress.families._images import PREPROCESSOR_FILES, read_object

Samples = NDArray[np.float32]
FLOOR = 1e-10
"""Smallest power of a mel band, so that its logarithm exists."""
DECADES = 8.0
"""Everything this many powers of ten below the loudest place of a chunk is as quiet as that."""
QUIET_SHARE = 0.25
"""A long sound is cut at the quietest place in this last part of a chunk."""


# --- settings ------------------------------------------------------------------------------------------------------


def read_extractor(folder: Path) -> tuple[dict[str, Any], Path]:
    """The settings of a folder's feature extractor as they stand there, and the file that holds them.

    Raises:
        InputError: there are none.
    """
    for name in PREPROCESSOR_FILES:
        file = folder / name
        if not file.is_file():
            continue
        values = read_object(file)
        nested = values.get("feature_extractor")
        if isinstance(nested, dict):
            return nested, file
        if "feature_extractor_type" in values or "sampling_rate" in values:
            return values, file
    raise InputError(
        f"{folder}: no settings for sounds\n"
        f"  expected {' or '.join(PREPROCESSOR_FILES)} with a feature extractor; copy it from the checkpoint's repository"
    )


class LogMelSettings(BaseModel):
    """How a sound becomes Whisper's input, resolved: nothing is left to defaults of a library."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    rate: int = Field(16_000, alias="sampling_rate", gt=0)
    """Samples per second."""
    mels: int = Field(80, alias="feature_size", gt=0)
    """Number of mel bands."""
    window: int = Field(400, alias="n_fft", gt=1)
    """Samples that each spectrum is made of."""
    hop: int = Field(160, alias="hop_length", gt=0)
    """Samples from one spectrum to the next."""
    seconds: int = Field(30, alias="chunk_length", gt=0)
    """What the model hears at a time; shorter sounds are filled up with silence, longer ones are split."""
    dither: Literal[0] = 0

    @property
    def samples(self) -> int:
        """Samples of a chunk."""
        return self.seconds * self.rate

    @property
    def frames(self) -> int:
        """Spectra of a chunk."""
        return self.samples // self.hop


def read_log_mel_settings(folder: Path) -> LogMelSettings:
    """The settings of a model folder or package; what they leave out is as in ``WhisperFeatureExtractor``.

    Raises:
        InputError: no settings, those of another extractor, or values that are not supported.
    """
    values, file = read_extractor(folder)
    kind = str(values.get("feature_extractor_type", "WhisperFeatureExtractor"))
    if kind != "WhisperFeatureExtractor":
        raise InputError(f"{file}: settings of a {kind}\n  expected those of a WhisperFeatureExtractor")
    try:
        return LogMelSettings.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(f"{file}: {told}") from None


# --- sounds --------------------------------------------------------------------------------------------------------


def read_samples(values: Sequence[Any], rate: int) -> list[Samples]:
    """Sounds in any accepted form (see :func:`mmcompress._sound.read_sound`) as samples at one rate, float32 [n] each.

    Raises:
        InputError: one of them cannot be read, or is empty.
    """
    found = []
    for index, value in enumerate(values):
        samples = read_sound(value, f"sound {index + 1} of {len(values)}").at(rate).samples
        # Resampling may leave nothing of a sound of one sample.
        found.append(samples if len(samples) else np.zeros(1, np.float32))
    return found


def split_long(samples: Samples, most: int, block: int) -> list[Samples]:
    """A sound as pieces of at most ``most`` samples, cut at the quietest place of each piece's last quarter.

    Args:
        samples: [n].
        most: longest piece.
        block: samples over which loudness is averaged.
    """
    pieces = []
    while len(samples) > most:
        first = most - max(block, int(most * QUIET_SHARE))
        blocks = samples[first : first + (most - first) // block * block].reshape(-1, block)
        quietest = int((blocks.astype(np.float64) ** 2).mean(axis=1).argmin())
        cut = max(1, first + quietest * block + block // 2)
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


# --- spectrograms --------------------------------------------------------------------------------------------------


@cache
def mel_filters(
    bins: int,
    mels: int,
    rate: int,
    lowest: float,
    highest: float,
    scale: Literal["slaney", "htk"] = "slaney",
    norm: Literal["slaney"] | None = "slaney",
) -> NDArray[np.float64]:
    """Triangular filters from spectra to mel bands, [bins, mels].

    Args:
        bins: frequencies of a spectrum, evenly spaced from 0 to half the rate.
        mels: number of bands; their edges are evenly spaced on the mel scale.
        rate: samples per second.
        lowest: lower edge of the first band in Hz.
        highest: upper edge of the last band in Hz.
        scale: ``slaney`` is linear below 1 kHz and logarithmic above (Slaney, "Auditory Toolbox", 1998), ``htk`` is
            2595 log10(1 + f / 700) (Young et al., "The HTK Book", section 5.4).
        norm: ``slaney`` makes every filter's area one; None its height.
    """
    ends = _mel(np.array([lowest, highest]), scale)
    edges = _hertz(np.linspace(ends[0], ends[1], mels + 2), scale)
    frequencies = np.linspace(0, rate // 2, bins)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2.0 / (edges[2:] - edges[:-2])
    filters.setflags(write=False)
    return filters


_LINEAR = 200.0 / 3.0
"""Hz per mel of Slaney's scale below 1 kHz, which is 15 mels; above, 27 mels are a factor of 6.4."""


def _mel(hertz: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hertz / 700.0))
    above = 15.0 + np.log(np.maximum(hertz, 1.0) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hertz >= 1000.0, above, hertz / _LINEAR)


def _hertz(mels: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mels / 2595.0) - 1.0))
    return np.where(mels >= 15.0, 1000.0 * np.exp((mels - 15.0) * (np.log(6.4) / 27.0)), mels * _LINEAR)


def power_spectrogram(samples: NDArray[np.floating[Any]], window: int, hop: int) -> NDArray[np.float64]:
    """Power of the Fourier transform under a Hann window, a frame every ``hop`` samples: [1 + n // hop, window // 2 + 1].

    Frames are centred on their sample; the ends of the sound are mirrored.
    """
    padded = np.pad(samples.astype(np.float64), window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)
    spectra = np.fft.rfft(frames * hann, axis=1)
    return np.asarray(spectra.real**2 + spectra.imag**2)


def whisper_features(samples: Samples, settings: LogMelSettings) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram of at most a chunk of sound, [mels, frames].

    log10 of each band's power, not below :data:`FLOOR` nor :data:`DECADES` under the loudest, then (x + 4) / 4 (Radford
    et al., arXiv:2212.04356, section 2.2, and openai/whisper's ``audio.py``).
    """
    if len(samples) > settings.samples:
        raise ValueError(f"{len(samples)} samples are more than a chunk of {settings.samples}")
    chunk = np.pad(samples, (0, settings.samples - len(samples)))
    power = power_spectrogram(chunk, settings.window, settings.hop)[: settings.frames]
    filters = mel_filters(settings.window // 2 + 1, settings.mels, settings.rate, 0.0, 8000.0)
    bands = np.log10(np.maximum(power @ filters, FLOOR))
    bands = np.maximum(bands, bands.max() - DECADES)
    return np.asarray((bands.T + 4.0) / 4.0, dtype=np.float32)
