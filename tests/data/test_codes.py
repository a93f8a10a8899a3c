from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress._sound import Sound
from mmcompress.component import dump, parse
from mmcompress.data._splits import check_disjoint
from mmcompress.data.codes import DIGITS, Code, Codes, code_of, speak

pytestmark = pytest.mark.unit


def code(*words: int, pitch: float = 100.0, tract: float = 1.0) -> Code:
    return Code(words, 0, pitch, tract, (0.2,) * len(words), (0.1,) * (len(words) + 1), 0.1)


def peaks(samples: np.ndarray, rate: int) -> tuple[float, float]:
    """The strongest frequency below and above 820 Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    low = frequencies < 820
    return float(frequencies[low][spectrum[low].argmax()]), float(frequencies[~low][spectrum[~low].argmax()])


def test_a_word_glides_from_one_vowel_to_another() -> None:
    rate = 16_000
    samples = speak(code(0), rate)
    assert len(samples) == round(0.4 * rate)
    assert not samples[: round(0.1 * rate)].any() and not samples[round(0.3 * rate) :].any()
    word = samples[round(0.1 * rate) : round(0.3 * rate)]
    assert np.sqrt((word**2).mean()) == pytest.approx(0.1, rel=1e-3)
    # zero is e (500 and 1,380 Hz), then o (520 and 850 Hz).
    for part, expected in ((word[: len(word) // 3], (500, 1380)), (word[-len(word) // 3 :], (520, 850))):
        assert peaks(part, rate) == pytest.approx(expected, abs=25)
    tall = speak(code(0, tract=1.1), rate)[round(0.1 * rate) :][: len(word) // 3]
    assert peaks(tall, rate) == pytest.approx((550, 1518), abs=25)


def test_all_words_differ_and_each_vowel_pair_has_its_reverse_or_its_own_vowels() -> None:
    spoken = np.stack([speak(code(word), 8000) for word in range(10)])
    spoken /= np.linalg.norm(spoken, axis=1, keepdims=True)
    assert np.abs(spoken @ spoken.T - np.eye(10)).max() < 0.6


def test_the_noise_has_the_stated_power() -> None:
    for snr in (0.0, 20.0):
        spec = Codes(split="test", size=8, snr=snr)
        examples = spec.read()
        for index in range(8):
            said = code_of(spec, index)
            noise = examples[index].values["audio"].samples - speak(said, spec.rate)
            measured = 20 * np.log10(said.loudness / np.sqrt((noise**2).mean()))
            assert measured == pytest.approx(snr, abs=0.3)


def test_examples_say_what_they_are() -> None:
    examples = Codes(split="train", size=300, digits=4).read()
    assert examples.columns == set(examples[0].values)
    lengths, firsts = set(), set()
    for index in range(300):
        values = examples[index].values
        sound, (text,) = values["audio"], values["texts"]
        assert isinstance(sound, Sound) and sound.rate == 16_000 and sound.samples.dtype == np.float32
        assert np.abs(sound.samples).max() <= 1.0
        words = text.split(" ")
        assert set(words) <= set(DIGITS)
        assert examples.classes()[values["label"]] == words[0]
        lengths.add(len(words))
        firsts.add(words[0])
        assert 0.15 * len(words) < sound.seconds < 0.4 * len(words) + 0.2
    assert lengths == {1, 2, 3, 4} and firsts == set(DIGITS)


def test_speakers_are_told_apart_by_pitch_and_are_the_same_in_each_split() -> None:
    pitches: dict[int, list[float]] = {number: [] for number in range(8)}
    for split in ("train", "test"):
        spec = Codes.model_validate({"split": split, "size": 300, "label": "speaker"})
        for index in range(300):
            said = code_of(spec, index)
            pitches[said.speaker].append(said.pitch)
        assert spec.read()[0].values["label"] == code_of(spec, 0).speaker
        assert len(spec.read().classes()) == 8
    ranges = [(min(values), max(values)) for _, values in sorted(pitches.items())]
    assert all(low[1] < high[0] for low, high in pairwise(ranges))


def test_the_same_examples_again_and_others_by_seed_split_and_index() -> None:
    one, again = (Codes(split="train", size=size).read() for size in (5, 500))
    assert np.array_equal(one[4].values["audio"].samples, again[4].values["audio"].samples)
    assert one.fingerprint(4) == again.fingerprint(4) and one.ids[4] == again.ids[4]
    others = [Codes(split="train", size=5, seed=1).read(), Codes(split="test", size=5).read()]
    assert len({split.fingerprint(4) for split in (one, *others)}) == 3
    assert len({split[4].values["audio"].samples.tobytes() for split in (one, *others)}) == 3
    check_disjoint(one, *others)
    assert one[-1].id == one.ids[4]
    with pytest.raises(IndexError):
        one[5]


def test_lower_rates_and_another_vocabulary() -> None:
    spec = Codes(split="train", size=50, rate=4000, words=("on", "off"), digits=1, snr=40.0)
    examples = spec.read()
    assert {examples[i].values["texts"][0] for i in range(50)} == {"on", "off"}
    assert examples.classes() == ("on", "off") and examples[0].values["audio"].rate == 4000
    assert parse("data", dump(spec)) == spec
    for wrong in ({"words": ["a", "a"]}, {"words": ["two words"]}, {"rate": 2000}, {"digits": 0}):
        with pytest.raises(ValidationError):
            Codes.model_validate({"split": "train", "size": 5, **wrong})


def test_a_sound_is_made_in_under_two_milliseconds() -> None:
    examples = Codes(split="train", size=200).read()
    best = 1.0
    for _ in range(3):
        started = time.process_time()
        for index in range(50):
            examples[index]
        best = min(best, (time.process_time() - started) / 50)
    assert best < 0.002
