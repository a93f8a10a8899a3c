"""What the ``wav2vec2`` family makes of sounds, texts and labels: numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmcompress.errors import InputError
from mmcompress.families import PADDING, Feeds
from mmcompress.families._characters import read_characters
from mmcompress.families._images import read_object
from mmcompress.families._processing import class_names
from mmcompress.families._sounds import Samples, read_extractor, read_samples

Task = Literal["transcribe", "classify"]
_VARIANCE_FLOOR = 1e-7
"""Added to the variance, as ``Wav2Vec2FeatureExtractor`` does, so that silence stays silence."""
_COLUMNS = {"transcribe": ("audio", "text"), "classify": ("audio", "label")}


class WaveSettings(BaseModel):
    """How a sound becomes the model's input, resolved."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    rate: int = Field(16_000, alias="sampling_rate", gt=0)
    """Samples per second."""
    normalize: bool = Field(True, alias="do_normalize")
    """Every sound by itself to mean zero and variance one."""
    masked: bool = Field(False, alias="return_attention_mask")
    """Whether the model is told where a sound ends. Checkpoints whose features are normalised over time (``group``) were
    trained without, and see the silence that fills a sound up to the longest of its batch."""
    padding_value: Literal[0] = 0
    feature_size: Literal[1] = 1


def read_wave_settings(folder: Path) -> WaveSettings:
    """The settings of a model folder or package; where they leave out the mask, config.json's ``feat_extract_norm`` decides.

    Raises:
        InputError: no settings, those of another extractor, or values that are not supported.
    """
    values, file = read_extractor(folder)
    kind = str(values.get("feature_extractor_type", "Wav2Vec2FeatureExtractor"))
    if kind != "Wav2Vec2FeatureExtractor":
        raise InputError(f"{file}: settings of a {kind}\n  expected those of a Wav2Vec2FeatureExtractor")
    given = {name: value for name, value in values.items() if value is not None}
    given.setdefault("return_attention_mask", _shape(folder).get("feat_extract_norm", "group") == "layer")
    try:
        return WaveSettings.model_validate(given)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(f"{file}: {told}") from None


def _shape(folder: Path) -> dict[str, Any]:
    return read_object(folder / "config.json")


def frame_count(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Frames that a stack of convolutions makes of so many samples; 0 or less where they are too few."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame is made of: the fewest that a model takes."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


class SpeechProcessor:
    """Sounds (``audio``) and what the model shall answer (``text`` or ``label``); see :class:`mmcompress.families.Processor`."""

    def __init__(self, folder: Path, task: Task, max_seconds: float) -> None:
        config = _shape(folder)
        # transformers' own values, where a configuration is silent.
        kernels = config.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
        strides = config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
        self.task = task
        self.sounds = Waves(read_wave_settings(folder), max_seconds, receptive_field(kernels, strides))
        if task == "classify":
            self.classes = class_names(config)
        else:
            self.characters = read_characters(folder)
            self.frames = frame_count(self.sounds.most, kernels, strides)
            self.decode = self.characters.decode

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``audio`` to ``samples`` float32 [n, s] and ``sample_counts`` int32 [n]; ``text`` or ``label`` to int32.

        Raises:
            InputError: a sound that is too short or too long, a text that cannot be spelled, a label that is no class,
                or a column of another name.
        """
        unknown = sorted(set(values) - set(_COLUMNS[self.task]))
        if unknown:
            known = " and ".join(_COLUMNS[self.task])
            raise InputError(f"wav2vec2 takes the columns {known} to {self.task}, got {', '.join(unknown)}")
        compact: Feeds = {}
        if "audio" in values:
            compact.update(self.sounds.compact(values["audio"]))
        if "text" in values:
            compact["text"] = self.characters.encode(values["text"], self.frames)
        if "label" in values:
            compact["label"] = self._labels(values["label"])
        return compact

    def _labels(self, labels: Sequence[Any]) -> NDArray[np.int32]:
        for index, label in enumerate(labels):
            if not isinstance(label, (int, np.integer)) or not 0 <= label < len(self.classes):
                raise InputError(
                    f"label {index + 1} of {len(labels)}: {label!r} is no class of this model\n"
                    f"  expected 0 to {len(self.classes) - 1}: {', '.join(self.classes[:6])}"
                )
        return np.asarray(labels, dtype=np.int32)

    def expand(self, compact: Feeds) -> Feeds:
        """``input_values`` float32 [n, s], ``sample_counts`` int64 [n] where they are used, and the targets.

        Targets are ``labels`` (int64 [n, t], -1 after the last; or [n]); ``blank`` is its number for each example.
        """
        feeds: Feeds = {}
        if "samples" in compact:
            feeds.update(self.sounds.expand(compact))
            if self.task == "transcribe":
                feeds["blank"] = np.full(len(compact["samples"]), self.characters.blank_id, np.int64)
            elif not self.sounds.settings.masked:
                del feeds["sample_counts"]
        if "text" in compact:
            longest = max(1, int((compact["text"] != PADDING).sum(axis=1).max(initial=1)))
            feeds["labels"] = compact["text"][:, :longest].astype(np.int64)
        if "label" in compact:
            feeds["labels"] = compact["label"].astype(np.int64)
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))


class Waves:
    """Sounds to the model's input in two halves, as ``Wav2Vec2FeatureExtractor`` makes it."""

    def __init__(
        self,
        settings: WaveSettings,
        max_seconds: float,
        least: int,
        advice: str = "Split the sound, or raise max_seconds: nothing is cut silently.",
    ) -> None:
        self.settings = settings
        self._advice = advice
        self.most = max(least, round(max_seconds * settings.rate))
        self.least = least

    def compact(self, sounds: Sequence[Any]) -> Feeds:
        """``samples`` float32 [n, most], normalised and filled up with zeros, and ``sample_counts`` int32 [n].

        Raises:
            InputError: a sound that cannot be read, is shorter than a frame or longer than ``max_seconds``.
        """
        found = read_samples(sounds, self.settings.rate)
        rows = np.zeros((len(found), self.most), np.float32)
        for index, (row, samples) in enumerate(zip(rows, found, strict=True)):
            where, seconds = f"sound {index + 1} of {len(found)}", len(samples) / self.settings.rate
            if len(samples) > self.most:
                raise InputError(
                    f"{where}: {seconds:.2f} s; at most {self.most / self.settings.rate:g} s are taken\n"
                    f"  {self._advice}"
                )
            if len(samples) < self.least:
                shortest = self.least / self.settings.rate
                raise InputError(f"{where}: {seconds:.4f} s; the model needs {shortest:.4f} s for its first frame")
            row[: len(samples)] = self._normalized(samples)
        counts = np.array([len(samples) for samples in found], np.int32)
        return {"samples": rows, "sample_counts": counts}

    def _normalized(self, samples: Samples) -> Samples:
        if not self.settings.normalize:
            return samples
        return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR), dtype=np.float32)

    def expand(self, compact: Feeds) -> Feeds:
        """``input_values`` float32 [n, s], s the longest sound there, and ``sample_counts`` int64 [n]."""
        longest = int(compact["sample_counts"].max(initial=self.least))
        values = np.ascontiguousarray(compact["samples"][:, :longest])
        return {"input_values": values, "sample_counts": compact["sample_counts"].astype(np.int64)}
