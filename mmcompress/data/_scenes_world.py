"""What is in a generated scene: objects with colour, shape, size and place, sampled from (seed, split, index) alone.

Scenes come in groups of ``twins``: the members of a group differ from its first one in one respect (two colours,
shapes or places swapped, or one attribute changed), so that telling them apart takes more than a bag of attributes.
``random.Random`` seeded with a string is used throughout: Python guarantees that its ``random()`` never changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

Split = Literal["train", "validation", "test"]
T = TypeVar("T")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
SIZES = ("small", "medium", "big")
BIG = 2
CONTAINERS = frozenset(SHAPES.index(name) for name in ("circle", "square", "ring", "diamond"))
"""Shapes that a small object fits into."""
HELD_OUT = frozenset([(k, (3 * k + 1) % 8) for k in range(8)] + [(0, 5), (4, 1)])
"""Ten (colour, shape) pairs that no training scene shows; every colour and every shape keeps six others or more."""
PAIRS = tuple((colour, shape) for colour in range(len(COLOURS)) for shape in range(len(SHAPES)))
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """One object. ``cell`` counts the 3 x 3 grid row by row from the top left."""

    colour: int
    shape: int
    size: int
    cell: int

    @property
    def row(self) -> int:
        """0 at the top."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """0 on the left."""
        return self.cell % 3


@dataclass(frozen=True)
class Scene:
    """Objects, exactly one of them big; ``inner`` is the one drawn inside the big one, if any."""

    things: tuple[Thing, ...]
    inner: int | None

    @property
    def main(self) -> int:
        """The index of the big object."""
        return next(i for i, thing in enumerate(self.things) if thing.size == BIG)

    @property
    def content(self) -> tuple[frozenset[Thing], Thing | None]:
        """The scene without the order of its objects: equal for scenes that show the same."""
        return frozenset(self.things), None if self.inner is None else self.things[self.inner]

    def holds(self, first: int, relation: str, second: int) -> bool:
        """Whether a relation holds between two objects."""
        a, b = self.things[first], self.things[second]
        if relation == "inside":
            return self.inner == first and self.main == second
        if relation == "left":
            return a.column < b.column
        if relation == "right":
            return a.column > b.column
        if relation == "above":
            return a.row < b.row
        return a.row > b.row


RELATIONS = ("left", "right", "above", "below", "inside")


@dataclass(frozen=True)
class Rules:
    """What scenes are drawn from: see the fields of ``Scenes``."""

    objects: tuple[int, int] = (2, 3)
    twins: int = 2
    unseen: float = 1.0
    inside: float = 0.2


def source(seed: int, split: str, number: int, purpose: str) -> random.Random:
    """A random source of its own for every purpose."""
    return random.Random(f"mmcompress scenes/{seed}/{split}/{number}/{purpose}")


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items, from ``random()`` alone."""
    return items[int(rng.random() * len(items))]


