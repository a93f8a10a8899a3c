"""Films of a generated scene: one object moves to a free cell, and only the order of the pictures tells which way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmcompress.data._scenes_paint import paint
from mmcompress.data._scenes_words import COLUMN_WORDS, ROW_WORDS
from mmcompress.data._scenes_world import COLOURS, SHAPES, SIZES, Scene, Thing, pick, source

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmcompress.data.scenes import Scenes

DIRECTIONS = ("left", "right", "up", "down")
MOTIONS = tuple(f"moves {direction}" for direction in DIRECTIONS)
"""The classes of films."""
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Rows and columns."""
_VERBS = ("moves", "slides", "goes", "travels")
_STAYS = ("while", "as")


@dataclass(frozen=True)
class Move:
    """Which object goes where: ``distance`` cells in a direction."""

    thing: int
    direction: str
    distance: int


def moves(scene: Scene) -> list[Move]:
    """Every move along a row or a column over free cells; what lies inside another stays there and goes with it."""
    taken = {thing.cell for thing in scene.things}
    found = []
    for index, thing in enumerate(scene.things):
        if index == scene.inner:
            continue
        for direction, (rows, columns) in _STEPS.items():
            for distance in (1, 2):
                row, column = thing.row + rows * distance, thing.column + columns * distance
                if not (0 <= row < 3 and 0 <= column < 3) or row * 3 + column in taken:
                    break
                found.append(Move(index, direction, distance))
    return found


def move_of(scene: Scene, rng: random.Random) -> Move:
    """One of the moves, each direction that is open as likely as the others."""
    found = moves(scene)
    direction = pick(rng, [name for name in DIRECTIONS if any(move.direction == name for move in found)])
    return pick(rng, [move for move in found if move.direction == direction])


def film(spec: Scenes, index: int, scene: Scene, move: Move) -> tuple[Image, ...]:
    """The pictures of a film: only the moving object (and what lies inside it) differs between them."""
    rows, columns = _STEPS[move.direction]
    pictures = []
    for number in range(spec.frames):
        share = move.distance * number / (spec.frames - 1)
        shift = {move.thing: (columns * share, rows * share)}
        # The same random source each time, so that background and noise stand still.
        rng = source(spec.seed, spec.split, index, "paint")
        pictures.append(paint(scene, spec.image_size, spec.clutter, rng, shift))
    return tuple(pictures)


def narrate(scene: Scene, move: Move, omit: float, rng: random.Random) -> str:
    """A caption of the film: who moves which way, and at times from where and what stays."""
    words = f"{_name(scene.things[move.thing], omit, rng)} {pick(rng, _VERBS)} {move.direction}"
    if rng.random() >= omit / 2:
        words += f" from the {_place(scene.things[move.thing])}"
    still = [i for i in range(len(scene.things)) if i not in (move.thing, scene.inner)]
    if still and rng.random() >= omit / 2:
        thing = scene.things[pick(rng, still)]
        words += f" {pick(rng, _STAYS)} {_name(thing, omit, rng)} stays in the {_place(thing)}"
    return words


def film_vocabulary() -> list[str]:
    """Every word that a caption of a film can hold, sorted."""
    words = {*COLOURS, *SHAPES, *SIZES, *COLUMN_WORDS, *(row[0] for row in ROW_WORDS), *DIRECTIONS, *_VERBS, *_STAYS}
    return sorted(words | set("a an from the stays in".split()))


def _name(thing: Thing, omit: float, rng: random.Random) -> str:
    size = f"{SIZES[thing.size]} " if rng.random() >= omit else ""
    noun = f"{size}{COLOURS[thing.colour]} {SHAPES[thing.shape]}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _place(thing: Thing) -> str:
    return ROW_WORDS[1][0] if thing.cell == 4 else f"{ROW_WORDS[thing.row][0]} {COLUMN_WORDS[thing.column]}"
