"""The columns that fields of `scenes` switch on: questions, styles, films, a table, a range sensor, tagged words."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress.data._scenes_films import DIRECTIONS, Move, moves, narrate
from mmcompress.data._scenes_questions import KINDS, ask
from mmcompress.data._scenes_sensors import sweep, table_of
from mmcompress.data._scenes_styles import tag
from mmcompress.data._scenes_world import BIG, COLOURS, SHAPES, SIZES, Scene, Thing
from mmcompress.data._splits import subset
from mmcompress.data.scenes import (
    MOTIONS,
    TABLE_COLUMNS,
    TAGS,
    Scenes,
    answer_vocabulary,
    captions_of,
    describe,
    film_vocabulary,
    question_vocabulary,
    style_vocabulary,
)

pytestmark = pytest.mark.unit

RED_STAR, BLUE_RING = Thing(0, 3, 0, cell=3), Thing(4, 5, BIG, cell=8)
PAIR = Scene((RED_STAR, BLUE_RING), None)
EVERYTHING = {"questions": True, "styles": ("plain", "zh"), "table": True, "series": 8, "tags": True}


def test_additions_change_nothing_that_was_there() -> None:
    plain, more = Scenes(split="test", size=20), Scenes.model_validate({"split": "test", "size": 20, **EVERYTHING})
    one, other = plain.read(), more.read()
    assert other.columns - one.columns == {"question", "answers", "question_kind", "table", "series", "words", "tags"}
    for index in range(20):
        first, second = one[index].values, other[index].values
        assert set(second) == other.columns
        assert first["image"] == second["image"] and first["label"] == second["label"]
        assert second["texts"][:1] == first["texts"]
        assert one.fingerprint(index) == other.fingerprint(index)
        assert " ".join(second["words"]) == first["texts"][0]
    added = {"questions", "ambiguous", "styles", "frames", "table", "series", "tags"}
    assert not added & set(plain.identity()["fields"])
    assert added - set(more.identity()["fields"]) == {"ambiguous", "frames"}


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"styles": ["zh", "zh"]}, {"frames": 2, "tags": True}, {"styles": ["zh"], "tags": True}]
)
def test_what_does_not_go_together(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"expected|leave"):
        Scenes.model_validate({"split": "test", "size": 5, **wrong})


# --- questions -------------------------------------------------------------------------------------------------------


def answer(scene: Scene, words: str) -> str:
    """The answer of a question, read from its words alone."""

    def named(name: str) -> int:
        found = [
            i
            for i, thing in enumerate(scene.things)
            if (COLOURS[thing.colour] in name.split() or not set(COLOURS) & set(name.split()))
            and (SHAPES[thing.shape] in name.split() or not set(SHAPES) & set(name.split()))
            and ("big" not in name or thing.size == BIG)
            and (" in the " not in name or name.split(" in the ")[1] == place(thing.cell))
        ]
        assert len(found) == 1, (name, scene)
        return found[0]

    if match := re.fullmatch("what (color|shape|size) is (.*)", words):
        thing = scene.things[named(match[2])]
        return {"color": COLOURS[thing.colour], "shape": SHAPES[thing.shape], "size": SIZES[thing.size]}[match[1]]
    if match := re.fullmatch("how many (.*) are there", words):
        what = match[1].replace("objects", "").strip()
        names = [f"{COLOURS[t.colour]} {SHAPES[t.shape]}s" for t in scene.things]
        return str(sum(what.removesuffix("es").removesuffix("s") in name for name in names))
    if match := re.fullmatch("is there an? (.*)", words):
        return "yes" if match[1] in [f"{COLOURS[t.colour]} {SHAPES[t.shape]}" for t in scene.things] else "no"
    match = re.fullmatch("is (the .*?) (to the left of|to the right of|above|below|inside) (the .*)", words)
    assert match, words
    relation = match[2].removeprefix("to the ").removesuffix(" of")
    return "yes" if scene.holds(named(match[1]), relation, named(match[3])) else "no"


def place(cell: int) -> str:
    return (
        "middle" if cell == 4 else f"{('top', 'middle', 'bottom')[cell // 3]} {('left', 'center', 'right')[cell % 3]}"
    )


def test_questions_are_answered_by_their_scene() -> None:
    kinds: Counter[str] = Counter()
    truths: Counter[tuple[str, str]] = Counter()
    used: set[str] = set()
    for index in range(2000):
        scene = describe(2, "train", index)
        question = ask(scene, 0.0, random.Random(index))
        assert question.truth == answer(scene, question.words)
        assert Counter(question.answers).most_common(1)[0][1] >= 4
        kinds[question.kind] += 1
        truths[question.kind, question.truth] += 1
        used |= set(question.words.split())
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 260
    for kind in ("yes or no", "relation"):
        assert 0.4 < truths[kind, "yes"] / kinds[kind] < 0.6
    assert used <= set(question_vocabulary())
    assert len(used) > 0.8 * len(question_vocabulary())


def test_annotators_agree_but_on_the_ambiguous_questions() -> None:
    def agreement(ambiguous: float) -> float:
        spec = Scenes(split="test", size=400, questions=True, ambiguous=ambiguous)
        examples = spec.read()
        shares = []
        for index in range(400):
            answers = examples[index].values["answers"]
            assert len(answers) == 10 and set(answers) <= set(answer_vocabulary())
            shares.append(Counter(answers).most_common(1)[0][1] / 10)
        return float(np.mean(shares))

    clear, some, unclear = (agreement(share) for share in (0.0, 0.5, 1.0))
    assert clear > 0.88 > some > 0.65 > unclear > 0.4


# --- styles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["plain", "terse", "formal", "casual", "zh"])
def test_styles_say_what_their_facts_say_in_a_closed_vocabulary(style: str) -> None:
    spec = Scenes.model_validate({"split": "train", "size": 600, "styles": [style]})
    examples = spec.read()
    zh = dict(zip(("红", "橙", "黄", "绿", "蓝", "紫", "粉", "棕"), COLOURS, strict=True))
    used: set[str] = set()
    for index in range(600):
        (fact,) = captions_of(spec, index, spec.styles[0])
        assert fact.fits(describe(0, "train", index, spec.rules))
        (words,) = examples[index].values["texts"]
        bare = re.sub("[.,。\N{FULLWIDTH COMMA}]", "" if style == "zh" else " ", words.lower())
        parts = list(bare) if style == "zh" else bare.replace("violet", "purple").split()
        said = [zh.get(part, part) for part in parts if zh.get(part, part) in COLOURS]
        assert said == [COLOURS[m.colour] for m in fact.mentions if m.colour is not None]
        used |= set(list(bare) if style == "zh" else bare.split())
    allowed = set(style_vocabulary(spec.styles[0]))
    assert used <= allowed
    assert len(used) > 0.85 * len(allowed)


def test_several_styles_are_alternatives() -> None:
    spec = Scenes(split="train", size=3, styles=("plain", "formal", "zh"), captions=2)
    texts = spec.read()[2].values["texts"]
    assert len(texts) == 6
    assert [text.startswith("The ") for text in texts] == [False, False, True, True, False, False]
    assert all(text.startswith(("图中", "画面里")) and text.endswith("。") for text in texts[4:])


# --- films -----------------------------------------------------------------------------------------------------------


def test_films_show_one_object_on_its_way() -> None:
    spec = Scenes(split="train", size=40, frames=3, inside=0.0, clutter=0.0)
    still = Scenes(split="train", size=40, inside=0.0, clutter=0.0).read()
    examples = spec.read()
    assert examples.classes() == MOTIONS
    for index in range(40):
        values = examples[index].values
        frames = values["frames"]
        assert len(frames) == 3 and frames[0] == values["image"] == still[index].values["image"]
        assert "frames" in examples.columns and len(values["texts"]) == 1
        first, last = (np.asarray(frames[i], dtype=float) for i in (0, 2))
        changed = np.abs(last - first).max(axis=2) > 40
        # What is the background at the end was covered by the object at the beginning.
        background = np.median(first.reshape(-1, 3), axis=0)
        left = changed & (np.abs(last - background).max(axis=2) < 40)
        reached = changed & (np.abs(first - background).max(axis=2) < 40)
        step = np.argwhere(reached).mean(axis=0) - np.argwhere(left).mean(axis=0)
        direction = DIRECTIONS[values["label"]]
        rows, columns = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}[direction]
        assert step @ np.asarray([rows, columns]) > 6
        assert abs(step @ np.asarray([columns, rows])) < 6


def test_directions_are_even_and_captions_name_them() -> None:
    spec = Scenes(split="test", size=400, frames=2, image_size=24, captions=2)
    examples = spec.read()
    counts: Counter[int] = Counter()
    used: set[str] = set()
    for index in range(400):
        values = examples[index].values
        counts[values["label"]] += 1
        for text in values["texts"]:
            assert re.search(f"(moves|slides|goes|travels) {DIRECTIONS[values['label']]}", text)
            used |= set(text.split())
    assert min(counts.values()) > 60
    assert used == set(film_vocabulary())


def test_moves_of_a_scene() -> None:
    # The star (middle left) may go up and down one cell, right two; the ring (bottom right) up two, left two.
    found = {(move.thing, move.direction, move.distance) for move in moves(PAIR)}
    star = {(0, "up", 1), (0, "down", 1), (0, "right", 1), (0, "right", 2)}
    assert found == star | {(1, "up", 1), (1, "up", 2), (1, "left", 1), (1, "left", 2)}
    held = Scene((Thing(0, 3, 0, cell=8), BLUE_RING), 0)
    assert {move.thing for move in moves(held)} == {1}
    words = narrate(PAIR, Move(0, "right", 2), 0.0, random.Random(1))
    assert re.fullmatch(
        "a small red star [a-z]+ right from the middle left (while|as) a big blue ring stays in the bottom right", words
    )


# --- table, sensor, tags ---------------------------------------------------------------------------------------------


def test_the_table_tells_the_scene_in_part() -> None:
    row = table_of(PAIR, random.Random(0))
    assert row.dtype == np.float32 and len(row) == len(TABLE_COLUMNS)
    assert row[:5].tolist() == [2, 0, 2, 2, 0]
    warmth = [table_of(PAIR, random.Random(seed))[5] for seed in range(300)]
    assert np.mean(warmth) == pytest.approx(-1.0, abs=0.03) and np.std(warmth) == pytest.approx(0.1, abs=0.02)


def test_the_sensor_sees_the_underside_of_the_lowest_objects() -> None:
    # A medium square in the middle (radius 0.125) reaches down to 0.5 + 0.84 * 0.125 = 0.605; a big circle above it is hidden.
    scene = Scene((Thing(0, SHAPES.index("square"), 1, cell=4), Thing(1, 0, BIG, cell=1)), None)
    reading = np.mean([sweep(scene, 9, random.Random(seed)) for seed in range(200)], axis=0)
    assert reading.shape == (9, 1)
    expected = [1, 1, 1, 1, 1 - 0.605, 1, 1, 1, 1]
    # The outer beams of the middle cell pass the square (0.105 wide) and meet the circle of radius 0.95 * 0.175.
    edge = 1 - (1 / 6 + np.sqrt((0.95 * 0.175) ** 2 - (1 / 9) ** 2))
    expected[3] = expected[5] = edge
    assert reading[:, 0] == pytest.approx(expected, abs=0.005)


def test_words_are_tagged_by_phrase() -> None:
    words, tags = tag(
        "a scene with a tiny red hoop at the upper left corner that contains an object to the left of a plus"
    )
    named = [(word, TAGS[number]) for word, number in zip(words, tags, strict=True) if number]
    assert named == [
        ("tiny", "B-SIZE"),
        ("red", "B-COLOUR"),
        ("hoop", "B-SHAPE"),
        *[("upper", "B-PLACE"), ("left", "I-PLACE"), ("corner", "I-PLACE")],
        *[("that", "B-RELATION"), ("contains", "I-RELATION")],
        ("object", "B-SHAPE"),
        *[("to", "B-RELATION"), ("the", "I-RELATION"), ("left", "I-RELATION"), ("of", "I-RELATION")],
        ("plus", "B-SHAPE"),
    ]


def test_tags_agree_with_the_facts_of_their_caption() -> None:
    spec = Scenes(split="train", size=300, tags=True)
    examples = spec.read()
    assert examples.tag_classes() == TAGS and subset(examples, 2).tag_classes() == TAGS
    assert subset(Scenes(split="train", size=3).read(), 2).tag_classes() == TAGS
    for index in range(300):
        (fact,), values = captions_of(spec, index), examples[index].values
        count = Counter(TAGS[number] for number in values["tags"])
        assert count["B-COLOUR"] == sum(m.colour is not None for m in fact.mentions)
        assert count["B-SIZE"] == sum(m.size is not None for m in fact.mentions)
        assert count["B-PLACE"] == sum(m.cell is not None for m in fact.mentions)
        assert count["B-SHAPE"] == len(fact.mentions)
        assert count["B-RELATION"] == len(fact.relations)
