"""What is told of splits, and the page of examples."""

from __future__ import annotations

import base64
import io
import re
import wave
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mmcompress import cli
from mmcompress._sound import Sound
from mmcompress.data import Example, Examples
from mmcompress.data._page import page, summary
from mmcompress.data.codes import Codes
from mmcompress.data.scenes import Scenes

pytestmark = pytest.mark.unit


class Given:
    """Examples with given values."""

    def __init__(self, *values: dict[str, Any], classes: Sequence[str] = ()) -> None:
        self.values, self._classes = values, classes
        self.ids = [f"<{i}>" for i in range(len(values))]
        self.columns, self.notes = frozenset(values[0]), {"silent sounds": 1}

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], self.values[index])

    def fingerprint(self, index: int) -> str:
        return repr(self.values[index])

    def classes(self) -> Sequence[str]:
        return self._classes


def given(*values: dict[str, Any], classes: Sequence[str] = ()) -> Examples:
    return cast(Examples, Given(*values, classes=classes))


class Tags(HTMLParser):
    """Collects the sources of pictures and sounds, the text, and what is open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[tuple[str, str]] = []
        self.text = ""
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.sources += [(tag, value or "") for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_page_holds_everything_in_itself() -> None:
    sound = Sound(np.asarray([0, 0.5, -1], np.float32), 8000)
    picture = Image.new("RGB", (5, 4), (200, 0, 0))
    values = {
        **{"image": picture, "frames": (picture, picture), "audio": sound, "question": "<b>why?</b>"},
        **{"answers": ("x", "y", "x"), "label": 1, "number": 0.25, "table": np.asarray([1, 2.5], np.float32)},
        **{"series": np.asarray([[0, 1], [1, 0], [2, 0.5]], np.float32), "place": "here & there"},
    }
    text = page("a <title>", given(values, classes=("cat", "dog")), ["a line"], 5)
    found = Tags(text)
    assert [tag for tag, _ in found.sources] == ["audio", "img", "img", "img"]
    assert all(source.startswith("data:") for _, source in found.sources)
    assert "http" not in text and "b" not in found.names
    for expected in ("<b>why?</b>", "x (2), y (1)", "dog", "0.25", "[1, 2.5]", "here & there", "<0>", "a line"):
        assert expected in found.text
    data = base64.b64decode(found.sources[0][1].partition(",")[2])
    with wave.open(io.BytesIO(data)) as file:
        assert file.getframerate() == 8000
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 16383, -32767]
    shown = Image.open(io.BytesIO(base64.b64decode(found.sources[1][1].partition(",")[2])))
    assert shown.size == (5, 4) and shown.getpixel((0, 0)) == (200, 0, 0)
    # The first channel goes from the lower edge (31) to the upper one (1), in steps of half the width.
    assert 'points="0.00,31.00 50.00,16.00 100.00,1.00"' in text


def test_tagged_words_and_large_pictures() -> None:
    examples = Scenes(split="train", size=1, tags=True, image_size=400).read()
    text = page("x", examples, [], 1)
    words, tags = (examples[0].values[name] for name in ("words", "tags"))
    assert len(re.findall("<mark>", text)) == sum(tag > 0 for tag in tags) and words[0] in text
    source = Tags(text).sources[0][1]
    assert source.startswith("data:image/jpeg")
    assert max(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size) == 320


def test_the_summary_counts_sizes_copies_and_what_splits_share() -> None:
    sound = Sound(np.zeros(4000, np.float32), 8000)
    rows = [{"audio": sound, "label": 0, "texts": ("a", "b")}, {"audio": sound, "label": 1, "texts": ("a",)}]
    lines = summary({"train": given(*rows, rows[0], classes=("cat", "dog")), "test": given({"text": "x"})}, 50)
    assert lines == [
        "train: 3 examples of audio, label, texts, 2 classes",
        "  audio: sounds, 0.5 s at 8,000 Hz",
        "  label: 2 different, 'cat' in 67%",
        "  texts: 1 to 2 each, 2 different, 'a' in 60%",
        "  1 are copies of another example of this split",
        "  1 silent sounds",
        "test: 1 examples of text",
        "  text: 1 different, 'x' in 100%",
        "  1 silent sounds",
        "train and test share 1 of test's 1 examples (1 by id, 0 by content alone): '<0>'",
    ]
    codes = Codes(split="train", size=40).read()
    lines = summary({"train": codes, "test": Codes(split="test", size=5).read()}, 8)
    assert "  (sizes of 8 examples, drawn at random)" in lines and lines[-1] == "no example is in two splits"


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nname: small\nteacher: {clip: {path: teacher}}\n"
        "data:\n  train: {scenes: {split: train, size: 60, frames: 3, image_size: 24}}\n"
        "  validation: {from_train: 0.2}\n"
    )
    out = tmp_path / "pages" / "page.html"
    run = CliRunner().invoke(
        cli.cli, ["data", str(recipe), "--split", "validation", "--examples", "2", "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    assert "train: " in run.output and "frames: 3 each, pictures, 24 x 24 pixels, RGB" in run.output
    assert out.read_text().count("<article>") == 2 and "small: validation" in out.read_text()
    run = CliRunner().invoke(cli.cli, ["data", str(recipe), "--split", "test"])
    assert "no test split\n  Expected one of train, validation." in str(run.exception)
