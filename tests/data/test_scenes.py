from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress.component import dump, parse
from mmcompress.data._scenes_words import MAX_WORDS, Caption, Mention
from mmcompress.data._scenes_world import BIG, COLOURS, SEEN, SHAPES, Thing
from mmcompress.data.scenes import HELD_OUT, Rules, Scene, Scenes, captions_of, describe, vocabulary

pytestmark = pytest.mark.unit

DIGEST = """
import hashlib, sys
from mmcompress.data.scenes import Scenes
digest = hashlib.sha256()
examples = Scenes(split="test", size=40, seed=3).read()
for i in reversed(range(40)):
    example = examples[i]
    digest.update(repr((example.id, example.values["texts"], example.values["label"])).encode())
    digest.update(example.values["image"].tobytes())
sys.stdout.write(digest.hexdigest())
"""


def pairs(scene: Scene) -> set[tuple[int, int]]:
    return {(thing.colour, thing.shape) for thing in scene.things}


def test_same_examples_in_other_processes_and_orders() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", DIGEST], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": s}
        )
        for s in ("1", "2")
    ]
    examples = Scenes(split="test", size=40, seed=3).read()
    drawn = {}
    for i in range(40):
        example = examples[i]
        drawn[i] = repr((example.id, example.values["texts"], example.values["label"])).encode()
        drawn[i] += example.values["image"].tobytes()
    here = hashlib.sha256(b"".join(drawn[i] for i in reversed(range(40)))).hexdigest()
    assert [output.stdout for output in outputs] == [here, here]


def test_a_larger_split_begins_with_the_smaller_one_and_other_seeds_and_splits_differ() -> None:
    small = Scenes(split="train", size=7).read()
    large = Scenes(split="train", size=5000).read()
    assert tuple(large.ids[:7]) == tuple(small.ids)
    assert small[6].values["texts"] == large[6].values["texts"]
    assert small[6].values["image"] == large[6].values["image"]
    assert small.fingerprint(6) == large.fingerprint(6)
    others = [Scenes(split="train", size=7, seed=1).read(), Scenes(split="validation", size=7).read()]
    assert all(small[6].values["texts"] != other[6].values["texts"] for other in others)
    assert len({split.fingerprint(6) for split in (small, *others)}) == 3


def test_held_out_pairs_never_occur_in_training_and_always_in_test() -> None:
    assert len(HELD_OUT) == 10
    assert len(SEEN) == 54
    train = [describe(0, "train", i) for i in range(2000)]
    assert not any(pairs(scene) & HELD_OUT for scene in train)
    assert set().union(*map(pairs, train)) == set(SEEN)
    for split in ("validation", "test"):
        scenes = [describe(0, split, i) for i in range(1000)]
        assert all(pairs(scene) & HELD_OUT for scene in scenes)
        assert HELD_OUT < set().union(*map(pairs, scenes))
    assert not any(pairs(describe(0, "test", i, Rules(unseen=0.0))) & HELD_OUT for i in range(300))
    some = [bool(pairs(describe(0, "test", i, Rules(unseen=0.5))) & HELD_OUT) for i in range(1000)]
    assert 0.4 < np.mean(some) < 0.6


def test_every_colour_and_shape_keeps_most_of_its_pairs_in_training() -> None:
    assert min(Counter(colour for colour, _ in SEEN).values()) >= 6
    assert min(Counter(shape for _, shape in SEEN).values()) >= 5
    assert set(Counter(colour for colour, _ in SEEN)) == set(range(len(COLOURS)))


@pytest.mark.parametrize("rules", [Rules(), Rules(objects=(3, 4), twins=4, inside=0.6), Rules(objects=(2, 2), twins=1)])
def test_scenes_are_well_formed(rules: Rules) -> None:
    for index in range(300):
        scene = describe(5, "validation", index, rules)
        assert rules.objects[0] <= len(scene.things) <= rules.objects[1]
        assert sum(thing.size == BIG for thing in scene.things) == 1
        assert len(pairs(scene)) == len(scene.things)
        cells = Counter(thing.cell for thing in scene.things)
        assert sorted(cells.values(), reverse=True)[0] == (1 if scene.inner is None else 2)
        if scene.inner is not None:
            assert scene.things[scene.inner].cell == scene.things[scene.main].cell
            assert scene.things[scene.inner].colour != scene.things[scene.main].colour


def test_twins_differ_in_few_attributes_and_their_captions_tell_them_apart() -> None:
    spec = Scenes(split="test", size=400, twins=2, omit=1.0)
    changed = 0
    for index in range(0, 400, 2):
        first, second = (describe(0, "test", i, spec.rules) for i in (index, index + 1))
        assert first.content != second.content
        assert len(first.things) == len(second.things)
        changed += sum(a != b for a, b in zip(first.things, second.things, strict=True))
        (own,), (other,) = captions_of(spec, index), captions_of(spec, index + 1)
        assert own.fits(first)
        assert not own.fits(second)
        assert other.fits(second)
        assert not other.fits(first)
    assert changed <= 2 * 200


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_caption_seldom_fits_a_second_picture_of_a_thousand(split: str) -> None:
    spec = Scenes.model_validate({"split": split, "size": 1000})
    scenes = [describe(0, spec.split, i, spec.rules) for i in range(1000)]
    captions = [captions_of(spec, i)[0] for i in range(0, 1000, 2)]
    ambiguous = sum(sum(caption.fits(scene) for scene in scenes) > 1 for caption in captions)
    assert ambiguous <= 8  # of 500; 0.7 % of 2,000 captions were


