"""Sounds: one channel of numbers and a rate, read from files, bytes or arrays. Used by data sets, training and packages alike."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError, require

MAX_SECONDS = 3600.0
"""Longest sound that is read."""
RATES = (1000, 384_000)
"""Lowest and highest sample rate that is believed, in Hz."""


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of sound."""

    samples: NDArray[np.float32]
    """Between -1 and 1, [n]."""
    rate: int
    """Samples per second."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    def at(self, rate: int) -> Sound:
        """The same sound at another rate, resampled by soxr in high quality; itself where the rate is that already.

        Raises:
            MissingExtra: soxr is not installed, and the rate is another.
        """
        if rate == self.rate:
            return self
        soxr = require("soxr", "audio")
        samples = soxr.resample(self.samples, self.rate, rate)
        return Sound(np.asarray(samples, dtype=np.float32), rate)


def read_sound(source: Any, name: str = "") -> Sound:
    """A sound in any accepted form.

    Args:
        source: a path or bytes of a file that libsndfile reads (WAV, FLAC, OGG, MP3), a pair of samples and rate, or a
            :class:`Sound`. Samples are floats in [-1, 1] or integers of their type's range, [n] or [n, channels];
            channels are averaged.
        name: what messages call it; a path's own name where it is empty.

    Raises:
        InputError: it cannot be read, holds no samples, numbers that are none, or an impossible rate.
        MissingExtra: soundfile is not installed, and the source is a file.
    """
    if isinstance(source, Sound):
        return _checked(source.samples, source.rate, name or "the sound")
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{path}: no such sound file")
        return _decode(path.read_bytes(), name or str(path))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), name or "the sound")
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], (int, np.integer)):
        return _checked(np.asarray(source[0]), int(source[1]), name or "the sound")
    raise InputError(
        f"{name or 'the sound'}: expected a path, bytes or a pair (samples, rate), got {type(source).__name__}\n"
        "  An array alone does not tell its sample rate."
    )


def _decode(data: bytes, name: str) -> Sound:
    soundfile = require("soundfile", "audio")
    try:
        samples, rate = soundfile.read(BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{name}: not a readable sound: {error}") from None
    return _checked(samples, int(rate), name)


def _checked(samples: NDArray[Any], rate: int, name: str) -> Sound:
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi":
        raise InputError(
            f"{name}: expected samples [n] or [n, channels] of numbers, got {samples.dtype} {samples.shape}"
        )
    if samples.dtype.kind == "i":
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if len(samples) == 0:
        raise InputError(f"{name}: an empty sound: it holds no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"{name}: a sample rate of {rate} Hz; expected {RATES[0]} to {RATES[1]}")
    if len(samples) > MAX_SECONDS * rate:
        raise InputError(f"{name}: {len(samples) / rate:.0f} s; at most {MAX_SECONDS:.0f} s are read")
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: holds samples that are no numbers")
    return Sound(np.ascontiguousarray(samples, dtype=np.float32), rate)
