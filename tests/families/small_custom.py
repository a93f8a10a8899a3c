"""The custom family's contract cases: a module of one's own that classifies, and one that embeds pictures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from contract import GALLERY, Case
from small_fusion import picture, write_rows
from tiny_custom import judge_config, write_config

from mmcompress.data.scenes import vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

JUDGE = """\
version: 1
name: custom-class
data:
  train: {dataset: {path: train.jsonl, columns: COLUMNS, classes: CLASSES}}
  validation: {dataset: {path: validation.jsonl, columns: COLUMNS, classes: CLASSES}}
  test: {dataset: {path: test.jsonl, columns: COLUMNS, classes: CLASSES}}
stages:
  - finetune: {student: {custom: {config: config.json}}, steps: 300, batch_size: 32, learning_rate: 0.002}
  - distill: {student: {from_teacher: {}}, steps: 40, batch_size: 32}
  - prune: {goal: {macs: 0.7}, samples: 64}
quantize: {calibration_samples: 128}
targets: [onnxruntime]
measure: {metrics: [accuracy: {damage: [{noise: 0.2, input: image}]}, parameters, size], threads: 1}
"""
PAIR = """\
version: 1
name: custom-embed
data:
  train: {scenes: {split: train, size: 3000, WORLD}}
  validation: {scenes: {split: validation, size: 64, WORLD}}
  test: {scenes: {split: test, size: 400, WORLD}}
stages:
  - finetune: {student: {custom: {config: config.json}}, steps: 600, batch_size: 64, learning_rate: 0.003}
  - distill: {student: {from_teacher: {}}, steps: 40, batch_size: 64}
  - prune: {goal: {macs: 0.9}, samples: 256}
quantize: {calibration_samples: 128}
targets: [onnxruntime]
measure: {metrics: [recall_at_k: {k: [1], gallery_size: GALLERY}, parameters, size], threads: 1}
"""
WORLD = "image_size: 24, twins: 1, omit: 0.0, clutter: 0.0, unseen: 0.0, inside: 0.0, objects: [2, 2]"
COLUMNS = '{image: "{image}", table: table, label: label}'


def write_judge(folder: Path) -> Path:
    (folder / "media").mkdir()

    def make(split: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        digit = int(rng.integers(10))
        name = f"media/{split}-{index}.png"
        picture(digit, rng).save(folder / name, compress_level=1)  # digits that differ by five look the same
        table = rng.normal([15.0 if digit < 5 else 5.0, 0.0, 0.0], [2.0, 1.0, 1.0])
        return {"image": name, "table": table.tolist(), "label": str(digit)}

    write_rows(folder, make)
    config = judge_config()
    write_config(folder, config)
    classes = "{label: [" + ", ".join(f'"{name}"' for name in config["task"]["classes"]) + "]}"
    (folder / "recipe.yaml").write_text(JUDGE.replace("COLUMNS", COLUMNS).replace("CLASSES", classes))
    return folder / "recipe.yaml"


def write_pair(folder: Path) -> Path:
    words = vocabulary()
    write_word_level_tokenizer(words, 40, folder)
    inputs = [{"name": "image", "kind": "picture", "size": 24}, {"name": "texts", "kind": "text", "max_length": 40}]
    config = judge_config(
        mmcompress_model="tiny_pair",
        model={"width": 48, "words": len(words) + 3},
        inputs=inputs,
        task={"kind": "embed"},
    )
    write_config(folder, config)
    (folder / "recipe.yaml").write_text(PAIR.replace("WORLD", WORLD).replace("GALLERY", str(GALLERY)))
    return folder / "recipe.yaml"


CASES = [
    Case("custom-class", write_judge, "accuracy", "classify", majority=0.1),
    Case("custom-embed", write_pair, "recall_at_1", "embed_image", majority=1 / GALLERY, slow=True),
]
