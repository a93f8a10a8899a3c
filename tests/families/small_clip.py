"""The clip family's contract case: a small CLIP on generated scenes."""

from __future__ import annotations

import json
from pathlib import Path

from contract import GALLERY, Case
from tiny_clip import clip_config, preprocessor

from mmcompress.data.scenes import vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

SIDE = 24
RECIPE = f"""\
version: 1
name: clip
data:
  train: {{scenes: {{split: train, size: 4000, image_size: {SIDE}, twins: 1, omit: 0.0, clutter: 0.0, unseen: 0.0, inside: 0.0, objects: [2, 2]}}}}
  validation: {{scenes: {{split: validation, size: 64, image_size: {SIDE}, twins: 1, omit: 0.0, clutter: 0.0, unseen: 0.0, inside: 0.0, objects: [2, 2]}}}}
  test: {{scenes: {{split: test, size: 400, image_size: {SIDE}, twins: 1, omit: 0.0, clutter: 0.0, unseen: 0.0, inside: 0.0, objects: [2, 2]}}}}
stages:
  - finetune: {{student: {{clip: {{config: config.json}}}}, steps: 400, batch_size: 64, learning_rate: 0.002}}
  - distill: {{student: {{from_teacher: {{text_layers: 1}}}}, steps: 80, batch_size: 64}}
  - prune: {{goal: {{macs: 0.8}}, samples: 64}}
quantize: {{calibration_samples: 128}}
targets: [onnxruntime]
measure: {{metrics: [recall_at_k: {{k: [1], gallery_size: {GALLERY}}}, parameters, size], threads: 1}}
"""


def write_recipe(folder: Path) -> Path:
    words = vocabulary()
    write_word_level_tokenizer(words, 40, folder)
    config = clip_config(vocab_size=len(words) + 3, max_position_embeddings=40)
    config["vision_config"].update({"hidden_size": 64, "intermediate_size": 128, "image_size": SIDE, "patch_size": 8})
    config["text_config"].update({"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(SIDE)))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


CASES = [Case("clip", write_recipe, "recall_at_1", "embed_image", majority=1 / GALLERY)]
