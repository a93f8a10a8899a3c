"""Small dual encoders and Chinese-CLIPs with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_clip import preprocessor, shake

PIECES = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "red",
    "blue",
    "star",
    "ring",
    "a",
    "big",
    "##s",
    "红",
    "色",
    "星",
)
_LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_TEXT = {**_LAYERS, "num_hidden_layers": 2, "vocab_size": 16, "max_position_embeddings": 12}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 24],
    "depths": [1, 1],
    "layer_type": "basic",
}


def config(kind: str) -> dict[str, Any]:
    """``chinese``, or a dual encoder by its picture tower: ``vit``, ``resnet``, ``clip``."""
    if kind == "chinese":
        vision = {**_LAYERS, "image_size": 16, "patch_size": 8}
        return {"model_type": "chinese_clip", "projection_dim": 20, "vision_config": vision, "text_config": _TEXT}
    towers = {
        "vit": {"model_type": "vit", **_LAYERS, "image_size": 16, "patch_size": 8},
        "clip": {"model_type": "clip_vision_model", **_LAYERS, "image_size": 16, "patch_size": 8},
        "resnet": _RESNET,
    }
    text = {"model_type": "bert", **_TEXT}
    both = {"vision_config": towers[kind], "text_config": text}
    return {"model_type": "vision-text-dual-encoder", "projection_dim": 20, **both}


def write_folder(folder: Path, kind: str) -> Path:
    """Everything but weights; the tokenizer is BERT's list of pieces alone, as published checkpoints have it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(kind)))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(16)))
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return folder


def build(kind: str) -> Any:
    """The model of transformers, in evaluation mode."""
    import transformers

    torch.manual_seed(0)
    values = config(kind)
    if kind == "resnet":
        # transformers' class reads a width that a ResNet's configuration lacks.
        values["vision_config"] = {**values["vision_config"], "hidden_size": 24}
    name = "ChineseCLIP" if kind == "chinese" else "VisionTextDualEncoder"
    parsed = getattr(transformers, f"{name}Config").from_dict(values)
    model = getattr(transformers, f"{name}Model")(parsed)
    shake(model)
    with torch.no_grad():
        # Nothing is learned at the padding's place, and transformers zeroes it when it loads a Chinese-CLIP.
        model.text_model.embeddings.word_embeddings.weight[0] = 0.0
    return model.eval()


def write_checkpoint(folder: Path, kind: str) -> Path:
    """A checkpoint as transformers saves it."""
    write_folder(folder, kind)
    build(kind).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config(kind)))
    return folder
