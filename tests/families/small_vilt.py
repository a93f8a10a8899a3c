"""The vilt family's contract cases: a small ViLT that answers questions about generated scenes."""

from __future__ import annotations

import json
from pathlib import Path

from contract import Case
from tiny_vilt import preprocessor, vilt_config, write_config_folder

from mmcompress.data.scenes import answer_vocabulary, question_vocabulary

SIDE = 24
SCENES = f"image_size: {SIDE}, twins: 1, unseen: 0.0, inside: 0.0, clutter: 0.0, objects: [2, 2], questions: true, ambiguous: 0.0"
RECIPE = f"""\
version: 1
name: vilt
data:
  train: {{scenes: {{split: train, size: 4000, {SCENES}}}}}
  validation: {{scenes: {{split: validation, size: 64, {SCENES}}}}}
  test: {{scenes: {{split: test, size: 420, {SCENES}}}}}
stages:
  - finetune: {{student: {{vilt: {{config: config.json}}}}, steps: 600, batch_size: 64, learning_rate: 0.002, weight_decay: 0.01}}
  - distill: {{student: {{from_teacher: {{encoder_layers: 1}}}}, steps: 200, batch_size: 64}}
  - prune: {{goal: {{macs: 0.9}}, samples: 64}}
quantize: {{calibration_samples: 128}}
targets: [onnxruntime]
measure: {{metrics: [vqa_accuracy, parameters, size], threads: 1}}
"""


def write_recipe(folder: Path) -> Path:
    config = vilt_config(
        answer_vocabulary(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        image_size=SIDE,
        max_position_embeddings=24,
        vocab_size=len(question_vocabulary()) + 5,
    )
    write_config_folder(folder, config, question_vocabulary())
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(SIDE, 8)))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


CASES = [Case("vilt-vqa", write_recipe, "vqa_accuracy", "answer", majority=0.2)]
