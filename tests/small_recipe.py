"""A recipe on a tiny teacher and generated scenes: the whole way in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmcompress.data.scenes import vocabulary
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.clip import Clip
from tests.families.tiny_clip import clip_config, preprocessor

RECIPE = """\
version: 1
name: small
seed: 1
teacher: {clip: {path: teacher}}
data:
  train: {scenes: {split: train, size: 96, image_size: 24}}
  validation: {scenes: {split: validation, size: 48, image_size: 24}}
  test: {scenes: {split: test, size: 40, image_size: 24}}
stages:
  - distill:
      student: {from_teacher: {vision_layers: 2}}
      losses: [feature_mse, {contrastive_kl: {temperature: 2.0}}]
      steps: 6
      batch_size: 16
  - prune: {goal: {macs: 0.7}, samples: 16, round_to: 8}
quantize: {precision: int8, calibration_samples: 16}
targets: [onnxruntime]
measure: {metrics: [recall_at_k: {k: [1, 5], gallery_size: 20}, size, parameters]}
demand: {size_ratio: 1.5}
"""


def config(**changes: Any) -> dict[str, Any]:
    """A CLIP of two small towers that reads captions of scenes."""
    found = clip_config(vocab_size=len(vocabulary()) + 3, max_position_embeddings=26)
    found["vision_config"].update({"hidden_size": 64, "intermediate_size": 128, **changes})
    found["text_config"].update({"hidden_size": 48, "intermediate_size": 96})
    return found


def write_teacher(folder: Path, seed: int = 0) -> Path:
    """A teacher with random weights; gives its folder."""
    source = folder.parent / f"{folder.name}-config"
    source.mkdir(parents=True)
    write_word_level_tokenizer(vocabulary(), 26, source)
    (source / "preprocessor_config.json").write_text(json.dumps(preprocessor(16)))
    (source / "config.json").write_text(json.dumps(config()))
    Clip(config=source).write(folder, seed)
    return folder


def write_project(folder: Path, recipe: str = RECIPE) -> Path:
    """A folder with a teacher and a recipe; gives the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_teacher(folder / "teacher")
    path = folder / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    return path
