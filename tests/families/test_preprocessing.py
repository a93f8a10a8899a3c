from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcompress.errors import InputError
from mmcompress.families import _images
from mmcompress.families._images import ImageEncoder, open_picture, read_image_settings, resolve_image_settings
from mmcompress.families._texts import (
    PADDING,
    TextEncoder,
    TextSettings,
    canonical,
    load_tokenizer,
    read_text_settings,
    word_level_tokenizer,
    write_word_level_tokenizer,
)

pytestmark = pytest.mark.unit

CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 24}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 20, "width": 28}}


def picture(mode: str, width: int, height: int) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode == "P":
        image = Image.fromarray(values[..., 0], "L").convert("P")
        image.info["transparency"] = 7
        return image
    if mode == "1":
        return Image.fromarray(values[..., 0], "L").convert("1")
    data = values[..., 0] if bands == 1 else values
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(data).tobytes())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("size", [(24, 24), (1, 1), (61, 40), (25, 90), (7, 11), (33, 33)])
@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_pictures_are_those_of_transformers(config: dict, size: tuple[int, int], mode: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = picture(mode, *size)
    kinds = {"CLIPImageProcessor": CLIPImageProcessorPil, "SiglipImageProcessor": SiglipImageProcessorPil}
    settings = {key: value for key, value in config.items() if key != "image_processor_type"}
    theirs = kinds[config["image_processor_type"]](**settings)(image, return_tensors="np")["pixel_values"]
    encoder = ImageEncoder(resolve_image_settings(config, "here"))
    ours = encoder.expand(encoder.compact([image]))
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("edge", [24, 384])
@pytest.mark.parametrize("size", [(61, 40), (25, 90), (7, 11)])
def test_pictures_of_a_resnet_are_those_of_transformers(edge: int, size: tuple[int, int]) -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    config = {"size": {"shortest_edge": edge}, "crop_pct": 0.875, "image_mean": [0.4, 0.5, 0.6]}
    theirs = ConvNextImageProcessorPil(**config)(picture("RGB", *size), return_tensors="np")["pixel_values"]
    encoder = ImageEncoder(resolve_image_settings({"image_processor_type": "ConvNextFeatureExtractor", **config}, "x"))
    ours = encoder.expand(encoder.compact([picture("RGB", *size)]))
    assert ours.shape == theirs.shape == (1, 3, edge, edge)
    np.testing.assert_array_equal(ours, theirs)


def test_pictures_of_chinese_clip_are_those_of_transformers() -> None:
    from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil

    config = {"size": {"height": 20, "width": 20}, "do_center_crop": False}
    image = picture("RGB", 61, 40)
    for given in (config, {}):
        theirs = ChineseCLIPImageProcessorPil(**given)(image, return_tensors="np")["pixel_values"]
        settings = resolve_image_settings({"image_processor_type": "ChineseCLIPImageProcessor", **given}, "x")
        encoder = ImageEncoder(settings)
        np.testing.assert_array_equal(encoder.expand(encoder.compact([image])), theirs)


def test_a_crop_larger_than_the_picture_is_padded_as_transformers_does() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for crop in (31, 32):
        config = {"do_resize": False, "crop_size": {"height": crop, "width": 20}, "do_center_crop": True}
        for size in ((10, 13), (40, 13), (13, 41)):
            image = picture("RGB", *size)
            theirs = CLIPImageProcessorPil(**config)(image, return_tensors="np")["pixel_values"]
            encoder = ImageEncoder(resolve_image_settings({"image_processor_type": "CLIPImageProcessor", **config}, ""))
            np.testing.assert_array_equal(encoder.expand(encoder.compact([image])), theirs)


def test_the_same_picture_in_every_form(tmp_path: Path) -> None:
    image = picture("RGB", 9, 5)
    image.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    encoder = ImageEncoder(resolve_image_settings(SIGLIP, "here"))
    rows = encoder.compact([image, tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue(), np.asarray(image)])
    assert rows.dtype == np.uint8 and rows.shape == (5, 20, 28, 3)
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_transparent_pixels_show_the_background() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert open_picture(image).getpixel((0, 0)) == (255, 255, 255)
    settings = resolve_image_settings({**SIGLIP, "background": [1, 2, 3]}, "here")
    assert ImageEncoder(settings).compact([image])[0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no picture", "picture 2 of 2: the picture: cannot be decoded"),
        ("/nowhere/a.png", "no such picture"),
        (3, "got int"),
        (np.zeros((4, 4, 3), np.float32), "uint8 .* got float32"),
        (np.zeros((4, 4), np.uint8), "uint8 .* got uint8"),
        (np.zeros((0, 4, 3), np.uint8), "empty picture"),
        (Image.new("F", (2, 2)), "mode 'F'"),
        (Image.new("I;16", (2, 2)), "mode 'I;16'"),
    ],
)
def test_what_is_no_picture_is_refused(value: object, message: str) -> None:
    encoder = ImageEncoder(resolve_image_settings(SIGLIP, "here"))
    with pytest.raises(InputError, match=message):
        encoder.compact([np.zeros((2, 2, 3), np.uint8), value])


