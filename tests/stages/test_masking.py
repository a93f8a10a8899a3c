from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmcompress.families import Masking
from mmcompress.stages._augment import augment_pictures
from mmcompress.stages._batches import View
from mmcompress.stages._masking import mask_words

pytestmark = pytest.mark.unit

MASKING = Masking(token=4, vocabulary=50, special=(0, 2, 3, 4), share=0.3)


def given(**draws: list[float]) -> object:
    return lambda stream: np.array([draws[stream.replace(" ", "_")]])


def test_chosen_words_are_hidden_replaced_or_kept() -> None:
    tokens = np.array([[2, 10, 11, 12, 13, 3, -1]], np.int32)
    draw = given(
        mask=[0.0, 0.1, 0.2, 0.29, 0.31, 0.0, 0.0],
        mask_kind=[0.0, 0.79, 0.81, 0.91, 0.0, 0.0, 0.0],
        mask_word=[0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0],
    )
    hidden, words = mask_words(tokens, MASKING, draw)  # type: ignore[arg-type]
    assert hidden.tolist() == [[2, 4, 25, 12, 13, 3, -1]]
    assert words.tolist() == [[-1, 10, 11, 12, -1, -1, -1]]
    assert tokens.tolist() == [[2, 10, 11, 12, 13, 3, -1]], "the arrays of the cache stay as they are"


def test_a_text_with_words_has_one_hidden_and_one_without_has_none() -> None:
    tokens = np.array([[2, 10, 11, 3], [2, 3, -1, -1]], np.int32)
    chance = np.array([[0.0, 0.9, 0.8, 0.0]] * 2)
    hidden, words = mask_words(tokens, MASKING, lambda stream: chance if stream == "mask" else chance * 0)
    assert hidden.tolist() == [[2, 10, 4, 3], [2, 3, -1, -1]]
    assert words.tolist() == [[-1, -1, 11, -1], [-1] * 4]


def test_shares_follow_and_views_are_functions_of_seed_epoch_and_example() -> None:
    tokens = np.full((2000, 10), 9, np.int32)
    hashes = np.arange(20000, dtype=np.uint64).reshape(2000, 10)

    def masked(epoch: int) -> np.ndarray:
        return mask_words(tokens, MASKING, lambda stream: View(5, epoch).draw(hashes, stream))[0]

    first = masked(1)
    assert np.array_equal(first, masked(1))
    assert not np.array_equal(first, masked(2))
    counts = Counter(first[first != 9].tolist())
    assert counts[4] / 20000 == pytest.approx(0.3 * 0.8, abs=0.015)
    assert (sum(counts.values()) - counts[4]) / 20000 == pytest.approx(0.3 * 0.1, abs=0.01)


def test_a_picture_on_a_canvas_is_altered_as_if_it_were_alone() -> None:
    noise = np.random.default_rng(0)
    canvas = np.zeros((3, 16, 24, 3), np.uint8)
    sizes = np.array([[16, 24], [8, 16], [16, 16]], np.int32)
    for picture, (height, width) in zip(canvas, sizes, strict=True):
        picture[:height, :width] = noise.integers(0, 255, (height, width, 3))
    draws = {stream: noise.random(3) for stream in ("x", "y", "area", "light", "gap")}
    for augment in ("shift", "crop"):
        found = augment_pictures(canvas, augment, draws, sizes)
        for index, (height, width) in enumerate(sizes):
            own = {stream: draw[index : index + 1] for stream, draw in draws.items()}
            alone = augment_pictures(canvas[index : index + 1, :height, :width], augment, own)[0]
            assert np.array_equal(found[index, :height, :width], alone)
            assert not np.array_equal(alone, canvas[index, :height, :width])
            assert not found[index, height:].any()
            assert not found[index, :, width:].any()
