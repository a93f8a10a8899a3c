"""What a fusion model's config.json says, and how its inputs become arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_fusion as tiny
from numpy.typing import NDArray
from PIL import Image

from mmcompress.errors import InputError
from mmcompress.families._fusion_config import parse_config
from mmcompress.families.fusion import Fusion
from mmcompress.stages._batches import Batches, Encoded

pytestmark = pytest.mark.unit


def processor(folder: Path, values: dict[str, Any]) -> Any:
    return Fusion(path=tiny.source(folder, values).parent).processor(folder)


def test_every_mistake_is_told_at_once() -> None:
    values = tiny.config([{**tiny.image(), "sise": 3}, tiny.audio(tiny.LSTM, seconds=-1)])
    values["fusion"] = {"kind": "intermediate", "width": 30, "heads": 4}
    with pytest.raises(InputError) as error:
        parse_config(values, "config.json")
    told = str(error.value)
    assert "inputs.0.picture.sise: unknown key" in told
    assert "inputs.1.sound.seconds: Input should be greater than 0" in told
    assert "4 heads do not divide the width 30" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [tiny.image()]}, "at least 2 items"),
        ({"inputs": [tiny.image(), tiny.image()]}, "each name once"),
        ({"inputs": [tiny.image(), {**tiny.table(), "name": "label"}]}, "'label' is no name"),
        ({"inputs": [tiny.image(), tiny.audio(tiny.GRU, form="samples")]}, "samples are read by conv1d"),
        ({"inputs": [tiny.image(tiny.GRU), tiny.table()]}, "resnet"),
        ({"inputs": [tiny.image({"kind": "vit"}), tiny.table()]}, "expected config .* or pretrained"),
        ({"inputs": [tiny.image(), tiny.table(mean=[1, 2], std=[1, 1])]}, "2 numbers; expected 3"),
        ({"inputs": [tiny.image(), tiny.table(mean=[1, 2, 3])]}, "mean and std, or neither"),
        ({"output": {"kind": "class", "classes": ["cat"]}}, "two or more"),
        ({"output": {"kind": "several", "classes": ["cat", "cat"]}}, "distinct"),
        ({"output": tiny.TAGS}, "0 inputs are texts"),
        ({"output": tiny.TAGS, "inputs": [tiny.text(), tiny.text(name="words")]}, "name the one that is tagged"),
        ({"output": {**tiny.TAGS, "of": "imag"}}, "'imag' is no text input"),
        ({"output": tiny.TAGS, "inputs": [tiny.image(), tiny.text()], "fusion": tiny.LATE}, "early or intermediate"),
        ({"missing": 1.0}, "less than 1"),
    ],
)
def test_configurations_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    values = {**tiny.config([tiny.image(), tiny.table()]), **changes}
    with pytest.raises(InputError, match=message):
        parse_config(values, "config.json")


def test_each_kind_becomes_an_array(tmp_path: Path) -> None:
    inputs = [tiny.image(), tiny.film(), tiny.text(), tiny.audio(), tiny.table(), tiny.series(), tiny.features()]
    found = processor(tmp_path, tiny.config(inputs))
    given = {
        name: column[:] for name, column in tiny.values(3).items() if name not in ("words", "labels", "tags", "number")
    }
    given["series"] = [np.arange(8.0).reshape(4, 2), np.ones((2, 2)), np.zeros((50, 2))]
    given["frames"] = [tuple(Image.new("RGB", (9, 5), (level, 0, 0)) for level in range(7)), *given["frames"][1:]]
    given["label"] = [2, "cat", np.int64(1)]
    compact = found.compact(given)
    assert compact["series_values"].shape == (3, 20, 2) and compact["series_length"].tolist() == [4, 2, 20]
    assert compact["series_values"][0, :4].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert compact["frames_values"][0, :, 0, 0, 0].tolist() == [0, 2, 4, 6]  # four of seven, evenly spaced
    assert compact["label"].tolist() == [2, 0, 1]
    feeds = found.expand(compact)
    frames = feeds["audio_length"]
    assert frames.tolist() == [1 + min(len(sound.samples), 800) // 40 for sound in given["audio"]]
    assert feeds["audio_values"].shape == (3, frames.max(), 8)
    assert feeds["image_values"].shape == (3, 3, 16, 16) and feeds["frames_values"].shape[2:] == (3, 16, 16)
    assert feeds["text_values"].shape[1] == feeds["text_length"].max()
    assert feeds["features_values"].dtype == np.float32
    one = {name: array for column, some in given.items() for name, array in found.compact({column: some}).items()}
    assert all(np.array_equal(one[name], compact[name]) for name in compact)


def test_samples_are_kept_as_whole_numbers(tmp_path: Path) -> None:
    found = processor(tmp_path, tiny.config([tiny.table(), tiny.audio(tiny.CONV, form="samples")]))
    samples = np.array([0.0, 0.5, -1.0, 1.0], np.float32)
    compact = found.compact({"audio": [(samples, 4000)]})
    assert compact["audio_values"].dtype == np.int16 and compact["audio_values"].shape == (1, 800, 1)
    expanded = found.expand(compact)["audio_values"][0, :, 0]
    np.testing.assert_allclose(expanded, samples, atol=2e-5)


def test_words_are_found_again_in_the_tokens(tmp_path: Path) -> None:
    found = processor(tmp_path, tiny.config([tiny.image(), tiny.text(name="words")], output=tiny.TAGS))
    feeds = found.encode({"words": [("red", "star"), ("a", "green-ish", "ring")], "tags": [(0, 1), ("O", "B", "I")]})
    # The beginning, then a token per word; the tokenizer cuts the second word of the second text into three.
    assert feeds["words_starts"].tolist() == [[1, 2, -1], [1, 2, 5]]
    assert feeds["words_length"].tolist() == [4, 7]
    assert feeds["tags"].tolist() == [[0, 1, -1], [0, 1, 2]]
    with pytest.raises(InputError, match="1 tags for 2 words"):
        found.encode({"words": [("red", "star")], "tags": [(0,)]})
    with pytest.raises(InputError, match=r"words 1 of 1: 22 tokens; at most 12 are tagged"):
        found.compact({"words": [("red",) * 20]})
    with pytest.raises(InputError, match="makes nothing of the word ' '"):
        found.compact({"words": [("red", " ")]})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("table", [1.0, 2.0], "table 1 of 1: expected 3 numbers, got 2"),
        ("table", [1.0, float("nan"), 2.0], "table 1 of 1: holds values that are no numbers"),
        ("table", "many", "expected an array of numbers, got str"),
        ("series", np.zeros((4, 3)), r"series 1 of 1: expected \[t, 2\]"),
        ("series", np.zeros((0, 2)), "t one or more"),
        ("audio", (np.zeros(0, np.float32), 4000), "audio 1 of 1: .*empty sound"),
        ("text", 3, "text 1 of 1: expected a string, got int"),
        ("frames", (), "frames 1 of 1: expected a film"),
        ("label", 3, "3 is no class; expected a number from 0 to 2 or one of: cat, dog, cow"),
        ("label", "cart", "'cart' is no class"),
        ("image", None, "not trained with missing inputs"),
        ("photo", 0, "takes the columns .* got photo"),
    ],
)
def test_values_that_cannot_be_used(column: str, value: Any, message: str, tmp_path: Path) -> None:
    inputs = [tiny.image(), tiny.film(), tiny.text(), tiny.audio(), tiny.table(), tiny.series()]
    found = processor(tmp_path, tiny.config(inputs))
    with pytest.raises(InputError, match=message):
        found.compact({column: [value]})


def test_a_text_whose_end_would_be_left_out_is_refused_by_a_package_alone(tmp_path: Path) -> None:
    found = processor(tmp_path, tiny.config([tiny.image(), tiny.text()]))
    assert list(found.text_encoders) == ["text"]
    words = " ".join(["red"] * 200)
    assert (found.compact({"text": [words]})["text_values"] >= 0).all()
    found.text_encoders["text"].refuse_long([None, "red"])
    with pytest.raises(InputError, match=r"tokens more than the \d+ that the model takes\n  Shorten it"):
        found.text_encoders["text"].refuse_long(["red", words])


def test_a_tokenizer_has_to_fit(tmp_path: Path) -> None:
    small = {"kind": "bert", "config": {**tiny.BERT["config"], "vocab_size": 5}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="10 tokens, but the encoder of text knows 5"):
        tiny.write(tmp_path / "a", tiny.config([tiny.image(), tiny.text(small)]))
    short = {"kind": "bert", "config": {**tiny.BERT["config"], "max_position_embeddings": 8}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="max_length 12, but its encoder has 8 positions"):
        tiny.write(tmp_path / "b", tiny.config([tiny.image(), tiny.text(short)]))


# --- missing inputs ------------------------------------------------------------------------------------------------


def test_missing_inputs_are_marked(tmp_path: Path) -> None:
    found = processor(tmp_path, tiny.config([tiny.image(), tiny.table(), tiny.text()], missing=0.2))
    given = tiny.values(2)
    feeds = found.encode({"image": [None, given["image"][0]], "table": given["table"], "text": [None, None]})
    assert feeds["image_present"].tolist() == [0, 1] and feeds["table_present"].tolist() == [1, 1]
    assert feeds["text_length"].tolist() == [1, 1]  # nothing would have no mean
    with pytest.raises(InputError, match="example 2 of 2 has no input at all"):
        found.encode({"image": [given["image"][0], None], "table": [None, None], "text": ["red", None]})


def test_training_leaves_out_as_often_as_asked_and_never_all(tmp_path: Path) -> None:
    found = processor(tmp_path, tiny.config([tiny.image(), tiny.table(), tiny.text()], missing=0.5))
    count = 4000
    names = ("image", "table", "text")
    compact = {f"{name}_present": np.ones(count, np.uint8) for name in names}
    compact["table_present"][:1000] = 0

    def draw(stream: str) -> NDArray[np.float64]:
        return np.random.default_rng(sum(stream.encode())).random(count)

    left = found.leave_out(compact, draw)
    present = np.stack([left[f"{name}_present"] for name in names])
    assert present.any(axis=0).all()
    assert not present[1, :1000].any()  # what was missing stays so
    # 1/2, and 1/3 of the 1/8 in which nothing was left.
    assert present[0, 1000:].mean() == pytest.approx(0.5 + 1 / 24, abs=0.03)
    again = found.leave_out(compact, draw)
    assert all(np.array_equal(left[name], again[name]) for name in left)


def test_a_student_is_fed_less_than_its_teacher(tmp_path: Path) -> None:
    """By seed, epoch and example alone; a validation leaves nothing out."""
    found = processor(tmp_path, tiny.config([tiny.image(), tiny.table()], missing=0.5))
    given = tiny.values(32)
    arrays = found.compact({name: given[name] for name in ("image", "table", "label")})
    data = Encoded("key", [str(i) for i in range(32)], found, arrays, frozenset(), None)
    train = Batches(data, 16, seed=1, asks=True, thin=True)
    first, again = train[0], Batches(data, 16, seed=1, thin=True)[0]
    present = first["inputs"]["image_present"]
    assert 0 < present.sum() < 16 and np.array_equal(present, again["inputs"]["image_present"])
    assert first["teacher_inputs"]["image_present"].all() and "teacher_inputs" not in again
    assert not np.array_equal(present, train[2]["inputs"]["image_present"])
    assert Batches(data, 16, seed=1)[0]["inputs"]["image_present"].all()
