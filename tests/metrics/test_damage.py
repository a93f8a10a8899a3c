from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mmcompress._sound import Sound
from mmcompress.metrics._damage import Damage

pytestmark = pytest.mark.unit

GREY = Image.new("RGB", (64, 48), (128, 128, 128))
TONE = Sound(np.sin(np.arange(8000) / 5).astype(np.float32) / 2, 8000)


def damaged(damage: Damage, value: Any, example: str = "a", name: str = "image") -> Any:
    return damage.apply(name, [example], [value])[0]


def test_noise_has_the_stated_strength_and_follows_from_the_id() -> None:
    noise = Damage(noise=0.1)
    pixels = np.asarray(damaged(noise, GREY), dtype=float)
    assert pixels.std() == pytest.approx(25.5, rel=0.03)
    assert np.array_equal(pixels, np.asarray(damaged(noise, GREY)))
    assert not np.array_equal(pixels, np.asarray(damaged(noise, GREY, example="b")))
    heard = damaged(Damage(noise=0.5), TONE, name="audio")
    assert np.std(heard.samples - TONE.samples) == pytest.approx(0.5 * np.sqrt(np.mean(TONE.samples**2)), rel=0.03)
    assert heard.rate == 8000
    table = np.array([3.0, -4.0], dtype=np.float32)
    assert damaged(noise, table, name="table").dtype == np.float32


def test_noise_leaves_transparency_and_other_values_alone() -> None:
    image = Image.new("RGBA", (8, 8), (10, 200, 30, 77))
    found = np.asarray(damaged(Damage(noise=0.2), image))
    assert (found[..., 3] == 77).all()
    assert (found[..., :3] != (10, 200, 30)).any()
    assert damaged(Damage(noise=0.2), "a text", name="text") == "a text"
    assert damaged(Damage(noise=0.2, input="other"), GREY) is GREY


def test_frames_of_a_film_have_noise_of_their_own() -> None:
    first, second = damaged(Damage(noise=0.1), (GREY, GREY), name="frames")
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_silence_is_one_stretch_of_the_stated_length() -> None:
    ones = Sound(np.ones(1000, dtype=np.float32), 1000)
    quiet = damaged(Damage(silence=0.25), ones, name="audio").samples == 0
    assert quiet.sum() == 250
    assert np.diff(quiet.astype(int)).astype(bool).sum() <= 2
    assert ones.samples.all()
    assert damaged(Damage(silence=0.25), GREY) is GREY


def test_blur_and_darkness_by_hand() -> None:
    edge = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 32, axis=1).repeat(64, axis=0))
    line = np.asarray(damaged(Damage(blur=1 / 16), edge), dtype=float)[32]  # a standard deviation of four pixels
    assert np.searchsorted(line, 255 * 0.8413) - 31.5 == pytest.approx(4, abs=1)
    assert np.asarray(damaged(Damage(dark=0.75), GREY)).mean() == pytest.approx(32, abs=0.5)


def test_what_is_missing_is_none() -> None:
    assert damaged(Damage(missing="image"), GREY) is None
    assert damaged(Damage(missing="audio"), GREY) is GREY


@pytest.mark.parametrize(
    "fields", [{}, {"noise": 0.1, "blur": 0.1}, {"noise": 0}, {"dark": 1.5}, {"missing": "image", "input": "image"}]
)
def test_one_kind_with_a_share_is_asked_for(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Damage(**fields)


def test_it_is_told_in_a_few_words() -> None:
    assert str(Damage(noise=0.1)) == "noise 0.1"
    assert str(Damage(silence=1, input="audio")) == "silence 1 on audio"
    assert str(Damage(missing="image")) == "missing image"
