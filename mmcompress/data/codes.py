"""Generated sounds: spoken codes in noise. Nothing is downloaded, every sound follows from its index, numpy makes it.

A sound is one to ``digits`` words of a small vocabulary with gaps between them. Each word is a glide between two vowels
(two formants, each the centre of a band that the pitch modulates) under a tone that rises, falls or stays; the speaker
sets the pitch and the length of the vocal tract, and rate, loudness and gaps vary by chance. White noise lies over it.

What a model has to learn: the same two vowels in the other order are another word, and neither pitch nor loudness nor
length tell words apart. Everything lies below 2 kHz, so that a sample rate of 4,000 Hz is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mmcompress._sound import Sound
from mmcompress.data import Dataset, Example

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_VOWELS = {"i": (280.0, 1500.0), "u": (300.0, 850.0), "a": (760.0, 1150.0), "e": (500.0, 1380.0), "o": (520.0, 850.0)}
"""First and second formant in Hz."""
_WORDS = ("eo", "ua", "iu", "ai", "oa", "ae", "ui", "eu", "au", "ia")
"""The two vowels of each word."""
_TONES = (0.0, 0.12, -0.12)
"""Rise of the pitch from the beginning of a word to its end, as a share."""
_LENGTH = 0.2
"""Seconds of a word at the middle rate of speaking."""


class Codes(Dataset):
    """Spoken digit strings in noise, generated; ``label`` is the first word or the speaker."""

    split: Literal["train", "validation", "test"]
    size: int = Field(ge=1)
    """Number of sounds."""
    seed: int = 0
    digits: int = Field(3, ge=1, le=12)
    """Most words per sound; the fewest is one."""
    words: tuple[str, ...] = Field(DIGITS, min_length=1, max_length=10)
    """The vocabulary."""
    rate: int = Field(16_000, ge=4_000, le=48_000)
    """Samples per second."""
    snr: float = Field(15.0, ge=-20, le=80)
    """Power of the words over that of the noise, in decibels."""
    speakers: int = Field(8, ge=1, le=64)
    """Number of speakers, the same ones in each split."""
    label: Literal["word", "speaker"] = "word"
    """What the class is: the first word, or who speaks."""

    @field_validator("words")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value) or any(word.split() != [word] for word in value):
            raise ValueError("expected distinct words without spaces, such as [zero, one]")
        return value

    def read(self) -> CodeExamples:
        """The split; nothing is made before it is asked for."""
        return CodeExamples(self)


@dataclass(frozen=True)
class Code:
    """What is said, and how."""

    words: tuple[int, ...]
    """Indices of the vocabulary."""
    speaker: int
    pitch: float
    """In Hz."""
    tract: float
    """Factor of all formants."""
    lengths: tuple[float, ...]
    """Seconds of each word."""
    gaps: tuple[float, ...]
    """Seconds of silence before each word, and at the end."""
    loudness: float
    """Root mean square of the words."""


def code_of(spec: Codes, index: int) -> Code:
    """What sound ``index`` says, without making it."""
    rng = _source(spec, index, "code")
    words = tuple(int(rng.random() * len(spec.words)) for _ in range(1 + int(rng.random() * spec.digits)))
    speaker = int(rng.random() * spec.speakers)
    place = (speaker + 0.5) / spec.speakers
    pace = 0.85 + 0.3 * rng.random()
    return Code(
        words,
        speaker,
        pitch=90.0 * 2.6**place * (0.96 + 0.08 * rng.random()),
        # Neighbours in pitch differ in their tract: both together tell a speaker.
        tract=0.92 + 0.16 * ((speaker * 0.618) % 1.0),
        lengths=tuple(_LENGTH * pace * (0.9 + 0.2 * rng.random()) for _ in words),
        gaps=tuple(0.04 + 0.1 * rng.random() for _ in range(len(words) + 1)),
        loudness=0.04 * 4.0 ** rng.random(),
    )


def speak(code: Code, rate: int) -> NDArray[np.float32]:
    """A code without noise, float32 [n]."""
    parts = [np.zeros(round(code.gaps[0] * rate))]
    for word, length, gap in zip(code.words, code.lengths, code.gaps[1:], strict=True):
        parts += [_word(word, code, round(length * rate), rate), np.zeros(round(gap * rate))]
    spoken = sum(len(part) for part in parts[1::2])
    samples = np.concatenate(parts)
    return np.asarray(samples * (code.loudness / np.sqrt((samples**2).sum() / spoken)), dtype=np.float32)


def _word(word: int, code: Code, count: int, rate: int) -> NDArray[np.float64]:
    time = np.linspace(0.0, 1.0, count)
    glide = np.clip((time - 0.35) / 0.3, 0.0, 1.0)
    pitch = code.pitch * (1.0 + _TONES[word % 3] * (time - 0.5))
    turns = 2.0 * np.pi / rate
    buzz = 0.6 + 0.4 * np.cos(np.cumsum(pitch * turns))
    (low, high), (low_end, high_end) = (_VOWELS[vowel] for vowel in _WORDS[word])
    voice = np.sin(np.cumsum((low + (low_end - low) * glide) * (code.tract * turns)))
    voice += 0.7 * np.sin(np.cumsum((high + (high_end - high) * glide) * (code.tract * turns)))
    # Words swell and fade within 12 % of their length, without a click.
    envelope = np.minimum(1.0, np.minimum(time, 1.0 - time) / 0.12)
    return np.asarray(voice * buzz * envelope)


def _source(spec: Codes, index: int, purpose: str) -> Random:
    """A random source of its own for every purpose."""
    return Random(f"mmcompress codes/{spec.seed}/{spec.split}/{index}/{purpose}")


class CodeExamples:
    """The examples of a :class:`Codes` split."""

    def __init__(self, spec: Codes) -> None:
        self.spec = spec
        self.ids: Sequence[str] = tuple(f"codes/{spec.seed}/{spec.split}/{index}" for index in range(spec.size))
        self.columns = frozenset({"audio", "texts", "label"})
        self.notes: Mapping[str, int] = {}

    def __len__(self) -> int:
        return self.spec.size

    def __getitem__(self, index: int) -> Example:
        spec = self.spec
        example_id = self.ids[index]
        code = code_of(spec, index % spec.size)
        samples = speak(code, spec.rate)
        level = code.loudness * 10.0 ** (-spec.snr / 20.0)
        noise = np.random.default_rng(int(_source(spec, index % spec.size, "noise").random() * 2**53))
        samples += np.float32(level) * noise.standard_normal(len(samples), dtype=np.float32)
        values = {
            "audio": Sound(np.clip(samples, -1.0, 1.0), spec.rate),
            "texts": (" ".join(spec.words[word] for word in code.words),),
            "label": code.speaker if spec.label == "speaker" else code.words[0],
        }
        return Example(example_id, values)

    def fingerprint(self, index: int) -> str:
        """The digest of everything that the sound follows from."""
        spec = self.spec.model_dump_json(exclude={"split", "size", "label"})
        return hashlib.sha256(f"{spec} {self.ids[index]}".encode()).hexdigest()

    def classes(self) -> Sequence[str]:
        """The vocabulary, or ``speaker 0`` and so on."""
        if self.spec.label == "word":
            return self.spec.words
        return tuple(f"speaker {number}" for number in range(self.spec.speakers))
