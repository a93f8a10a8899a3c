from __future__ import annotations

from functools import cache
from pathlib import Path

import deployed
import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress import deploy
from mmcompress.families._images import ImageEncoder, ImageSettings
from mmcompress.families._picture_graph import scale_and_shift
from mmcompress.families.clip import Clip
from mmcompress.package import load_package
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages import Model

TOLERANCE = 1e-5
"""Of embeddings: bytes are scaled in FP32 in another order than the tables of the processor."""
pytestmark = pytest.mark.usefixtures("one_thread")


def family() -> Clip:
    return Clip(path=deployed.checkpoint(), preprocessing="graph")


@cache
def package() -> Path:
    base, graphs = deployed.model(), deployed.folder("bytes-fp32")
    deploy.export(family(), base.folder, graphs)
    path, probe = deployed.folder("bytes-package"), deployed.Pictures(16, start=100)
    deploy.compile(family(), base.folder, graphs, OnnxRuntime(), "fp32", Model(family(), base.folder), probe, {}, path)
    return path


def test_a_package_that_takes_bytes_answers_as_the_ordinary_one() -> None:
    pictures = [deployed.Pictures(24, start=300)[index].values["image"] for index in range(24)]
    with load_package(package(), threads=1) as raw, load_package(deployed.package("fp32"), threads=1) as usual:
        signature = raw.manifest["graphs"]["vision_model"]["inputs"]
        assert signature == {"pixels": {"dtype": "uint8", "shape": ["batch", 32, 32, 3]}}
        assert raw.manifest["family_fields"]["preprocessing"] == "graph"
        assert raw.processor.encode({"image": pictures[:2]})["pixels"].dtype == np.uint8
        expected = usual.embed_images(pictures)
        assert np.abs(expected[0] - expected[1]).max() > 0.01
        np.testing.assert_allclose(raw.embed_images(pictures), expected, atol=TOLERANCE)
        np.testing.assert_allclose(raw.embed_texts(["a red star"]), usual.embed_texts(["a red star"]), atol=TOLERANCE)
        assert all(check.lowest == pytest.approx(1, abs=1e-6) for check in raw.check_probe().values())


def test_it_is_quantized_as_the_ordinary_one(tmp_path: Path) -> None:
    package()
    scheme, examples = OnnxRuntime().scheme(), deployed.Pictures(16)
    base = deployed.model()
    made = deploy.quantize(family(), base.folder, deployed.folder("bytes-fp32"), scheme, examples, tmp_path)
    found = made["graphs"]["vision_model"]
    assert len(found["int8"]) == len(deployed.quantized()[1]["graphs"]["vision_model"]["int8"])
    assert not found["float"]


def test_training_sees_the_same_numbers_bit_for_bit() -> None:
    import torch

    pictures = [deployed.Pictures(3)[index].values["image"] for index in range(3)]
    folder, answers = deployed.model().folder, []
    for each in (family(), family().as_trained()):
        feeds = each.processor(folder).encode({"image": pictures})
        batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
        with torch.inference_mode():
            answers.append(each.outputs(each.load(folder), batch, frozenset({"vision.embeds"}))["vision.embeds"])
    assert torch.equal(*answers)
    assert family().as_trained().identity() == Clip(path=deployed.checkpoint()).identity() != family().identity()


@pytest.mark.parametrize(("rescale", "mean"), [(1 / 255, (0.48, 0.45, 0.4)), (1 / 127.5, (1, 1, 1)), (None, None)])
def test_scale_and_shift_are_the_settings(rescale: float | None, mean: tuple[float, float, float] | None) -> None:
    std = (0.26, 0.5, 1.0) if mean else None
    settings = ImageSettings(resize=(4, 4), resample=3, crop=None, rescale=rescale, mean=mean, std=std)
    scale, shift = scale_and_shift(settings)
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    expected = ImageEncoder(settings).expand(pixels)
    found = pixels.transpose(0, 3, 1, 2) * scale.reshape(3, 1, 1) + shift.reshape(3, 1, 1)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    # The byte of the second channel in the first row: 1 * 5.
    assert expected[0, 1, 0, 0] == pytest.approx((5 * (rescale or 1) - (mean or (0, 0, 0))[1]) / (std or (1, 1, 1))[1])


def test_films_are_refused() -> None:
    with pytest.raises(ValidationError, match="`frames` makes them films"):
        Clip(path=Path("somewhere"), preprocessing="graph", frames=2)
