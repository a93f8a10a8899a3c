"""Generated pictures of a few objects with English captions: nothing is downloaded, every example follows from its index.

A picture shows two or three objects in the cells of a 3 x 3 grid: colour (8), shape (8), size (3, exactly one object is
big) and place, at times one object inside another, on a background with clutter that no caption mentions. A caption
says enough to find its picture among a thousand, in varied words from a closed vocabulary, and seldom everything.

What makes it hard: scenes come in groups of ``twins`` that differ in one respect (colours, shapes or places swapped
between two objects, one attribute changed); ten (colour, shape) pairs never occur in training, and a share ``unseen``
of the validation and test scenes shows at least one of them, the same ten in both, so that validation predicts test.

Further fields add columns to the same scenes: questions with answers, captions of other styles and in Chinese, films, a
table, a range sensor, tagged words. Each draws from a random source of its own: switched on, it changes nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from mmcompress.component import JSON
from mmcompress.data import Dataset, Example
from mmcompress.data._scenes_films import MOTIONS, film, film_vocabulary, move_of, narrate
from mmcompress.data._scenes_paint import paint
from mmcompress.data._scenes_questions import answer_vocabulary, ask, question_vocabulary
from mmcompress.data._scenes_sensors import TABLE_COLUMNS, sweep, table_of
from mmcompress.data._scenes_styles import TAGS, Style, restyle, style_vocabulary, tag
from mmcompress.data._scenes_words import Caption, caption, vocabulary
from mmcompress.data._scenes_world import COLOURS, HELD_OUT, PAIRS, SHAPES, Rules, Scene, Split, describe, group, source

__all__ = [
    "HELD_OUT",
    "MOTIONS",
    "TABLE_COLUMNS",
    "TAGS",
    "Rules",
    "Scene",
    "Scenes",
    "answer_vocabulary",
    "captions_of",
    "describe",
    "film_vocabulary",
    "question_vocabulary",
    "style_vocabulary",
    "vocabulary",
]

_ADDED = ("questions", "ambiguous", "styles", "frames", "table", "series", "tags")
"""Fields that came later: at their defaults they stand in no key, so that what was built without them is still found."""


class Scenes(Dataset):
    """Generated scenes; ``label`` is the colour and shape of the big object."""

    split: Split
    size: int = Field(ge=1)
    """Number of examples."""
    seed: int = 0
    image_size: int = Field(48, ge=24, le=1024)
    """Side of the pictures in pixels."""
    objects: tuple[int, int] = (2, 3)
    """Fewest and most objects per scene, between 2 and 4."""
    twins: int = Field(2, ge=1, le=8)
    """Scenes per group that differ in one respect; 1 draws every scene by itself, which is easier."""
    unseen: float = Field(1.0, ge=0, le=1)
    """Share of validation and test scenes with a pair of colour and shape that training never shows."""
    inside: float = Field(0.2, ge=0, le=0.9)
    """How often an object is put inside the big one (only some shapes have room)."""
    clutter: float = Field(0.6, ge=0, le=1)
    """Lines, dots, noise and uneven light."""
    omit: float = Field(0.5, ge=0, le=1)
    """How readily a caption leaves something unsaid."""
    captions: int = Field(1, ge=1, le=8)
    """Captions per picture (and style), as alternatives."""
    questions: bool = False
    """Add ``question``, ``answers`` of ten annotators, and ``question_kind``, a slice."""
    ambiguous: float = Field(0.15, ge=0, le=1)
    """Share of the questions that half of the annotators answer otherwise."""
    styles: tuple[Style, ...] = Field(("plain",), min_length=1)
    """Styles of the captions, which are alternatives: plain, terse, formal, casual, zh (Chinese)."""
    frames: int = Field(0, ge=0, le=64)
    """Pictures of a film in which one object moves, from 2; ``texts`` and ``label`` then tell the motion."""
    table: bool = False
    """Add ``table``: columns that tell the scene in part."""
    series: int = Field(0, ge=0, le=4096)
    """Add ``series``: that many readings of a range sensor that sweeps over the scene."""
    tags: bool = False
    """Add ``words`` and ``tags`` of the first caption, which must be plain."""

    @field_validator("objects")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= value[0] <= value[1] <= 4:
            raise ValueError("expected the fewest and the most objects, between 2 and 4, such as [2, 3]")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Scenes:
        if len(set(self.styles)) < len(self.styles):
            raise ValueError("a style stands twice; expected distinct ones")
        if self.frames == 1:
            raise ValueError("a film has two pictures or more; expected frames: 0 for none, or 2 to 64")
        if self.frames and (self.styles != ("plain",) or self.tags):
            raise ValueError("captions of films have one style and no tags; leave styles and tags out")
        if self.tags and self.styles[0] != "plain":
            raise ValueError("words of plain captions alone are tagged; expected plain as the first of styles")
        return self

    def identity(self) -> JSON:
        """As every component's; fields that came later are left out at their defaults."""
        found = super().identity()
        defaults = type(self).model_fields
        same = {name for name in _ADDED if getattr(self, name) == defaults[name].default}
        return {**found, "fields": {name: value for name, value in found["fields"].items() if name not in same}}

    @property
    def rules(self) -> Rules:
        """What the scenes are drawn from, for :func:`describe`."""
        return Rules(self.objects, self.twins, self.unseen, self.inside)

    def read(self) -> SceneExamples:
        """The split; nothing is drawn before it is asked for."""
        return SceneExamples(self)