def describe(seed: int, split: Split, index: int, rules: Rules | None = None) -> Scene:
    """The objects of scene ``index`` of a split."""
    rules = rules or Rules()
    return group(seed, split, index // rules.twins, rules)[index % rules.twins]


@lru_cache(maxsize=256)
def group(seed: int, split: Split, number: int, rules: Rules) -> tuple[Scene, ...]:
    """The scenes of a group: the first, then others that differ from it in one respect and from each other."""
    rng = source(seed, split, number, "group")
    held = split != "train" and rng.random() < rules.unseen
    scenes = [_sample(rng, rules, held)]
    for _ in range(10_000):
        if len(scenes) == rules.twins:
            return tuple(scenes)
        twin = pick(rng, _CHANGES)(scenes[0], rng)
        if _valid(twin, held) and all(twin.content != scene.content for scene in scenes):
            scenes.append(twin)
    raise RuntimeError(f"no {rules.twins} twins found for group {number} of {split}")


def _sample(rng: random.Random, rules: Rules, held: bool) -> Scene:
    low, high = rules.objects
    while True:
        count = low + int(rng.random() * (high - low + 1))
        pairs = [pick(rng, PAIRS if held else SEEN) for _ in range(count)]
        if held:
            pairs[int(rng.random() * count)] = pick(rng, sorted(HELD_OUT))
        cells = list(range(9))
        things = [
            Thing(colour, shape, BIG if i == 0 else pick(rng, (0, 1)), cells.pop(int(rng.random() * len(cells))))
            for i, (colour, shape) in enumerate(pairs)
        ]
        inner = 1 if rng.random() < rules.inside else None
        if inner is not None:
            things[1] = replace(things[1], size=0, cell=things[0].cell)
        scene = Scene(tuple(things), inner)
        if _valid(scene, held):
            return scene


def _valid(scene: Scene, held: bool) -> bool:
    pairs = [(thing.colour, thing.shape) for thing in scene.things]
    if len(set(pairs)) < len(pairs) or held != any(pair in HELD_OUT for pair in pairs):
        return False
    if sum(thing.size == BIG for thing in scene.things) != 1:
        return False
    distinct = len(scene.things)
    if scene.inner is not None:
        inner, main = scene.things[scene.inner], scene.things[scene.main]
        if inner.cell != main.cell or main.shape not in CONTAINERS or inner.colour == main.colour or inner.size != 0:
            return False
        distinct -= 1
    return len({thing.cell for thing in scene.things}) == distinct


# --- twins -----------------------------------------------------------------------------------------------------------


def _two(scene: Scene, rng: random.Random) -> tuple[int, int]:
    first = int(rng.random() * len(scene.things))
    second = int(rng.random() * (len(scene.things) - 1))
    return first, second + (second >= first)


def _with(scene: Scene, changed: dict[int, Thing]) -> Scene:
    return replace(scene, things=tuple(changed.get(i, thing) for i, thing in enumerate(scene.things)))


def _swap_colours(scene: Scene, rng: random.Random) -> Scene:
    i, j = _two(scene, rng)
    a, b = scene.things[i], scene.things[j]
    return _with(scene, {i: replace(a, colour=b.colour), j: replace(b, colour=a.colour)})


def _swap_shapes(scene: Scene, rng: random.Random) -> Scene:
    i, j = _two(scene, rng)
    a, b = scene.things[i], scene.things[j]
    return _with(scene, {i: replace(a, shape=b.shape), j: replace(b, shape=a.shape)})


def _swap_cells(scene: Scene, rng: random.Random) -> Scene:
    i, j = _two(scene, rng)
    a, b = scene.things[i], scene.things[j]
    return _with(scene, {i: replace(a, cell=b.cell), j: replace(b, cell=a.cell)})


def _swap_sizes(scene: Scene, rng: random.Random) -> Scene:
    i, j = _two(scene, rng)
    a, b = scene.things[i], scene.things[j]
    return _with(scene, {i: replace(a, size=b.size), j: replace(b, size=a.size)})


def _recolour(scene: Scene, rng: random.Random) -> Scene:
    i = int(rng.random() * len(scene.things))
    return _with(scene, {i: replace(scene.things[i], colour=int(rng.random() * len(COLOURS)))})


def _reshape(scene: Scene, rng: random.Random) -> Scene:
    i = int(rng.random() * len(scene.things))
    return _with(scene, {i: replace(scene.things[i], shape=int(rng.random() * len(SHAPES)))})


def _resize(scene: Scene, rng: random.Random) -> Scene:
    i = int(rng.random() * len(scene.things))
    return _with(scene, {i: replace(scene.things[i], size=pick(rng, (0, 1)))})


def _move(scene: Scene, rng: random.Random) -> Scene:
    i = int(rng.random() * len(scene.things))
    moved = _with(scene, {i: replace(scene.things[i], cell=int(rng.random() * 9))})
    return replace(moved, inner=None) if i == scene.inner else moved


_CHANGES: tuple[Callable[[Scene, random.Random], Scene], ...] = (
    _swap_colours,
    _swap_shapes,
    _swap_cells,
    _swap_colours,
    _swap_shapes,
    _swap_cells,
    _swap_sizes,
    _recolour,
    _reshape,
    _resize,
    _move,
)
