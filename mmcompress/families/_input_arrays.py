"""Values of a model's inputs to arrays, each kind in two halves: see :class:`mmcompress.families.Processor`.

An input's arrays are called ``<input>_values`` and, where it has one, ``<input>_length`` (its steps, int64 [n]), in
both halves; ``<input>_starts`` (tagged texts alone) is where each word's first token stands, -1 after the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmcompress._sound import read_sound
from mmcompress.errors import InputError
from mmcompress.families import PADDING, Feeds
from mmcompress.families._images import ImageEncoder, open_picture, resize_and_crop
from mmcompress.families._inputs import (
    FeaturesInput,
    FilmInput,
    Input,
    PictureInput,
    SeriesInput,
    SoundInput,
    TableInput,
    TextInput,
)
from mmcompress.families._sounds import FLOOR, mel_filters, power_spectrogram
from mmcompress.families._texts import load_tokenizer, read_text_settings, refuse_overflow

_LOUDEST = 32767


class Encoding(Protocol):
    """How the values of one input become arrays; None stands for an absent one."""

    def compact(self, values: Sequence[Any]) -> Feeds:
        """Raw values to arrays of one shape per example."""
        ...

    def expand(self, compact: Feeds) -> Feeds:
        """These to graph inputs, cut to the longest there."""
        ...


def encodings(items: Sequence[Input], folder: Path, tagged: str = "") -> dict[str, Encoding]:
    """How each input is encoded, by name; ``tagged`` is the text whose words are tagged.

    Raises:
        InputError: a tokenizer that is missing or malformed.
    """
    return {item.name: _encoding(item, folder, tagged == item.name) for item in items}


def _encoding(item: Input, folder: Path, tagged: bool) -> Encoding:
    if isinstance(item, PictureInput):
        return Pictures(item)
    if isinstance(item, FilmInput):
        return Films(item)
    if isinstance(item, TextInput):
        return Texts(item, folder, tagged)
    if isinstance(item, (SoundInput, SeriesInput)):
        return Steps(item)
    assert isinstance(item, (TableInput, FeaturesInput))
    return Vectors(item)


def _places(values: Sequence[Any]) -> list[int]:
    """Where a value is there."""
    return [index for index, value in enumerate(values) if value is not None]


def _told(name: str, index: int, values: Sequence[Any], problem: object) -> InputError:
    return InputError(f"{name} {index + 1} of {len(values)}: {problem}")


class Pictures:
    """uint8 [n, h, w, 3], then float32 [n, 3, h, w]."""

    def __init__(self, item: PictureInput) -> None:
        self.name = f"{item.name}_values"
        self.images = ImageEncoder(item.settings)

    def compact(self, values: Sequence[Any]) -> Feeds:
        """Absent pictures are black.

        Raises:
            InputError: a picture that cannot be read.
        """
        size = self.images.settings.output_size
        assert size is not None
        pixels = np.zeros((len(values), *size, 3), np.uint8)
        here = _places(values)
        if here:
            pixels[here] = self.images.compact([values[index] for index in here])
        return {self.name: pixels}

    def expand(self, compact: Feeds) -> Feeds:
        """Rescaled and normalised."""
        return {self.name: self.images.expand(compact[self.name])}


class Films:
    """uint8 [n, f, h, w, 3], then float32 [n, f, 3, h, w]."""

    def __init__(self, item: FilmInput) -> None:
        self.item, self.images = item, ImageEncoder(item.settings)

    def compact(self, values: Sequence[Any]) -> Feeds:
        """Of a film longer than ``frames`` that many pictures, evenly spaced.

        Raises:
            InputError: no pictures, or one that cannot be read.
        """
        size, most, name = self.images.settings.output_size, self.item.frames, self.item.name
        assert size is not None
        pixels = np.zeros((len(values), most, *size, 3), np.uint8)
        length = np.ones(len(values), np.int64)
        for index in _places(values):
            film = values[index]
            if not isinstance(film, (tuple, list)) or not film:
                raise _told(name, index, values, "expected a film: a tuple of pictures")
            chosen = np.linspace(0, len(film) - 1, min(most, len(film))).round().astype(int)
            length[index] = len(chosen)
            for place, number in enumerate(chosen):
                try:
                    picture = open_picture(film[number], self.images.settings.background)
                    pixels[index, place] = resize_and_crop(picture, self.images.settings)
                except InputError as error:
                    raise _told(name, index, values, f"picture {number + 1}: {error}") from None
        return {f"{name}_values": pixels, f"{name}_length": length}

    def expand(self, compact: Feeds) -> Feeds:
        """Rescaled and normalised, cut to the longest film."""
        name = self.item.name
        pixels, length = compact[f"{name}_values"], compact[f"{name}_length"]
        pixels = pixels[:, : int(length.max())]
        flat = self.images.expand(pixels.reshape(-1, *pixels.shape[2:]))
        return {f"{name}_values": flat.reshape(*pixels.shape[:2], *flat.shape[1:]), f"{name}_length": length}


class Texts:
    """int32 [n, max_length] with -1 as padding, then int64 [n, s]; words of tagged texts are tuples."""

    def __init__(self, item: TextInput, folder: Path, tagged: bool) -> None:
        self.item, self.tagged = item, tagged
        self.settings = read_text_settings(folder, item.max_length)
        self.tokenizer = load_tokenizer(folder)
        if not tagged:
            self.tokenizer.enable_truncation(self.settings.max_length)

    def compact(self, values: Sequence[Any]) -> Feeds:
        """Raises InputError for what is no text, or tagged words that do not fit."""
        name, most = self.item.name, self.settings.max_length
        tokens = np.full((len(values), most), PADDING, np.int32)
        starts = np.full((len(values), most), PADDING, np.int32)
        here = _places(values)
        for index in here:
            self._check(index, values)
        given = [list(values[index]) if self.tagged else values[index] for index in here]
        for index, encoding in zip(here, self.tokenizer.encode_batch(given, is_pretokenized=self.tagged), strict=True):
            if len(encoding.ids) > most:
                raise _told(
                    name, index, values, f"{len(encoding.ids)} tokens; at most {most} are tagged: split the text"
                )
            tokens[index, : len(encoding.ids)] = encoding.ids
            if self.tagged:
                first = _first_tokens(encoding.word_ids, len(values[index]))
                if PADDING in first:
                    word = values[index][first.index(PADDING)]
                    raise _told(name, index, values, f"the tokenizer makes nothing of the word {word!r}")
                starts[index, : len(first)] = first
        return {f"{name}_values": tokens, **({f"{name}_starts": starts} if self.tagged else {})}

    def refuse_long(self, texts: Sequence[Any]) -> None:
        """Refuse texts of which :meth:`compact` would leave out the end; tagged ones it refuses by itself.

        Raises:
            InputError: a text has more tokens than the model takes.
        """
        if not self.tagged:
            refuse_overflow(self.tokenizer, texts, self.settings.max_length)

    def _check(self, index: int, values: Sequence[Any]) -> None:
        value = values[index]
        if not self.tagged and not isinstance(value, str):
            raise _told(self.item.name, index, values, f"expected a string, got {type(value).__name__}")
        if self.tagged and not (isinstance(value, (tuple, list)) and value and all(isinstance(w, str) for w in value)):
            raise _told(self.item.name, index, values, "expected a tuple of words, one or more")

    def expand(self, compact: Feeds) -> Feeds:
        """Token ids with their number; an empty text is one padding token."""
        name = self.item.name
        present = compact[f"{name}_values"] != PADDING
        length = np.maximum(present.sum(axis=1), 1).astype(np.int64)
        ids = np.where(present, compact[f"{name}_values"], self.settings.pad_id).astype(np.int64)
        feeds = {f"{name}_values": ids[:, : int(length.max())], f"{name}_length": length}
        if self.tagged:
            starts = compact[f"{name}_starts"]
            words = max(1, int((starts != PADDING).sum(axis=1).max()))
            feeds[f"{name}_starts"] = starts[:, :words].astype(np.int64)
        return feeds


def _first_tokens(words: Sequence[int | None], count: int) -> list[int]:
    first = [PADDING] * count
    for token, word in enumerate(words):
        if word is not None and first[word] == PADDING:
            first[word] = token
    return first


class Steps:
    """Sounds and series: float32 [n, t, c] (samples int16), then float32 cut to the longest."""

    def __init__(self, item: SoundInput | SeriesInput) -> None:
        self.item = item

    def compact(self, values: Sequence[Any]) -> Feeds:
        """What is longer loses its end.

        Raises:
            InputError: no sound, an empty one, readings of another width or that are no numbers.
        """
        name, shape = self.item.name, (self.item.steps, self.item.channels_in)
        steps = np.zeros((len(values), *shape), np.int16 if self._samples else np.float32)
        length = np.ones(len(values), np.int64)
        for index in _places(values):
            try:
                read = self._sound(values[index]) if isinstance(self.item, SoundInput) else _numbers(values[index], 2)
            except InputError as error:
                raise _told(name, index, values, error) from None
            if read.shape[1] != shape[1] or len(read) == 0:
                raise _told(name, index, values, f"expected [t, {shape[1]}], t one or more, got {list(read.shape)}")
            read = read[: shape[0]]
            steps[index, : len(read)] = read
            length[index] = len(read)
        return {f"{name}_values": steps, f"{name}_length": length}

    @property
    def _samples(self) -> bool:
        return isinstance(self.item, SoundInput) and self.item.form == "samples"

    def _sound(self, value: Any) -> NDArray[Any]:
        item = self.item
        assert isinstance(item, SoundInput)
        samples = read_sound(value).at(item.rate).samples[: round(item.seconds * item.rate)]
        if item.form == "samples":
            return np.clip(np.round(samples * _LOUDEST), -_LOUDEST, _LOUDEST).astype(np.int16)[:, None]
        return _log_mel(samples, item)

    def expand(self, compact: Feeds) -> Feeds:
        """Cut to the longest; samples between -1 and 1."""
        name = self.item.name
        length = compact[f"{name}_length"]
        steps = compact[f"{name}_values"][:, : int(length.max())].astype(np.float32)
        return {f"{name}_values": steps / _LOUDEST if self._samples else steps, f"{name}_length": length}


def _log_mel(samples: NDArray[np.float32], item: SoundInput) -> NDArray[np.float32]:
    """The logarithm of the power in Slaney's mel bands, float32 [1 + n // hop, mels]."""
    half, hop = max(1, round(item.window * item.rate / 2)), max(1, round(item.hop * item.rate))
    power = power_spectrogram(samples, 2 * half, hop)
    bands = power @ mel_filters(half + 1, item.mels, item.rate, 0.0, item.rate / 2)
    return np.log(bands + FLOOR).astype(np.float32)


class Vectors:
    """Tables and features: float32 [n, c] in both halves."""

    def __init__(self, item: TableInput | FeaturesInput) -> None:
        self.item = item

    def compact(self, values: Sequence[Any]) -> Feeds:
        """Raises InputError for another number of columns, or what is no number."""
        name, width = self.item.name, self.item.channels_in
        rows = np.zeros((len(values), width), np.float32)
        for index in _places(values):
            try:
                row = _numbers(values[index], 1)
            except InputError as error:
                raise _told(name, index, values, error) from None
            if len(row) != width:
                raise _told(name, index, values, f"expected {width} numbers, got {len(row)}")
            rows[index] = row
        return {f"{name}_values": rows}

    def expand(self, compact: Feeds) -> Feeds:
        """As they are."""
        return {f"{self.item.name}_values": np.asarray(compact[f"{self.item.name}_values"], np.float32)}


def _numbers(value: Any, axes: int) -> NDArray[np.float32]:
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"expected an array of numbers, got {type(value).__name__}") from None
    if array.ndim != axes:
        raise InputError(f"expected numbers of shape {'[t, c]' if axes == 2 else '[c]'}, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise InputError("holds values that are no numbers (NaN or infinite)")
    return array
