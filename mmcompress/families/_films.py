"""Films to arrays: the pictures of each, evenly spaced, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families._images import ImageEncoder, ImageSettings, open_picture, resize_and_crop


class FilmEncoder:
    """Films to the model's input in two halves, see :class:`mmcompress.families.Processor`.

    A film is a tuple of pictures in their order. Of a longer one than ``frames`` that many pictures are taken, evenly
    spaced, the first and the last included; a shorter one keeps its own.
    """

    def __init__(self, settings: ImageSettings, frames: int) -> None:
        self.settings, self.frames = settings, frames
        self._images = ImageEncoder(settings)

    def compact(self, films: Sequence[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Films to uint8 [n, frames, h, w, 3], black after the last picture of each, and their numbers of pictures [n].

        Raises:
            InputError: what is no tuple of pictures, or a picture that cannot be read, with its place.
        """
        size = self._images.fixed_size
        pixels = np.zeros((len(films), self.frames, *size, 3), np.uint8)
        counts = np.zeros(len(films), np.int64)
        for row, film in enumerate(films):
            where = f"film {row + 1} of {len(films)}"
            if not isinstance(film, (tuple, list)) or not film:
                raise InputError(f"{where}: expected a tuple of pictures, one or more, got {_told(film)}")
            chosen = evenly_chosen(len(film), self.frames)
            counts[row] = len(chosen)
            for place, number in enumerate(chosen):
                try:
                    picture = open_picture(film[number], self.settings.background)
                    pixels[row, place] = resize_and_crop(picture, self.settings)
                except InputError as error:
                    raise InputError(f"{where}: picture {number + 1}: {error}") from None
        return pixels, counts

    def expand(self, pixels: NDArray[np.uint8], counts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """``pixel_values`` float32 [n, f, 3, h, w] and ``frame_mask`` int64 [n, f], f the longest film there."""
        longest = int(counts.max(initial=1))
        flat = self._images.expand(pixels[:, :longest].reshape(-1, *pixels.shape[2:]))
        values = flat.reshape(len(pixels), longest, *flat.shape[1:])
        return {"pixel_values": values, "frame_mask": (np.arange(longest) < counts[:, None]).astype(np.int64)}


def evenly_chosen(have: int, most: int) -> list[int]:
    """Which of ``have`` pictures are shown, ``most`` at most."""
    return [int(number) for number in np.linspace(0, have - 1, min(most, have)).round()]


def _told(value: Any) -> str:
    return "none" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
