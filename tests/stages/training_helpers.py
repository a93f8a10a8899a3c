"""A tiny clip, scenes to train it on, and a stage's input: for the tests of training, also in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mmcompress.data.scenes import Scenes, vocabulary
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.clip import Clip
from mmcompress.stages import Model, StageInput

SIDE = 24


def write_config(folder: Path, width: int = 32, projection: int = 16, dropout: float = 0.0) -> Path:
    """A clip without weights: 24 px, patch 8, two layers per tower."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "attention_dropout": dropout,
    }
    words = vocabulary()
    config = {
        "model_type": "clip",
        "projection_dim": projection,
        "vision_config": {**common, "image_size": SIDE, "patch_size": 8},
        "text_config": {
            **common,
            "vocab_size": len(words) + 3,
            "max_position_embeddings": 40,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    size = {"height": SIDE, "width": SIDE}
    settings: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor", "size": size, "do_center_crop": False}
    settings |= {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    write_word_level_tokenizer(words, 40, folder)
    return folder / "config.json"


def write_model(folder: Path, seed: int = 0, **config: Any) -> Model:
    """A model folder with random weights."""
    made = folder.with_name(folder.name + "-config")
    family = Clip(config=write_config(made, **config))
    folder.mkdir(parents=True, exist_ok=True)
    family.write(folder, seed)
    return Model(family, folder)


def stage_input(root: Path, name: str = "stage", examples: int = 96, captions: int = 2, **given: Any) -> StageInput:
    """Scenes of 24 pixels; the cache is shared by all stages below ``root``."""
    torch.set_num_threads(1)
    output, work = root / name / "output", root / name / "work"
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    train = Scenes(split="train", size=examples, image_size=SIDE, captions=captions)
    validation = Scenes(split="validation", size=32, image_size=SIDE)
    fields: dict[str, Any] = {
        "model": None,
        "teacher": None,
        "train": train.read(),
        "validation": validation.read(),
        "seed": 0,
        "output": output,
        "work": work,
        "cache": root / "cache",
        "train_identity": train.identity(),
        "validation_identity": validation.identity(),
    }
    return StageInput(**{**fields, **given})
