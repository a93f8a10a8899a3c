"""The same facts of a scene said in other styles of English, and in Chinese; and captions cut into tagged words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

from mmcompress.data._scenes_words import (
    ANY_SHAPE,
    AROUND_WORDS,
    COLOUR_WORDS,
    COLUMN_WORDS,
    RELATION_WORDS,
    ROW_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    Caption,
    Mention,
)
from mmcompress.data._scenes_words import vocabulary as plain_vocabulary
from mmcompress.data._scenes_world import COLOURS, SHAPES, SIZES, pick

Style = Literal["plain", "terse", "formal", "casual", "zh"]
"""``zh`` is Chinese, in characters without spaces."""


def restyle(style: Style, caption: Caption, rng: random.Random) -> str:
    """The facts of a caption in another style; ``plain`` leaves it as it is."""
    return caption.words if style == "plain" else _STYLES[style](caption, rng)


def style_vocabulary(style: Style) -> list[str]:
    """Every word (in Chinese: every character) that a caption of a style can hold, sorted; case and marks aside."""
    if style == "plain":
        return plain_vocabulary()
    if style == "zh":
        tables = (_ZH_COLOURS, _ZH_SHAPES, _ZH_SIZES, _ZH_PLACES, tuple(_ZH_RELATIONS.values()), _ZH_FIXED, _ZH_COUNTS)
        return sorted({character for table in tables for word in table for character in word})
    words = {*COLOURS, *SHAPES, *SIZES, *_FIXED[style].split(), *ROW_WORDS[0][:1], *ROW_WORDS[1][:1]}
    words |= {ROW_WORDS[2][0], *COLUMN_WORDS}
    return sorted(words | {word for phrases in RELATION_WORDS.values() for word in phrases[0].split()})


# --- English ---------------------------------------------------------------------------------------------------------

_FIXED = {
    "terse": "shape first second third",
    "formal": "the image shows picture an a shape located at and first second third object lies",
    "casual": "oh look hey check it out there's a an thing over in the and then also first second third one is",
}
_ORDINALS = ("first", "second", "third", "fourth")


def _noun(mention: Mention, unknown: str = "shape") -> str:
    words = [SIZES[mention.size]] if mention.size is not None else []
    words += [COLOURS[mention.colour]] if mention.colour is not None else []
    return " ".join([*words, SHAPES[mention.shape] if mention.shape is not None else unknown])


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _where(cell: int | None) -> str:
    if cell is None:
        return ""
    return ROW_WORDS[1][0] if cell == 4 else f"{ROW_WORDS[cell // 3][0]} {COLUMN_WORDS[cell % 3]}"


def _terse(caption: Caption, rng: random.Random) -> str:
    parts = [f"{_noun(mention)} {_where(mention.cell)}".strip() for mention in caption.mentions]
    parts += [f"{_ORDINALS[a]} {RELATION_WORDS[relation][0]} {_ORDINALS[b]}" for a, relation, b in caption.relations]
    return ", ".join(parts)


def _formal(caption: Caption, rng: random.Random) -> str:
    located = pick(rng, (" located at the ", " at the "))
    parts = []
    for mention in caption.mentions:
        place = _where(mention.cell)
        parts.append(_article(_noun(mention)) + (f"{located}{place}" if place else ""))
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    sentences = [f"{pick(rng, ('The image shows', 'The picture shows'))} {listed}."]
    for a, relation, b in caption.relations:
        sentences.append(f"The {_ORDINALS[a]} object lies {RELATION_WORDS[relation][0]} the {_ORDINALS[b]}.")
    return " ".join(sentences)


def _casual(caption: Caption, rng: random.Random) -> str:
    parts = []
    for mention in caption.mentions:
        place = _where(mention.cell)
        lead = pick(rng, ("over in the ", "in the ")) if place else ""
        parts.append(f"{_article(_noun(mention, 'thing'))} {lead}{place}".strip())
    words = f"{pick(rng, ('oh look', 'hey check it out', 'look'))}, there's {parts[0]}"
    for part in parts[1:]:
        words += f" {pick(rng, ('and then', 'and also', 'and'))} {part}"
    for a, relation, b in caption.relations:
        words += f", the {_ORDINALS[a]} one is {RELATION_WORDS[relation][0]} the {_ORDINALS[b]}"
    return words


# --- Chinese ---------------------------------------------------------------------------------------------------------

_ZH_COLOURS = ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "棕色")
_ZH_SHAPES = ("圆形", "正方形", "三角形", "星形", "十字形", "圆环", "菱形", "心形", "图形")
_ZH_SIZES = ("小", "中等", "大")
_ZH_PLACES = ("左上角", "上方", "右上角", "左侧", "中央", "右侧", "左下角", "下方", "右下角")
_ZH_RELATIONS = {"left": "左边", "right": "右边", "above": "上面", "below": "下面", "inside": "里面"}
_ZH_COUNTS = ("第一个", "第二个", "第三个", "第四个")
_ZH_COMMA = "\N{FULLWIDTH COMMA}"
_ZH_FIXED = ("图中", "画面里", "一个", "的", "在", "还", "有")


def _chinese(caption: Caption, rng: random.Random) -> str:
    parts: list[str] = []
    for mention in caption.mentions:
        words = "一个"
        words += f"{_ZH_SIZES[mention.size]}的" if mention.size is not None else ""
        words += _ZH_COLOURS[mention.colour] if mention.colour is not None else ""
        words += _ZH_SHAPES[-1 if mention.shape is None else mention.shape]
        also = "还" if parts and rng.random() < 0.5 else ""
        parts.append(f"{'' if mention.cell is None else _ZH_PLACES[mention.cell]}{also}有{words}")
    sentences = [pick(rng, ("图中", "画面里")) + _ZH_COMMA.join(parts)]
    sentences += [
        f"{_ZH_COUNTS[a]}在{_ZH_COUNTS[b]}的{_ZH_RELATIONS[relation]}" for a, relation, b in caption.relations
    ]
    return "。".join(sentences) + "。"


_STYLES: dict[Style, Callable[[Caption, random.Random], str]] = {
    "terse": _terse,
    "formal": _formal,
    "casual": _casual,
    "zh": _chinese,
}


# --- tagged words ----------------------------------------------------------------------------------------------------

TAGS = (
    "O",
    *("B-COLOUR", "B-SHAPE", "B-SIZE"),
    *("B-PLACE", "I-PLACE"),
    *("B-RELATION", "I-RELATION"),
)
"""Classes of words, as entity recognition names them: a phrase begins with B and goes on with I."""


def tag(caption: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of a plain caption, and the class of each as an index of :data:`TAGS`."""
    words = tuple(caption.split())
    tags: list[int] = []
    phrases = _phrases()
    while len(tags) < len(words):
        rest = words[len(tags) :]
        # The longest phrase comes first: `to the left of` is a relation, `top left` a place.
        kind, length = next(((kind, len(phrase)) for phrase, kind in phrases if rest[: len(phrase)] == phrase), ("", 1))
        tags += [TAGS.index(f"B-{kind}"), *[TAGS.index(f"I-{kind}")] * (length - 1)] if length > 1 else [_first(kind)]
    return words, tuple(tags)


def _first(kind: str) -> int:
    return TAGS.index(f"B-{kind}") if kind else TAGS.index("O")


@lru_cache(maxsize=1)
def _phrases() -> list[tuple[tuple[str, ...], str]]:
    found = [(tuple(phrase.split()), kind) for phrase, kind in _named_phrases()]
    return sorted(found, key=lambda item: -len(item[0]))


def _named_phrases() -> Iterator[tuple[str, str]]:
    for kind, names, other in (
        ("COLOUR", COLOURS, COLOUR_WORDS),
        ("SHAPE", SHAPES, SHAPE_WORDS),
        ("SIZE", SIZES, SIZE_WORDS),
    ):
        yield from ((word, kind) for name in names for word in other.get(name, (name,)))
    yield from ((word, "SHAPE") for word in ANY_SHAPE)
    for relation in RELATION_WORDS.values():
        yield from ((phrase, "RELATION") for phrase in relation)
    yield from ((phrase, "RELATION") for phrase in AROUND_WORDS)
    for rows in ROW_WORDS:
        for row in rows:
            yield row, "PLACE"
            for column in COLUMN_WORDS:
                yield f"{row} {column}", "PLACE"
                yield f"{row} {column} corner", "PLACE"
