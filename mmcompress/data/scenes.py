"""Generated pictures of a few objects with English captions: nothing is downloaded, every example follows from its index.

A picture shows two or three objects in the cells of a 3 x 3 grid: colour (8), shape (8), size (3, exactly one object is
big) and place, at times one object inside another, on a background with clutter that no caption mentions. A caption
says enough to find its picture among a thousand, in varied words from a closed vocabulary, and seldom everything.

What makes it hard: scenes come in groups of ``twins`` that differ in one respect (colours, shapes or places swapped
between two objects, one attribute changed); ten (colour, shape) pairs never occur in training, and a share ``unseen``
of the validation and test scenes shows at least one of them, the same ten in both, so that validation predicts test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from mmcompress.data import Dataset, Example
from mmcompress.data._scenes_paint import paint
from mmcompress.data._scenes_words import Caption, caption, vocabulary
from mmcompress.data._scenes_world import COLOURS, HELD_OUT, PAIRS, SHAPES, Rules, Scene, Split, describe, group, source

__all__ = ["HELD_OUT", "Rules", "Scene", "Scenes", "captions_of", "describe", "vocabulary"]


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
    """Captions per picture, as alternatives."""

    @field_validator("objects")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= value[0] <= value[1] <= 4:
            raise ValueError("expected the fewest and the most objects, between 2 and 4, such as [2, 3]")
        return value

    @property
    def rules(self) -> Rules:
        """What the scenes are drawn from, for :func:`describe`."""
        return Rules(self.objects, self.twins, self.unseen, self.inside)

    def read(self) -> SceneExamples:
        """The split; nothing is drawn before it is asked for."""
        return SceneExamples(self)


def captions_of(spec: Scenes, index: int) -> tuple[Caption, ...]:
    """The captions of a scene with what they say; each fits the scene and no other of its group."""
    scenes = group(spec.seed, spec.split, index // spec.twins, spec.rules)
    own = index % spec.twins
    others = [scene for i, scene in enumerate(scenes) if i != own]
    rng = source(spec.seed, spec.split, index, "captions")
    return tuple(caption(scenes[own], others, spec.omit, rng) for _ in range(spec.captions))


class SceneExamples:
    """The examples of a :class:`Scenes` split."""

    def __init__(self, spec: Scenes) -> None:
        self.spec = spec
        self.ids: Sequence[str] = tuple(f"scenes/{spec.seed}/{spec.split}/{index}" for index in range(spec.size))
        self.columns = frozenset({"image", "texts", "label"})
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
            "texts": tuple(item.words for item in captions_of(spec, index)),
            "label": main.colour * len(SHAPES) + main.shape,
        }
        return Example(example_id, values)

    def fingerprint(self, index: int) -> str:
        """The digest of everything that the example follows from."""
        spec = self.spec.model_dump_json(exclude={"split", "size", "omit", "captions"})
        return hashlib.sha256(f"{spec} {self.ids[index]}".encode()).hexdigest()

    def classes(self) -> Sequence[str]:
        """``red star`` and so on, for templates such as ``a big {}``: the big object of a scene."""
        return tuple(f"{COLOURS[colour]} {SHAPES[shape]}" for colour, shape in PAIRS)
