"""Questions about a generated scene, with what ten annotators answer: most agree, some err, some questions are ambiguous."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmcompress.data._scenes_words import COLUMN_WORDS, RELATION_WORDS, ROW_WORDS
from mmcompress.data._scenes_world import COLOURS, RELATIONS, SHAPES, SIZES, Scene, pick

ANNOTATORS = 10
KINDS = ("colour", "shape", "size", "count", "yes or no", "relation")
"""What is asked for; each kind is as frequent as the others."""
COUNTS = ("0", "1", "2", "3", "4")
_OTHER_NAMES = {"purple": "violet", "circle": "disc", "square": "box", "diamond": "rhombus", "big": "large"}
"""A second word for an answer, which one annotator in ten uses."""
_CONFUSED = {
    **{"red": "orange", "orange": "yellow", "yellow": "orange", "green": "blue"},
    **{"blue": "purple", "purple": "blue", "pink": "purple", "brown": "red"},
    **{"circle": "ring", "square": "diamond", "triangle": "heart", "star": "cross"},
    **{"cross": "star", "ring": "circle", "diamond": "square", "heart": "triangle"},
    **{"small": "medium", "medium": "big", "big": "medium"},
    **{"yes": "no", "no": "yes", "0": "1", "1": "2", "2": "3", "3": "2", "4": "3"},
}
"""What is answered instead where a question is ambiguous."""
_SAME_KIND = (COLOURS, SHAPES, SIZES, COUNTS, ("yes", "no"))
_RIGHT, _RIGHT_IF_AMBIGUOUS, _CONFUSED_IF_AMBIGUOUS = 0.94, 0.5, 0.4
"""How often an annotator gives the true answer; and the likeliest other one where the question is ambiguous."""


@dataclass(frozen=True)
class Question:
    """A question, its true answer, and what the annotators said."""

    kind: str
    words: str
    truth: str
    answers: tuple[str, ...]
    ambiguous: bool


def ask(scene: Scene, ambiguous: float, rng: random.Random) -> Question:
    """A question that the scene answers.

    Args:
        scene: What is shown.
        ambiguous: Share of the questions that half of the annotators answer otherwise.
        rng: Where the choice comes from.
    """
    kind = pick(rng, KINDS)
    words, truth = _MAKERS[kind](scene, rng)
    unclear = rng.random() < ambiguous
    return Question(kind, words, truth, tuple(_answer(truth, unclear, rng) for _ in range(ANNOTATORS)), unclear)


def _answer(truth: str, unclear: bool, rng: random.Random) -> str:
    chance, word = rng.random(), truth
    right = _RIGHT_IF_AMBIGUOUS if unclear else _RIGHT
    if chance >= right:
        confused = unclear and chance < right + _CONFUSED_IF_AMBIGUOUS
        word = _CONFUSED[truth] if confused else pick(rng, next(kind for kind in _SAME_KIND if truth in kind))
    return _OTHER_NAMES.get(word, word) if rng.random() < 0.1 else word


def answer_vocabulary() -> list[str]:
    """Every answer that an annotator can give, sorted."""
    return sorted({answer for kind in _SAME_KIND for answer in kind} | set(_OTHER_NAMES.values()))


def question_vocabulary() -> list[str]:
    """Every word that a question can hold, sorted."""
    fixed = "what color shape size is the object thing in how many objects are there a an an any which it or of big"
    words = (
        set(fixed.split()) | {*COLOURS, *SHAPES} | {f"{shape}s" for shape in SHAPES if shape != "cross"} | {"crosses"}
    )
    words |= {row for rows in ROW_WORDS for row in rows[:1]} | set(COLUMN_WORDS)
    return sorted(words | {word for phrases in RELATION_WORDS.values() for word in phrases[0].split()})


# --- kinds -----------------------------------------------------------------------------------------------------------


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    index, name = _referred(scene, rng, ("shape", "big", "place"))
    return f"what color is {name}", COLOURS[scene.things[index].colour]


def _shape(scene: Scene, rng: random.Random) -> tuple[str, str]:
    index, name = _referred(scene, rng, ("colour", "big", "place"))
    return f"what shape is {name}", SHAPES[scene.things[index].shape]


def _size(scene: Scene, rng: random.Random) -> tuple[str, str]:
    index, name = _referred(scene, rng, ("colour", "shape", "place", "both"))
    return f"what size is {name}", SIZES[scene.things[index].size]


def _count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    chance = rng.random()
    if chance < 0.4:
        return "how many objects are there", str(len(scene.things))
    if chance < 0.7:
        colour = _shown_or_not([thing.colour for thing in scene.things], len(COLOURS), rng)
        return f"how many {COLOURS[colour]} objects are there", str(sum(t.colour == colour for t in scene.things))
    shape = _shown_or_not([thing.shape for thing in scene.things], len(SHAPES), rng)
    plural = f"{SHAPES[shape]}es" if SHAPES[shape].endswith("s") else f"{SHAPES[shape]}s"
    return f"how many {plural} are there", str(sum(t.shape == shape for t in scene.things))


def _yes_or_no(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = pick(rng, scene.things)
    colour, shape, truth = thing.colour, thing.shape, rng.random() < 0.5
    shown = {(other.colour, other.shape) for other in scene.things}
    while not truth and (colour, shape) in shown:
        # One attribute is changed, so that both have to be seen.
        if rng.random() < 0.5:
            colour = int(rng.random() * len(COLOURS))
        else:
            shape = int(rng.random() * len(SHAPES))
    article = "an" if COLOURS[colour][0] in "aeiou" else "a"
    return f"is there {article} {COLOURS[colour]} {SHAPES[shape]}", "yes" if truth else "no"


def _relation(scene: Scene, rng: random.Random) -> tuple[str, str]:
    first = int(rng.random() * len(scene.things))
    second = (first + 1 + int(rng.random() * (len(scene.things) - 1))) % len(scene.things)
    true = [relation for relation in RELATIONS if scene.holds(first, relation, second)]
    false = [relation for relation in RELATIONS if relation not in true and not (relation == "inside" and true)]
    choices = true if true and rng.random() < 0.5 else false
    relation = pick(rng, choices)
    words = f"is {_both(scene, first)} {RELATION_WORDS[relation][0]} {_both(scene, second)}"
    return words, "yes" if choices is true else "no"


_MAKERS: dict[str, Callable[[Scene, random.Random], tuple[str, str]]] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "count": _count,
    "yes or no": _yes_or_no,
    "relation": _relation,
}


def _shown_or_not(shown: list[int], count: int, rng: random.Random) -> int:
    return pick(rng, shown) if rng.random() < 0.7 else int(rng.random() * count)


def _both(scene: Scene, index: int) -> str:
    thing = scene.things[index]
    return f"the {COLOURS[thing.colour]} {SHAPES[thing.shape]}"


def _referred(scene: Scene, rng: random.Random, ways: tuple[str, ...]) -> tuple[int, str]:
    """An object and a name that fits it alone, in one of the given ways."""
    # The big object can always be named so, and colour with shape tells all objects apart: some way is open.
    return pick(rng, [name for way in ways for name in _NAMES[way](scene)])


def _by_colour(scene: Scene) -> Iterator[tuple[int, str]]:
    colours = [thing.colour for thing in scene.things]
    return ((i, f"the {COLOURS[c]} object") for i, c in enumerate(colours) if colours.count(c) == 1)


def _by_shape(scene: Scene) -> Iterator[tuple[int, str]]:
    shapes = [thing.shape for thing in scene.things]
    return ((i, f"the {SHAPES[s]}") for i, s in enumerate(shapes) if shapes.count(s) == 1)


def _by_place(scene: Scene) -> Iterator[tuple[int, str]]:
    cells = [thing.cell for thing in scene.things]
    for i, cell in enumerate(cells):
        if cells.count(cell) == 1:
            place = ROW_WORDS[1][0] if cell == 4 else f"{ROW_WORDS[cell // 3][0]} {COLUMN_WORDS[cell % 3]}"
            yield i, f"the object in the {place}"


_NAMES: dict[str, Callable[[Scene], Iterator[tuple[int, str]]]] = {
    "colour": _by_colour,
    "shape": _by_shape,
    "place": _by_place,
    "big": lambda scene: iter([(scene.main, "the big object")]),
    "both": lambda scene: ((i, _both(scene, i)) for i in range(len(scene.things))),
}
