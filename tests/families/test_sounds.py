"""Sounds to log-mel spectrograms, against transformers' feature extractor and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from mmcompress._sound import Sound
from mmcompress.errors import InputError
from mmcompress.families._sounds import (
    LogMelSettings,
    mel_filters,
    power_spectrogram,
    read_log_mel_settings,
    read_samples,
    split_long,
    whisper_features,
)

EXTRACTORS: list[dict[str, Any]] = [
    {},
    {"feature_size": 128},
    {"feature_size": 24, "sampling_rate": 16_000, "chunk_length": 3, "n_fft": 256, "hop_length": 128},
]


def noise(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).standard_normal(count) * 0.1).astype(np.float32)


@pytest.mark.parametrize("fields", EXTRACTORS)
@pytest.mark.parametrize("share", [0.01, 0.6, 1.0])
def test_features_equal_those_of_transformers(fields: dict[str, Any], share: float) -> None:
    theirs = WhisperFeatureExtractor(**fields)
    settings = LogMelSettings.model_validate(theirs.to_dict())
    samples = noise(int(settings.samples * share))
    padded = np.pad(samples, (0, settings.samples - len(samples)))
    expected = theirs._np_extract_fbank_features(padded[None], "cpu")[0]
    found = whisper_features(samples, settings)
    assert found.shape == (settings.mels, settings.frames) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6
    # Its torch half computes in single precision.
    public = theirs(samples, sampling_rate=settings.rate, return_tensors="np")["input_features"][0]
    assert np.abs(found - public).max() < 1e-3


def test_filters_equal_those_of_transformers_on_both_scales() -> None:
    for scale, norm in (("slaney", "slaney"), ("htk", None), ("slaney", None)):
        found = mel_filters(257, 64, 48_000, 50.0, 14_000.0, scale, norm)  # type: ignore[arg-type]
        assert np.abs(found - mel_filter_bank(257, 64, 50.0, 14_000.0, 48_000, norm, scale)).max() < 1e-12


def test_a_tone_stands_in_its_own_bin() -> None:
    rate, window = 8000, 200
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    power = power_spectrogram(tone, window, 100)
    assert power.shape == (81, 101)
    assert (power[5:-5].argmax(axis=1) == 25).all()  # 40 Hz per bin
    # A sine under a Hann window of n samples: amplitude n / 4 in its bin.
    assert power[40, 25] == pytest.approx((window / 4) ** 2, rel=1e-9)


def test_silence_is_the_floor() -> None:
    settings = LogMelSettings(seconds=1)
    assert (whisper_features(np.zeros(10, np.float32), settings) == (np.log10(1e-10) + 4) / 4).all()
    with pytest.raises(ValueError, match="more than a chunk"):
        whisper_features(np.zeros(settings.samples + 1, np.float32), settings)


def test_a_long_sound_is_cut_where_it_is_quiet_and_nothing_is_lost() -> None:
    samples = noise(2500)
    samples[850:900] = 0.0
    pieces = split_long(samples, 1000, 50)
    assert len(pieces[0]) == 875
    assert max(map(len, pieces)) <= 1000
    assert np.array_equal(np.concatenate(pieces), samples)
    assert len(split_long(samples[:1000], 1000, 50)) == 1


def test_sounds_are_resampled_and_wrong_ones_told() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32)
    (found,) = read_samples([Sound(tone, 8000)], 16_000)
    assert len(found) == 16_000
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(found - expected)[1000:-1000].max() < 1e-3
    assert len(read_samples([Sound(tone[:1], 8000)], 1000)[0]) == 1
    with pytest.raises(InputError, match="sound 2 of 2: an empty sound"):
        read_samples([Sound(tone, 8000), (np.zeros(0, np.float32), 8000)], 16_000)


def test_settings_are_read_from_either_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no settings for sounds"):
        read_log_mel_settings(tmp_path)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    settings = read_log_mel_settings(tmp_path)
    assert (settings.mels, settings.samples, settings.frames) == (128, 480_000, 3000)
    file = tmp_path / "preprocessor_config.json"
    nested = {"feature_extractor": {**json.loads(file.read_text()), "hop_length": None}}
    file.rename(tmp_path / "old.json")
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_log_mel_settings(tmp_path) == settings
    (tmp_path / "processor_config.json").write_text(json.dumps({"sampling_rate": 16_000, "dither": 0.1}))
    with pytest.raises(InputError, match="dither"):
        read_log_mel_settings(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}))
    with pytest.raises(InputError, match="WhisperFeatureExtractor"):
        read_log_mel_settings(tmp_path)
