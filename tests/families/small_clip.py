"""The clip family's contract cases: a small CLIP on generated scenes, and one on films of them."""

from __future__ import annotations

import json
from pathlib import Path

from contract import GALLERY, Case
from tiny_clip import clip_config, preprocessor

from mmcompress.data.scenes import film_vocabulary, vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

SIDE, FRAMES = 24, 2
EASY = f"image_size: {SIDE}, twins: 1, omit: 0.0, clutter: 0.0, unseen: 0.0, inside: 0.0, objects: [2, 2]"


def recipe(name: str, family: str, data: str, size: int, steps: int, rate: float = 0.002, keep: float = 0.8) -> str:
    return f"""\
version: 1
name: {name}
data:
  train: {{scenes: {{split: train, size: {size}, {data}}}}}
  validation: {{scenes: {{split: validation, size: 64, {data}}}}}
  test: {{scenes: {{split: test, size: 400, {data}}}}}
stages:
  - finetune: {{student: {{clip: {family}}}, steps: {steps}, batch_size: 64, learning_rate: {rate}}}
  - distill: {{student: {{from_teacher: {{text_layers: 1}}}}, steps: 160, batch_size: 64}}
  - prune: {{goal: {{macs: {keep}}}, samples: 64, recover: {{steps: 60, batch_size: 64}}}}
quantize: {{calibration_samples: 128}}
targets: [onnxruntime]
measure: {{metrics: [recall_at_k: {{k: [1], gallery_size: {GALLERY}}}, parameters, size], threads: 1}}
"""


def write_model(folder: Path, words: list[str], width: int) -> None:
    write_word_level_tokenizer(words, 40, folder)
    config = {**clip_config(vocab_size=len(words) + 3, max_position_embeddings=40), "projection_dim": width}
    config["vision_config"].update({"hidden_size": 64, "intermediate_size": 128, "image_size": SIDE, "patch_size": 8})
    config["text_config"].update({"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(SIDE)))


def write_recipe(folder: Path) -> Path:
    write_model(folder, vocabulary(), 20)
    (folder / "recipe.yaml").write_text(recipe("clip", "{config: config.json}", EASY, 4000, 400))
    return folder / "recipe.yaml"


def write_films(folder: Path) -> Path:
    write_model(folder, film_vocabulary(), 64)
    family, data = f"{{config: config.json, frames: {FRAMES}}}", f"{EASY}, frames: {FRAMES}"
    (folder / "recipe.yaml").write_text(recipe("clip-films", family, data, 2500, 420, 0.0014, 0.9))
    return folder / "recipe.yaml"


CASES = [
    Case("clip", write_recipe, "recall_at_1", "embed_image", majority=1 / GALLERY),
    Case("clip_films", write_films, "recall_at_1", "embed_image", majority=1 / GALLERY, slow=True),
]
