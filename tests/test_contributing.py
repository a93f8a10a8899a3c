"""The examples of CONTRIBUTING.md, as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmcompress
from mmcompress import component, runs

RECIPE = """\
version: 1
name: colours
data:
  train: {dataset: {path: train.jsonl, columns: {image: "{image}", label: label}, classes: {label: [blue, red]}}}
  validation: {dataset: {path: validation.jsonl, columns: {image: "{image}", label: label}, classes: {label: [blue, red]}}}
  test: {dataset: {path: test.jsonl, columns: {image: "{image}", label: label}, classes: {label: [blue, red]}}}
stages:
  - finetune: {student: {vit: {config: config.json}}, steps: 40, batch_size: 16, learning_rate: 0.002}
  - distill: {student: {from_teacher: {vision_layers: 1}}, steps: 20, batch_size: 16}
  - prune: {goal: {macs: 0.8}, samples: 16, batch_size: 8}
quantize: {calibration_samples: 16}
targets: [onnxruntime]
measure: {metrics: [accuracy, parameters, size], threads: 1}
"""


def shown(root: Path, number: int) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (root / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    return str(blocks[number])


@pytest.mark.unit
def test_the_loss_shown_is_a_component(root: Path, tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "manhattan.py").write_text(shown(root, 0))
    component.SEARCH.folders.append(tmp_path)
    loss = component.parse("losses", {"manhattan": {"weight": 2.0}})
    student, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = loss.compute({"vision.embeds": student}, {"vision.embeds": teacher}, None)  # type: ignore[attr-defined]
    assert found.item() == pytest.approx((0.0 + 0.4 + 0.8) / 2)


def write_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in {"train": 64, "validation": 64, "test": 40}.items():
        rows = []
        for index in range(count):
            label = ("blue", "red")[index % 2]
            pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., 0 if label == "red" else 2] += 100
            Image.fromarray(pixels).save(folder / f"{split}-{index}.png")
            rows.append(json.dumps({"image": f"{split}-{index}.png", "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))


def test_the_family_shown_goes_the_whole_way(root: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = shown(root, 1)
    assert len(source.splitlines()) < 60
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "vit.py").write_text(source)
    component.SEARCH.folders.append(tmp_path)
    write_pictures(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = {"model_type": "vit", **sizes, "image_size": 16, "patch_size": 8, "id2label": {"0": "blue", "1": "red"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = {"size": {"height": 16, "width": 16}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **settings})
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    outcome = runs.run(tmp_path / "recipe.yaml", store=tmp_path / "store", runs=tmp_path / "runs")
    values = {(row.name, row.metric): row.value for row in outcome.rows}
    assert values["onnxruntime int8", "accuracy"] == values["teacher", "accuracy"] == 1.0
    assert values["prune", "parameters"] < values["distill", "parameters"] < values["teacher", "parameters"]
    with mmcompress.load_package(outcome.folder / "packages" / "onnxruntime", threads=1) as package:
        assert package.classify(tmp_path / "test-0.png").label == "blue"
        assert [answer.label for answer in package.classify([tmp_path / "test-1.png", tmp_path / "test-2.png"])] == [
            "red",
            "blue",
        ]