def captions_of(spec: Scenes, index: int, style: Style = "plain") -> tuple[Caption, ...]:
    """The captions of a scene with what they say; each fits the scene and no other of its group.

    Their words are plain: :func:`texts_of` puts them in a style. Each style says something of its own.
    """
    scenes = group(spec.seed, spec.split, index // spec.twins, spec.rules)
    own = index % spec.twins
    others = [scene for i, scene in enumerate(scenes) if i != own]
    rng = source(spec.seed, spec.split, index, "captions" if style == "plain" else f"captions {style}")
    return tuple(caption(scenes[own], others, spec.omit, rng) for _ in range(spec.captions))


def texts_of(spec: Scenes, index: int) -> tuple[str, ...]:
    """The texts of a scene in all its styles, one style after the other."""
    return tuple(
        restyle(style, item, source(spec.seed, spec.split, index, f"style {style} {number}"))
        for style in spec.styles
        for number, item in enumerate(captions_of(spec, index, style))
    )


class SceneExamples:
    """The examples of a :class:`Scenes` split."""

    def __init__(self, spec: Scenes) -> None:
        self.spec = spec
        self.ids: Sequence[str] = tuple(f"scenes/{spec.seed}/{spec.split}/{index}" for index in range(spec.size))
        added = {
            "question": spec.questions,
            "answers": spec.questions,
            "question_kind": spec.questions,
            "frames": spec.frames > 0,
            "table": spec.table,
            "series": spec.series > 0,
            "words": spec.tags,
            "tags": spec.tags,
        }
        self.columns = frozenset({"image", "texts", "label", *(name for name, wanted in added.items() if wanted)})
        self.notes: Mapping[str, int] = {}

    def __len__(self) -> int:
        return self.spec.size

    def __getitem__(self, index: int) -> Example:
        spec = self.spec
        example_id = self.ids[index]
        index = index % spec.size
        scene = describe(spec.seed, spec.split, index, spec.rules)
        main = scene.things[scene.main]
        values = {
            "image": paint(scene, spec.image_size, spec.clutter, source(spec.seed, spec.split, index, "paint")),
            "texts": texts_of(spec, index) if not spec.frames else (),
            "label": main.colour * len(SHAPES) + main.shape,
        }
        return Example(example_id, {**values, **_added(spec, index, scene)})

    def fingerprint(self, index: int) -> str:
        """The digest of everything that the example follows from."""
        spec = self.spec.model_dump_json(exclude={"split", "size", "omit", "captions", *_ADDED})
        return hashlib.sha256(f"{spec} {self.ids[index]}".encode()).hexdigest()

    def classes(self) -> Sequence[str]:
        """``red star`` and so on, for templates such as ``a big {}``: the big object of a scene; of films the motion."""
        if self.spec.frames:
            return MOTIONS
        return tuple(f"{COLOURS[colour]} {SHAPES[shape]}" for colour, shape in PAIRS)

    def tag_classes(self) -> Sequence[str]:
        """Names of the classes that ``tags`` count."""
        return TAGS


def _added(spec: Scenes, index: int, scene: Scene) -> dict[str, Any]:
    """The values of the columns that fields switch on, each from a random source of its own."""

    def own(purpose: str) -> random.Random:
        return source(spec.seed, spec.split, index, purpose)

    values: dict[str, Any] = {}
    if spec.questions:
        question = ask(scene, spec.ambiguous, own("question"))
        values |= {"question": question.words, "answers": question.answers, "question_kind": question.kind}
    if spec.frames:
        move = move_of(scene, own("move"))
        values["frames"] = film(spec, index, scene, move)
        words = own("film captions")
        values["texts"] = tuple(narrate(scene, move, spec.omit, words) for _ in range(spec.captions))
        values["label"] = MOTIONS.index(f"moves {move.direction}")
    if spec.table:
        values["table"] = table_of(scene, own("table"))
    if spec.series:
        values["series"] = sweep(scene, spec.series, own("series"))
    if spec.tags:
        values["words"], values["tags"] = tag(captions_of(spec, index)[0].words)
    return values
