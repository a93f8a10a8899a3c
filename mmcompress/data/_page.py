"""Looking at data: what the splits hold in a few lines, and a page of examples that needs nothing beside itself."""

from __future__ import annotations

import base64
import html
import io
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._sound import Sound
from mmcompress.data import Example, Examples
from mmcompress.data._splits import overlaps, subset, tag_classes

_LARGEST = 320
"""Pixels of a picture's longer side on the page."""
_ORDER = ("question", "answers", "text", "texts", "words", "label", "labels", "number", "table", "series", "features")
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 1.5rem auto; max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } pre { white-space: pre-wrap; margin: 0 0 1.2rem; opacity: .8; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
article { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .5rem; padding: .7rem; overflow: hidden; }
h2 { font: .75rem ui-monospace, monospace; opacity: .65; margin: 0 0 .5rem; overflow-wrap: anywhere; }
dl { margin: .5rem 0 0; } dt { font-size: .72rem; opacity: .65; } dd { margin: 0 0 .35rem; overflow-wrap: anywhere; }
img { max-width: 100%; min-width: 6rem; image-rendering: pixelated; background: #8884; border-radius: .25rem; }
.film { display: flex; gap: 2px; overflow-x: auto; } .film img { min-width: 3.5rem; }
audio, svg { width: 100%; display: block; } svg { height: 4rem; } polyline { fill: none; stroke: currentColor; }
mark { border-radius: .2rem; padding: 0 .15rem; } sub { font-size: .62rem; opacity: .8; }
"""


def summary(splits: Mapping[str, Examples], samples: int) -> list[str]:
    """What each split holds, and what is twice in it or in two: lines for people.

    Args:
        splits: By name.
        samples: How many examples of each are opened for the sizes of pictures, sounds and texts.
    """
    lines = []
    for name, examples in splits.items():
        classes = f", {len(examples.classes())} classes" if examples.classes() else ""
        lines.append(f"{name}: {len(examples):,} examples of {', '.join(sorted(examples.columns))}{classes}")
        shown = subset(examples, samples, seed=0)
        opened = [shown[i].values for i in range(len(shown))]
        for column in sorted(examples.columns):
            found = [values[column] for values in opened]
            if column == "label" and examples.classes():
                found = [examples.classes()[label] for label in found]
            lines.append(f"  {column}: {_sizes(found)}")
        if len(shown) < len(examples):
            lines.append(f"  (sizes of {len(shown)} examples, drawn at random)")
        twice = sum(count - 1 for count in Counter(examples.fingerprint(i) for i in range(len(examples))).values())
        lines += [f"  {twice:,} are copies of another example of this split"] if twice else []
        lines += [f"  {count:,} {reason}" for reason, count in examples.notes.items()]
    shared = overlaps(splits)
    return [*lines, *(shared or ["no example is in two splits"] if len(splits) > 1 else [])]


def _sizes(values: Sequence[Any]) -> str:
    """The range of what a column holds."""
    first = values[0]
    if hasattr(first, "getpixel"):
        modes = ", ".join(sorted({value.mode for value in values}))
        return f"pictures, {_range([v.width for v in values])} x {_range([v.height for v in values])} pixels, {modes}"
    if isinstance(first, Sound):
        rates = ", ".join(f"{rate:,}" for rate in sorted({value.rate for value in values}))
        return f"sounds, {_range([v.seconds for v in values])} s at {rates} Hz"
    if isinstance(first, str):
        frequent = Counter(values).most_common(1)[0]
        return f"{len(set(values))} different, {frequent[0]!r:.50} in {frequent[1] / len(values):.0%}"
    if isinstance(first, np.ndarray):
        axes = [_range([value.shape[axis] for value in values]) for axis in range(first.ndim)]
        return f"arrays [{', '.join(axes)}] of {_range([float(n) for v in values for n in (v.min(), v.max())])}"
    if isinstance(first, tuple):
        return f"{_range([len(value) for value in values])} each, {_sizes([i for v in values for i in v] or [''])}"
    frequent = Counter(values).most_common(1)[0]
    return f"{_range(values)}, {frequent[0]} in {frequent[1] / len(values):.0%}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.4g}" if low == high else f"{low:,.4g} to {high:,.4g}"


def page(title: str, examples: Examples, lines: Sequence[str], count: int) -> str:
    """A page of ``count`` examples, drawn at random but always the same, as HTML with everything inside it."""
    shown = subset(examples, count, seed=0)
    cards = "\n".join(_card(shown[i], examples) for i in range(len(shown)))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n"
        f"<pre>{html.escape(chr(10).join(lines))}</pre>\n<main>\n{cards}\n</main></html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """Write a page, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _card(example: Example, examples: Examples) -> str:
    parts = []
    for name, value in sorted(example.values.items(), key=lambda item: (not _is_seen(item[1]), _rank(item[0]))):
        if name == "tags" and "words" in example.values:
            continue
        if name in ("label", "labels") and examples.classes():
            names = examples.classes()
            value = tuple(names[i] for i in value) if isinstance(value, tuple) else names[value]
        if name == "words" and "tags" in example.values:
            shown = _tagged(value, example.values["tags"], tag_classes(examples))
        elif name == "answers":
            shown = html.escape(", ".join(f"{answer} ({n})" for answer, n in Counter(value).most_common()))
        else:
            shown = _shown(value)
        parts.append(f"<dt>{html.escape(name)}</dt><dd>{shown}</dd>")
    return f"<article><h2>{html.escape(example.id)}</h2><dl>{''.join(parts)}</dl></article>"


def _rank(name: str) -> tuple[int, str]:
    """Questions before their answers, texts before classes, slices last."""
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name


def _is_seen(value: Any) -> bool:
    first = value[0] if isinstance(value, tuple) and value else value
    return hasattr(first, "getpixel") or isinstance(first, Sound)


def _shown(value: Any) -> str:
    if hasattr(value, "getpixel"):
        return _picture(value)
    if isinstance(value, Sound):
        return f'<audio controls preload="metadata" src="{wav(value)}"></audio>{value.seconds:.2f} s, {value.rate:,} Hz'
    if isinstance(value, tuple) and value and hasattr(value[0], "getpixel"):
        return f'<div class="film">{"".join(_picture(frame) for frame in value)}</div>'
    if isinstance(value, tuple):
        return "<br>".join(html.escape(str(item)) for item in value) or "<i>none</i>"
    if isinstance(value, np.ndarray):
        return curve(value) if value.ndim == 2 else html.escape(short(value))
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def short(array: NDArray[Any]) -> str:
    """The first numbers of a vector."""
    numbers = ", ".join(f"{number:.4g}" for number in array[:12])
    return f"[{numbers}{', ...' if len(array) > 12 else ''}]"


def _tagged(words: Sequence[str], tags: Sequence[int], names: Sequence[str]) -> str:
    parts = []
    for word, tag in zip(words, tags, strict=True):
        name = names[tag] if names else str(tag)
        text = html.escape(word)
        parts.append(text if name == "O" else f"<mark>{text} <sub>{html.escape(name)}</sub></mark>")
    return " ".join(parts)


def _picture(picture: Any) -> str:
    small = picture.copy()
    small.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    photo = small.mode == "RGB" and max(picture.size) > _LARGEST
    small.save(buffer, "JPEG" if photo else "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = "jpeg" if photo else "png"
    return (
        f'<img alt="" title="{picture.width} x {picture.height}, {picture.mode}" src="data:image/{kind};base64,{data}">'
    )


def wav(sound: Sound) -> str:
    """A sound as the address of a WAV file that lies in the address itself."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes((np.clip(sound.samples, -1, 1) * 32767).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def curve(series: NDArray[Any]) -> str:
    """Each channel of a series as a line."""
    low, high = float(series.min()), float(series.max())
    step, scale = 100 / max(1, len(series) - 1), 30 / ((high - low) or 1.0)
    lines = ""
    for channel in series.T[:8]:
        points = " ".join(f"{i * step:.2f},{31 - (v - low) * scale:.2f}" for i, v in enumerate(channel.tolist()))
        lines += f'<polyline vector-effect="non-scaling-stroke" points="{points}"/>'
    shape = " x ".join(map(str, series.shape))
    return f'<svg viewBox="0 0 100 32" preserveAspectRatio="none">{lines}</svg>{shape}, {low:.4g} to {high:.4g}'
