"""Whisper's numpy half: sounds and transcripts to arrays, and the search for a transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import PADDING, Feeds, Run
from mmcompress.families._generate import Decoding, generate, step
from mmcompress.families._sounds import read_log_mel_settings, read_samples, split_long, whisper_features
from mmcompress.families._whisper_text import Transcripts, TranscriptSettings

MOST_CHUNKS = 64
"""Chunks of sound that are answered at a time."""
BLOCKS_PER_SECOND = 20
"""Of a long sound, loudness is averaged over so many blocks a second, to find where to split it."""


class WhisperProcessor:
    """Sounds (``audio``) and transcripts (``text``) to arrays; see :class:`mmcompress.families.Processor`.

    A sound that is longer than a chunk takes several rows of ``input_features``; ``chunks`` tells how many.
    """

    def __init__(self, folder: Path, settings: TranscriptSettings) -> None:
        self.sounds = _Sounds(folder)
        self.texts = Transcripts(folder, settings)

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``audio`` to float32 features [chunks, mels, frames] with their number per sound, ``text`` to int32 [n, s].

        Raises:
            InputError: a sound or text that cannot be used, or a column of another name.
        """
        unknown = sorted(set(values) - {"audio", "text"})
        if unknown:
            raise InputError(f"whisper takes the columns audio and text, got {', '.join(unknown)}")
        compact: Feeds = {}
        if "audio" in values:
            compact.update(self.sounds.compact(values["audio"]))
        if "text" in values:
            compact["text"] = self.texts.compact(values["text"])
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """``input_features``, and for training ``decoder_input_ids`` and ``labels``, or else how to search."""
        feeds: Feeds = {}
        if "audio" in compact:
            feeds.update(input_features=compact["audio"], chunks=compact["audio_chunks"].astype(np.int64))
        if "text" in compact:
            feeds.update(self.texts.expand(compact["text"]))
        elif "audio" in compact:
            feeds.update(search_feeds(self.texts.settings, len(compact["audio_chunks"])))
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Rows of tokens to texts."""
        return self.texts.decode(rows)


class _Sounds:
    """The sounds' half, with its resolved settings."""

    def __init__(self, folder: Path) -> None:
        self.settings = read_log_mel_settings(folder)

    def compact(self, values: Sequence[Any]) -> Feeds:
        settings = self.settings
        pieces = [
            split_long(samples, settings.samples, max(1, settings.rate // BLOCKS_PER_SECOND))
            for samples in read_samples(values, settings.rate)
        ]
        features = [whisper_features(piece, settings) for sound in pieces for piece in sound]
        shape = (-1, settings.mels, settings.frames)
        return {
            "audio": np.asarray(features, np.float32).reshape(shape),
            "audio_chunks": np.array([len(sound) for sound in pieces], np.int32),
        }


# --- searching -----------------------------------------------------------------------------------------------------

_LISTS = ("languages", "end", "suppress", "suppress_first")


def search_feeds(settings: TranscriptSettings, count: int) -> Feeds:
    """How to search, as arrays with a row per sound: ``prompt`` [n, p], ``limits`` [n, 2], lists of tokens [n, k]."""

    def rows(values: Sequence[int]) -> NDArray[np.int64]:
        return np.tile(np.array(values, np.int64).reshape(1, -1), (count, 1))

    feeds = {name: rows(getattr(settings, name)) for name in _LISTS}
    return {**feeds, "prompt": rows(settings.prompt), "limits": rows([settings.max_tokens, settings.room])}


def transcribe(run: Run, feeds: Feeds, beams: int, length: int | None) -> NDArray[np.int32]:
    """Tokens of each sound, int32 [n, s]; those of its chunks one after the other, each searched for by itself.

    Where the model has to tell the language, it is the likeliest after the start token, chunk by chunk. ``length``
    forces so many tokens per chunk, at most as many as the model has places for.
    """
    languages, end, suppress, suppress_first = (tuple(feeds[name][0].tolist()) for name in _LISTS)
    max_tokens, room = feeds["limits"][0].tolist()
    decoding = Decoding(end, max_tokens, beams, suppress=suppress, suppress_first=suppress_first)
    owners = np.repeat(np.arange(len(feeds["chunks"])), feeds["chunks"])
    rows: list[list[int]] = [[] for _ in feeds["chunks"]]
    for start in range(0, len(owners), MOST_CHUNKS):
        owner = owners[start : start + MOST_CHUNKS]
        state = run("encoder_model", {"input_features": feeds["input_features"][start : start + MOST_CHUNKS]})
        prompt = feeds["prompt"][owner]
        if languages:
            logits, _ = step(run, "decoder_model", state, prompt[:, :1])
            prompt[:, 1] = np.array(languages)[logits[:, languages].argmax(axis=1)]
        forced = None if length is None else min(length, room)
        for index, tokens in zip(owner, generate(run, "decoder_model", state, prompt, decoding, forced), strict=True):
            rows[index] += [int(token) for token in tokens if token != PADDING]
    result = np.full((len(rows), max(1, *map(len, rows))), PADDING, np.int32)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result