def test_captions_are_short_lower_case_and_from_a_closed_vocabulary() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    assert len(words) < 200
    used: set[str] = set()
    lengths = []
    for split in ("train", "test"):
        spec = Scenes.model_validate({"split": split, "size": 1500, "captions": 2, "objects": (2, 4)})
        for index in range(1500):
            for caption in captions_of(spec, index):
                used.update(caption.words.split(" "))
                lengths.append(len(caption.words.split()))
                assert "a a" not in caption.words
                assert not any(a == "a" and b[0] in "aeiou" for a, b in pairwise(caption.words.split()))
    assert used == set(words)
    assert max(lengths) <= MAX_WORDS
    assert len(set(lengths)) > 8


def test_captions_vary_and_leave_things_out() -> None:
    spec = Scenes(split="train", size=500)
    captions = [captions_of(spec, i)[0] for i in range(500)]
    partial = sum(
        any(None in (m.colour, m.shape, m.size, m.cell) for m in c.mentions)
        or len(c.mentions) < len(describe(0, "train", i).things)
        for i, c in enumerate(captions)
    )
    assert partial > 350
    assert sum(bool(c.relations) for c in captions) > 250
    full = Scenes(split="train", size=500, omit=0.0, objects=(2, 2))
    assert all(None not in (m.size, m.colour) for i in range(100) for m in captions_of(full, i)[0].mentions)
    several = Scenes(split="train", size=2, captions=4).read()[0].values["texts"]
    assert len(set(several)) == 4


def test_what_a_caption_fits() -> None:
    red_star, blue_ring = Thing(0, 3, 0, cell=3), Thing(4, 5, BIG, cell=8)
    scene = Scene((red_star, blue_ring), None)
    star, ring = Mention(0, 3, None, None), Mention(None, 5, BIG, None)
    assert Caption((star, ring), ((0, "left", 1),), "").fits(scene)
    assert Caption((star, ring), ((0, "above", 1),), "").fits(scene)
    assert Caption((ring, star), ((0, "below", 1),), "").fits(scene)
    assert not Caption((star, ring), ((0, "right", 1),), "").fits(scene)
    assert not Caption((star, ring), ((0, "inside", 1),), "").fits(scene)
    assert not Caption((Mention(4, 3, None, None),), (), "").fits(scene)
    assert not Caption((star, star), (), "").fits(scene)
    assert not Caption((Mention(0, 3, None, 4),), (), "").fits(scene)
    inside = Scene((Thing(0, 3, 0, cell=8), blue_ring), 0)
    assert Caption((star, ring), ((0, "inside", 1),), "").fits(inside)
    assert not Caption((ring, star), ((0, "inside", 1),), "").fits(inside)


def test_labels_name_the_big_object() -> None:
    examples = Scenes(split="test", size=200).read()
    classes = examples.classes()
    assert len(set(classes)) == 64
    assert {word for name in classes for word in name.split()} <= set(vocabulary())
    for index in range(20):
        big = next(thing for thing in describe(0, "test", index).things if thing.size == BIG)
        assert classes[examples[index].values["label"]] == f"{COLOURS[big.colour]} {SHAPES[big.shape]}"


def test_the_picture_shows_the_colours_of_its_objects() -> None:
    spec = Scenes(split="train", size=60, clutter=0.0, twins=1, inside=0.0)
    examples = spec.read()
    for index in range(60):
        pixels = np.asarray(examples[index].values["image"], dtype=float)
        assert pixels.shape == (48, 48, 3)
        for thing in describe(0, "train", index, spec.rules).things:
            if SHAPES[thing.shape] == "ring":
                continue
            patch = pixels[thing.row * 16 : thing.row * 16 + 16, thing.column * 16 : thing.column * 16 + 16]
            red, green, blue = patch[6:10, 6:10].reshape(-1, 3).mean(0)
            if COLOURS[thing.colour] in ("red", "orange"):
                assert red > green > blue - 30
            if COLOURS[thing.colour] == "blue":
                assert blue > max(red, green) + 20


def test_clutter_changes_the_picture_and_not_the_scene() -> None:
    plain, messy = (Scenes(split="train", size=1, clutter=clutter).read()[0] for clutter in (0.0, 1.0))
    assert plain.values["texts"] == messy.values["texts"]
    assert plain.values["image"] != messy.values["image"]


def test_examples_are_unique_and_out_of_range_is_an_error() -> None:
    examples = Scenes(split="test", size=300).read()
    assert len(set(examples.ids)) == 300
    assert len({examples.fingerprint(i) for i in range(300)}) == 300
    assert examples.columns == set(examples[0].values)
    assert examples.notes == {}
    with pytest.raises(IndexError):
        examples[300]


def test_in_a_recipe() -> None:
    scenes = parse("data", {"scenes": {"split": "test", "size": 20_000, "objects": [2, 4], "unseen": 0.5}})
    assert parse("data", dump(scenes)) == scenes
    assert isinstance(scenes, Scenes)
    assert len(scenes.read()) == 20_000
    for wrong in ({"objects": [3, 2]}, {"objects": [1, 9]}, {"size": 0}, {"omit": 2.0}, {"sise": 3}):
        with pytest.raises(ValidationError):
            Scenes.model_validate({"split": "test", "size": 5, **wrong})
