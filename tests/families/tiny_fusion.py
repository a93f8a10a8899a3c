"""Small fusion configurations of every kind of input that the tests share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmcompress._sound import Sound
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.fusion import Fusion

WORDS = ("red", "green", "blue", "a", "the", "star", "ring")
TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
DROP = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VIT = {"kind": "vit", "config": {**TOWER, "image_size": 16, "patch_size": 8}}
BERT = {
    "kind": "bert",
    "config": {**TOWER, **DROP, "vocab_size": 12, "max_position_embeddings": 12, "pad_token_id": 1},
}
RESNET = {
    "kind": "resnet",
    "config": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}
GRU = {"kind": "gru", "width": 12, "layers": 2}
LSTM = {"kind": "lstm", "width": 12}
CONV = {"kind": "conv1d", "channels": [8, 12], "kernel": 3, "stride": 1}
MLP = {"kind": "mlp", "hidden": [16], "width": 8}
EARLY = {"kind": "early", "hidden": [24]}
CROSS = {"kind": "intermediate", "width": 16, "layers": 2, "heads": 4, "feed_forward": 24}
LATE = {"kind": "late", "weights": "learned"}
CLASSES = {"kind": "class", "classes": ["cat", "dog", "cow"]}
TAGS = {"kind": "tags", "classes": ["O", "B", "I"]}
NUMBER = {"kind": "number", "unit": "m"}


def image(encoder: Any = RESNET) -> dict[str, Any]:
    return {"name": "image", "kind": "picture", "size": 16, "encoder": encoder}


def film(encoder: Any = RESNET, **fields: Any) -> dict[str, Any]:
    return {"name": "frames", "kind": "film", "size": 16, "frames": 4, "encoder": encoder, **fields}


def text(encoder: Any = BERT, name: str = "text") -> dict[str, Any]:
    return {"name": name, "kind": "text", "max_length": 12, "encoder": encoder}


def audio(encoder: Any = GRU, **fields: Any) -> dict[str, Any]:
    given = {"name": "audio", "kind": "sound", "rate": 4000, "seconds": 0.2, "mels": 8, "window": 0.02}
    return {**given, **fields, "encoder": encoder}


def table(**fields: Any) -> dict[str, Any]:
    return {"name": "table", "kind": "table", "columns": 3, "encoder": MLP, **fields}


def series(encoder: Any = CONV) -> dict[str, Any]:
    return {"name": "series", "kind": "series", "channels": 2, "length": 20, "encoder": encoder}


def features() -> dict[str, Any]:
    return {"name": "features", "kind": "features", "width": 5, "encoder": MLP}


def config(
    inputs: Sequence[dict[str, Any]], fusion: Any = EARLY, output: Any = CLASSES, missing: float = 0.0
) -> dict[str, Any]:
    return {
        "model_type": "mmcompress-fusion",
        "inputs": list(inputs),
        "fusion": fusion,
        "output": output,
        "missing": missing,
    }


def source(folder: Path, values: dict[str, Any]) -> Path:
    """A config.json with a tokenizer beside it; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    write_word_level_tokenizer(WORDS, 12, folder)
    return folder / "config.json"


def write(folder: Path, values: dict[str, Any], seed: int = 0) -> Fusion:
    """A model folder ``folder/model`` with random weights; gives the component that names it."""
    Fusion(config=source(folder, values)).write(folder / "model", seed)
    return Fusion(path=folder / "model")


def values(count: int, seed: int = 0) -> dict[str, list[Any]]:
    """Raw values of every kind of input."""
    rng = np.random.default_rng(seed)

    def picture() -> Image.Image:
        light = rng.integers(0, 256, 3)
        return Image.fromarray(np.clip(rng.normal(light, 40, (16, 16, 3)), 0, 255).astype(np.uint8))

    words = [tuple(str(word) for word in rng.choice(WORDS, rng.integers(1, 7))) for _ in range(count)]
    return {
        "image": [picture() for _ in range(count)],
        "frames": [tuple(picture() for _ in range(rng.integers(1, 6))) for _ in range(count)],
        "text": [" ".join(some) for some in words],
        "words": list(words),
        "audio": [Sound(rng.normal(0, 0.3, rng.integers(80, 900)).astype(np.float32), 4000) for _ in range(count)],
        "table": [rng.normal([5.0, 0.0, -2.0], [2.0, 1.0, 0.1]).astype(np.float32) for _ in range(count)],
        "series": [rng.normal(3.0, 2.0, (rng.integers(1, 21), 2)).astype(np.float32) for _ in range(count)],
        "features": [rng.normal(size=5).astype(np.float32) for _ in range(count)],
        "label": [int(rng.integers(3)) for _ in range(count)],
        "labels": [tuple(np.flatnonzero(rng.random(3) < 0.5).tolist()) for _ in range(count)],
        "tags": [tuple(int(rng.integers(3)) for _ in some) for some in words],
        "number": [float(rng.normal(50, 10)) for _ in range(count)],
    }


def batch(family: Fusion, folder: Path, count: int = 4, seed: int = 0) -> dict[str, Any]:
    """Examples as tensors, targets included."""
    import torch

    given = values(count, seed)
    columns = {("text" if name == "texts" else name): given[name] for name in family.columns}
    encoded = family.processor(folder).encode(columns)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in encoded.items()}