def test_a_truncated_picture_is_refused() -> None:
    buffer = io.BytesIO()
    picture("RGB", 64, 64).save(buffer, "JPEG")
    with pytest.raises(InputError, match="cannot be decoded"):
        open_picture(buffer.getvalue()[:400])


def test_pictures_have_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images, "MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="more than 1,000 pixels"):
        open_picture(Image.new("RGB", (40, 40)))
    thin = Image.new("RGB", (1, 100))
    with pytest.raises(InputError, match="resized picture"):
        ImageEncoder(resolve_image_settings(CLIP, "here")).compact([thin])


def test_settings_from_either_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no settings for pictures"):
        read_image_settings(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SIGLIP}))
    nested = read_image_settings(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIGLIP))
    assert read_image_settings(tmp_path) == nested
    assert nested.output_size == (20, 28) and nested.resample == 3 and nested.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "OtherProcessor"}, "no 'size', and no defaults"),
        ({**CLIP, "size": {"longest_edge": 3}}, "longest_edge"),
        ({**CLIP, "resample": 9}, "resample"),
        ({**CLIP, "image_mean": [1, 2]}, "mean"),
    ],
)
def test_settings_that_are_not_understood(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_image_settings(config, "here")


def test_sizes_that_differ_per_picture_are_refused() -> None:
    settings = resolve_image_settings({**CLIP, "do_center_crop": False}, "here")
    with pytest.raises(InputError, match="another size"):
        ImageEncoder(settings).compact([Image.new("RGB", (3, 3))])


# --- texts ---------------------------------------------------------------------------------------------------------


def test_word_level_tokenizer_round_trip(tmp_path: Path) -> None:
    write_word_level_tokenizer(["red", "Circle", "red"], 5, tmp_path)
    settings = read_text_settings(tmp_path, 9)
    assert settings == TextSettings(max_length=5, pad_id=1)
    encoder = TextEncoder(load_tokenizer(tmp_path), settings)
    compact = encoder.compact(["RED circle", "red", "", "red red red red red", "red blue"])
    assert compact.dtype == np.int32
    # circle 3, red 4; 0 begins, 1 ends and pads, 2 is unknown
    assert compact.tolist() == [
        [0, 4, 3, 1, PADDING],
        [0, 4, 1, PADDING, PADDING],
        [0, 1, PADDING, PADDING, PADDING],
        [0, 4, 4, 4, 1],
        [0, 4, 2, 1, PADDING],
    ]
    feeds = encoder.expand(compact[:3])
    assert feeds["input_ids"].tolist() == [[0, 4, 3, 1], [0, 4, 1, 1], [0, 1, 1, 1]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert feeds["input_ids"].dtype == np.int64


def test_word_level_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    write_word_level_tokenizer(["red", "circle"], 6, tmp_path)
    texts = ["red circle", "a Red, red; circle red red red", "circle"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, truncation=True, return_tensors="np")
    encoder = TextEncoder(load_tokenizer(tmp_path), read_text_settings(tmp_path, 6))
    ours = encoder.expand(encoder.compact(texts))
    np.testing.assert_array_equal(ours["input_ids"], theirs["input_ids"])
    np.testing.assert_array_equal(ours["attention_mask"], theirs["attention_mask"])


def test_full_length_without_a_mask() -> None:
    settings = TextSettings(max_length=6, pad_id=1, full_length=True, clean="canonical")
    encoder = TextEncoder(word_level_tokenizer(["red"], 6), settings)
    feeds = encoder.expand(encoder.compact(["  RED,  red!"]))
    assert {name: value.tolist() for name, value in feeds.items()} == {"input_ids": [[0, 3, 3, 1, 1, 1]]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A photo of  2 Cats, (really)!", "a photo of 2 cats really"),
        ("\tx\n", "x"),
        ("", ""),
        ("don't {} \u00c9t\u00e9", "dont \u00e9t\u00e9"),
    ],
)
def test_canonical_texts(text: str, expected: str) -> None:
    assert canonical(text) == expected


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    encoder = TextEncoder(word_level_tokenizer(["red"], 6), TextSettings(max_length=6, pad_id=1))
    with pytest.raises(InputError, match="text 2 of 2: expected a string, got int"):
        encoder.compact(["a", 3])
    with pytest.raises(InputError, match="got one string"):
        encoder.compact("red")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_the_padding_token_is_known(tmp_path: Path) -> None:
    write_word_level_tokenizer(["red"], 6, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<other>"}))
    with pytest.raises(InputError, match="'<other>' is not in the vocabulary"):
        read_text_settings(tmp_path, 6)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    with pytest.raises(InputError, match="padding_side"):
        read_text_settings(tmp_path, 6)
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_text_settings(tmp_path, 4) == TextSettings(max_length=4, pad_id=1)


def test_importing_the_family_imports_nothing_heavy() -> None:
    code = (
        "import sys, mmcompress.families.clip;"
        "heavy = {'torch', 'transformers', 'PIL', 'tokenizers', 'safetensors'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
