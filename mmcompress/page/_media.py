"""Pictures, sounds and curves of examples within the page, small enough that the page stays below its limit."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress._sound import Sound
from mmcompress.data._page import curve, short, wav
from mmcompress.page._html import Html, escape, join, tag

BUDGET = 1_150_000
"""Characters that all media of a page take together at most."""
SIDE, FRAMES, SECONDS = 224, 8, 12.0
"""Pixels of a picture's longer side, pictures of a film, seconds of a sound that are kept."""
RATE = 8000
"""Samples per second that sounds have at least on the page."""
_TINY = 96
_SHORTEST = 2.0
_TEXTS, _LETTERS = 5, 600
_KINDS: Mapping[str, str] = {"PNG": "png", "JPEG": "jpeg"}


def preview(value: Any) -> Any:
    """A value as it is kept beside a report: pictures small, films and sounds short."""
    if hasattr(value, "thumbnail"):
        small = value.copy()
        small.thumbnail((SIDE, SIDE))
        return small
    if isinstance(value, Sound):
        return Sound(value.samples[: int(SECONDS * value.rate)], value.rate)
    if isinstance(value, tuple) and value and hasattr(value[0], "thumbnail"):
        places = np.unique(np.linspace(0, len(value) - 1, FRAMES).round().astype(int))
        return tuple(preview(value[int(place)]) for place in places)
    return value


class Media:
    """Shows values, and counts what they take: what would make the page too large is named, not shown."""

    def __init__(self, room: int, sounds: int) -> None:
        self.left = min(BUDGET, room)
        bytes_per_second = 2 * RATE * 4 / 3
        self.seconds = max(_SHORTEST, self.left / bytes_per_second / max(sounds, 1))

    @staticmethod
    def is_sound(value: Any) -> bool:
        """Whether a value is heard."""
        return isinstance(value, Sound)

    def shown(self, value: Any, words: str) -> Html:
        """A value as markup; ``words`` say what a picture is."""
        if isinstance(value, Path):
            return self._picture(value, words)
        if isinstance(value, Sound):
            return self._sound(value, words)
        if isinstance(value, tuple) and value and isinstance(value[0], Path):
            return tag("div", *(self._picture(frame, words) for frame in value), class_="film")
        if isinstance(value, tuple):
            lines = [escape(str(item)[:_LETTERS]) for item in value[:_TEXTS]]
            more = [escape(f"and {len(value) - _TEXTS} more")] if len(value) > _TEXTS else []
            return Html("<br>".join([*lines, *more])) or escape("none")
        if isinstance(value, np.ndarray):
            return Html(curve(value)) if value.ndim == 2 else escape(short(value.ravel()))
        if isinstance(value, float):
            return escape(f"{value:.6g}")
        text = str(value)
        return escape(text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…")

    def _picture(self, file: Path, words: str) -> Html:
        from PIL import Image

        with Image.open(file) as opened:
            opened.load()
            picture = opened if opened.mode in ("RGB", "RGBA", "L") else opened.convert("RGBA")
            small = preview(picture)
        encoded = {kind: _encoded(small, kind) for kind in ("PNG", "JPEG") if kind == "PNG" or small.mode != "RGBA"}
        kind = min(encoded, key=lambda name: len(encoded[name])) if max(small.size) > _TINY else "PNG"
        data = base64.b64encode(encoded[kind]).decode()
        if not self._fits(len(data)):
            return escape("a picture that the page has no room for")
        class_ = "tiny" if max(small.size) <= _TINY else None
        return tag("img", src=f"data:image/{_KINDS[kind]};base64,{data}", alt=words, class_=class_)

    def _sound(self, sound: Sound, words: str) -> Html:
        factor = max(1, sound.rate // RATE)
        kept = sound.samples[: int(self.seconds * sound.rate)]
        kept = kept[: len(kept) // factor * factor].reshape(-1, factor).mean(axis=1)
        played = Sound(kept.astype(np.float32), sound.rate // factor)
        source = wav(played)
        if not self._fits(len(source)):
            return escape("a sound that the page has no room for")
        cut = (
            f"the first {played.seconds:.1f} s of {sound.seconds:.1f} s"
            if sound.seconds - played.seconds > 0.05
            else ""
        )
        player = Html(f'<audio controls preload="metadata" aria-label="{escape(words)}" src="{source}"></audio>')
        return join([player, escape(cut or f"{sound.seconds:.2f} s")])

    def _fits(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def _encoded(picture: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 80} if kind == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
