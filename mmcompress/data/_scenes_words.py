"""Captions of generated scenes: what is said (facts), how it is said (words), and which scenes a caption fits.

A caption leaves things out, but is drawn again until it tells its scene from the other scenes of its group and says
enough to be unlikely (:data:`LIKELY`) to fit a scene drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import perm

from mmcompress.data._scenes_world import COLOURS, RELATIONS, SHAPES, SIZES, Scene, pick

MAX_WORDS = 24
LIKELY = 8e-6
"""A caption may fit at most this share of all scenes: fewer than one in a hundred fit another of 1,000 pictures."""
_ATTEMPTS = 12

COLOUR_WORDS = {"purple": ("purple", "violet")}
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
}
ANY_SHAPE = ("shape", "thing", "object")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium",), "big": ("big", "large", "huge")}
ROW_WORDS = (("top", "upper"), ("middle", "center"), ("bottom", "lower"))
COLUMN_WORDS = ("left", "center", "right")
RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "inside": ("inside", "within", "inside of"),
}
AROUND_WORDS = ("around", "containing", "that contains", "surrounding")
_OPENERS = ("there is", "a picture of", "a scene with", "we see", "an image showing", "here is", "one can see")
_LINKS = ("and", "with", "and also", "as well as", "together with")


@dataclass(frozen=True)
class Mention:
    """What a caption says of one object; None where it says nothing."""

    colour: int | None
    shape: int | None
    size: int | None
    cell: int | None


@dataclass(frozen=True)
class Caption:
    """What a caption says, and the words."""

    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...]
    """(mention, relation, mention)."""
    words: str

    def fits(self, scene: Scene) -> bool:
        """Whether everything that the caption says is true of the scene."""
        options = []
        for mention in self.mentions:
            options.append([i for i in range(len(scene.things)) if _matches(mention, scene, i)])
            if not options[-1]:
                return False
        return any(
            all(i in allowed for i, allowed in zip(chosen, options, strict=True))
            and all(scene.holds(chosen[a], relation, chosen[b]) for a, relation, b in self.relations)
            for chosen in permutations(range(len(scene.things)), len(self.mentions))
        )


def _matches(mention: Mention, scene: Scene, index: int) -> bool:
    thing = scene.things[index]
    return (
        mention.colour in (None, thing.colour)
        and mention.shape in (None, thing.shape)
        and mention.size in (None, thing.size)
        and mention.cell in (None, thing.cell)
    )


def caption(scene: Scene, others: Iterable[Scene], omit: float, rng: random.Random) -> Caption:
    """A caption that fits the scene and none of the others.

    Args:
        scene: What to describe.
        others: The other scenes of its group.
        omit: How readily size, colour, shape, place, relation or a whole object is left unsaid, 0 to 1.
        rng: Where the choice comes from.
    """
    others = tuple(others)
    for attempt in range(_ATTEMPTS):
        rate = omit * (1.0 - attempt / (_ATTEMPTS - 1))
        drawn = _draw(scene, rate, attempt > _ATTEMPTS // 2, rng)
        if len(drawn.words.split()) > MAX_WORDS or _likelihood(drawn) > LIKELY:
            continue
        if not any(drawn.fits(other) for other in others):
            return drawn
    return _terse(scene, range(len(scene.things)), rng)


def _likelihood(drawn: Caption) -> float:
    """About which share of all scenes a caption fits (three objects each, attributes independent)."""
    share = float(perm(max(3, len(drawn.mentions)), len(drawn.mentions)))
    for mention in drawn.mentions:
        share /= len(COLOURS) if mention.colour is not None else 1
        share /= len(SHAPES) if mention.shape is not None else 1
        share /= len(SIZES) if mention.size is not None else 1
        share /= 9 if mention.cell is not None else 1
    for a, relation, b in drawn.relations:
        placed = drawn.mentions[a].cell is not None and drawn.mentions[b].cell is not None
        share *= 0.1 if relation == "inside" else 1.0 if placed else 0.4
    return share


# --- saying it -------------------------------------------------------------------------------------------------------


def _draw(scene: Scene, rate: float, terse: bool, rng: random.Random) -> Caption:
    order = list(range(len(scene.things)))
    _shuffle(order, rng)
    if len(order) > 2 and rng.random() < rate / 2:
        order.pop()
    if terse:
        return _terse(scene, order, rng)
    # Three objects with all their places would be too long, so places are said less often there.
    placed = 1.0 - rate if len(order) == 2 else 0.5
    mentions = tuple(_mention(scene, i, rate, placed, rng) for i in order)
    relations = _relations(scene, order, rng) if rng.random() < 0.65 else ()
    phrases = [_phrase(mention, rng) for mention in mentions]
    places = [_place(mention.cell, rng) for mention in mentions]
    parts = [f"{phrase} {place}".strip() for phrase, place in zip(phrases, places, strict=True)]
    if relations:
        words = parts[0]
        for number, (first, relation, _) in enumerate(relations):
            inverse = relation == "inside" and first > number
            links = AROUND_WORDS if inverse else RELATION_WORDS[relation]
            # "at the center right of" would read as a place: after one, only "to the right of" will do.
            link = links[0] if places[number] and relation in COLUMN_WORDS else pick(rng, links)
            words += f"{' that is' if number and not inverse else ''} {link} {parts[number + 1]}"
        rest = parts[len(relations) + 1 :]
    else:
        if all(places) and rng.random() < 0.3:
            parts = [f"{place} {phrase}" for phrase, place in zip(phrases, places, strict=True)]
        words, rest = parts[0], parts[1:]
    for part in rest:
        words += f" {pick(rng, _LINKS)} {part}"
    if rng.random() < 0.5:
        opened = f"{pick(rng, _OPENERS)} {words}"
        words = opened if len(opened.split()) <= MAX_WORDS else words
    return Caption(mentions, relations, words)


def _mention(scene: Scene, index: int, rate: float, placed: float, rng: random.Random) -> Mention:
    thing = scene.things[index]
    unsaid = rng.random() * 3.0
    return Mention(
        colour=None if unsaid < rate / 2 else thing.colour,
        shape=None if rate / 2 <= unsaid < rate else thing.shape,
        size=None if rng.random() < rate else thing.size,
        cell=thing.cell if rng.random() < placed else None,
    )


def _relations(scene: Scene, order: Sequence[int], rng: random.Random) -> tuple[tuple[int, str, int], ...]:
    """A relation between the first two mentions and, at times, one between the second and the third."""
    found = []
    for number in range(min(2, len(order) - 1)):
        if number and rng.random() < 0.6:
            break
        true = [(number, r, number + 1) for r in RELATIONS if scene.holds(order[number], r, order[number + 1])]
        true += [(number + 1, "inside", number)] if scene.holds(order[number + 1], "inside", order[number]) else []
        if not true:
            break
        found.append(pick(rng, true))
    return tuple(found)


def _terse(scene: Scene, order: Sequence[int], rng: random.Random) -> Caption:
    """Every attribute of every object, in a few words each."""
    things = [scene.things[i] for i in order]
    mentions = tuple(Mention(t.colour, t.shape, t.size, t.cell) for t in things)
    first = rng.random() < 0.5
    parts = []
    for mention in mentions:
        noun = _phrase(mention, rng).partition(" ")[2]
        place = _place(mention.cell, rng, bare=True)
        parts.append(f"{place} {noun}" if first else f"{noun} {place}")
    return Caption(mentions, (), " and ".join(parts))


def _phrase(mention: Mention, rng: random.Random) -> str:
    words = []
    if mention.size is not None:
        words.append(pick(rng, SIZE_WORDS[SIZES[mention.size]]))
    if mention.colour is not None:
        colour = COLOURS[mention.colour]
        words.append(pick(rng, COLOUR_WORDS.get(colour, (colour,))))
    if mention.shape is None:
        words.append(pick(rng, ANY_SHAPE))
    else:
        shape = SHAPES[mention.shape]
        words.append(pick(rng, SHAPE_WORDS.get(shape, (shape,))))
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _place(cell: int | None, rng: random.Random, bare: bool = False) -> str:
    if cell is None:
        return ""
    row, column = ROW_WORDS[cell // 3], COLUMN_WORDS[cell % 3]
    centre = "" if bare else pick(rng, ("in the ", "at the "))
    if cell == 4:
        return centre + pick(rng, row)
    corner = " corner" if not bare and cell in (0, 2, 6, 8) and rng.random() < 0.5 else ""
    return f"{centre}{pick(rng, row)} {column}{corner}"


def _shuffle(items: list[int], rng: random.Random) -> None:
    for i in range(len(items) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        items[i], items[j] = items[j], items[i]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    groups: list[Iterable[str]] = [COLOURS, SHAPES, SIZES, ANY_SHAPE, AROUND_WORDS, _OPENERS, _LINKS, COLUMN_WORDS]
    for table in (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, RELATION_WORDS):
        groups += table.values()
    groups += ROW_WORDS
    groups.append(("a", "an", "in the", "at the", "corner", "that is"))
    return sorted({word for group in groups for phrase in group for word in phrase.split()})
