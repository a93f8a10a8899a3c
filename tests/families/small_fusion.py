"""The fusion family's contract cases: a picture and a sound (class), a picture and words (tags), a table and a series (number)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from contract import Case
from PIL import Image

from mmcompress.data.scenes import TAGS, vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

DIGITS = tuple(str(digit) for digit in range(10))
GLYPHS = ("111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001")
"""Five digits in three columns and five rows."""
SIDE, RATE, SECONDS = 16, 4000, 0.24
COUNTS = {"train": 1200, "validation": 64, "test": 400}
SCENES = {"train": 500, "validation": 64, "test": 100}
RESNET = {
    "kind": "resnet",
    "config": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
}
STEPS = 24


def picture(digit: int, rng: np.random.Generator) -> Image.Image:
    """A digit's glyph, somewhere and noisy; digits that differ by five look the same."""
    glyph = np.array([int(bit) for bit in GLYPHS[digit % 5]]).reshape(5, 3).repeat(2, 0).repeat(2, 1)
    light = np.full((SIDE, SIDE), 40.0)
    top, left = rng.integers(0, SIDE - 10 + 1), rng.integers(0, SIDE - 6 + 1)
    light[top : top + 10, left : left + 6] += 160.0 * glyph
    return Image.fromarray(np.clip(light + rng.normal(0, 20, light.shape), 0, 255).astype(np.uint8)).convert("RGB")


def sound(digit: int, rng: np.random.Generator) -> np.ndarray:
    """A tone in noise, of any length: low for the digits below five, high for those above."""
    time = np.arange(int(RATE * SECONDS * rng.uniform(0.5, 1.0))) / RATE
    pitch = (500.0 if digit < 5 else 900.0) * rng.uniform(0.95, 1.05)
    return 0.3 * np.sin(2 * np.pi * pitch * time) + rng.normal(0, 0.05, len(time))


def write_rows(folder: Path, make: Callable[[str, int, np.random.Generator], dict[str, Any]]) -> None:
    for number, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(number)
        rows = [{"id": f"{split}-{index}", **make(split, index, rng)} for index in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_digits(folder: Path) -> None:
    (folder / "media").mkdir()

    def make(split: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        digit = int(rng.integers(10))
        names = [f"media/{split}-{index}.{suffix}" for suffix in ("png", "wav")]
        picture(digit, rng).save(folder / names[0], compress_level=1)
        soundfile.write(folder / names[1], sound(digit, rng), RATE)
        return {"image": names[0], "audio": names[1], "label": str(digit)}

    write_rows(folder, make)


def digits_config(**changes: Any) -> dict[str, Any]:
    audio = {
        "name": "audio",
        "kind": "sound",
        "rate": RATE,
        "seconds": SECONDS,
        "mels": 16,
        "hop": 0.02,
        "window": 0.04,
    }
    return {
        "model_type": "mmcompress-fusion",
        "inputs": [
            {"name": "image", "kind": "picture", "size": SIDE, "encoder": RESNET},
            {**audio, "encoder": {"kind": "gru", "width": 32}},
        ],
        "fusion": {"kind": "early", "hidden": [96]},
        "output": {"kind": "class", "classes": DIGITS},
        "missing": 0.15,
        **changes,
    }


def write_readings(folder: Path) -> None:
    """A number that follows from a table of three columns and from how fast a sensor swings."""

    def make(split: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        table = rng.normal([100.0, 0.0, -3.0], [20.0, 1.0, 0.5])
        turns = rng.uniform(1.0, 3.0)
        series = np.sin(2 * np.pi * (turns * np.arange(rng.integers(STEPS // 2, STEPS + 1)) / STEPS + rng.uniform()))
        number = 500.0 + 40.0 * ((table[0] - 100.0) / 20.0 + table[1]) + 60.0 * (turns - 2.0)
        return {"table": table.tolist(), "series": [[value] for value in series.tolist()], "number": float(number)}

    write_rows(folder, make)


def readings_config(**changes: Any) -> dict[str, Any]:
    conv = {"kind": "conv1d", "channels": [24, 48], "kernel": 5, "stride": 1}
    return {
        "model_type": "mmcompress-fusion",
        "inputs": [
            {"name": "table", "kind": "table", "columns": 3, "encoder": {"kind": "mlp", "hidden": [64], "width": 32}},
            {"name": "series", "kind": "series", "channels": 1, "length": STEPS, "encoder": conv},
        ],
        "fusion": {"kind": "early", "hidden": [96]},
        "output": {"kind": "number", "unit": "kWh"},
        **changes,
    }


def tags_config(**changes: Any) -> dict[str, Any]:
    tower = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    text = {**tower, "vocab_size": len(vocabulary()) + 3, "max_position_embeddings": 48, "pad_token_id": 1}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vit = {"kind": "vit", "config": {**tower, "num_hidden_layers": 1, "image_size": 24, "patch_size": 8}}
    return {
        "model_type": "mmcompress-fusion",
        "inputs": [
            {"name": "image", "kind": "picture", "size": 24, "encoder": vit},
            {
                "name": "words",
                "kind": "text",
                "max_length": 48,
                "encoder": {"kind": "bert", "config": {**text, **drop}},
            },
        ],
        "fusion": {"kind": "intermediate", "width": 48, "layers": 1, "heads": 4, "feed_forward": 96},
        "output": {"kind": "tags", "classes": TAGS},
        **changes,
    }


RECIPE = """\
version: 1
name: fusion
data:
  train: {{{train}}}
  validation: {{{validation}}}
  test: {{{test}}}
stages:
  - finetune: {{student: {{fusion: {{config: config.json}}}}, steps: {steps}, batch_size: 64, learning_rate: {rate}, weight_decay: 0.01}}
  - distill: {{student: {student}, steps: 40, batch_size: 64}}
  - prune: {{goal: {{macs: {goal}}}, samples: 128, recover: {{steps: 20, batch_size: 64}}}}
quantize: {{calibration_samples: 128}}
targets: [onnxruntime]
measure: {{metrics: [{metric}, parameters, size], threads: 1}}
"""


def _recipe(folder: Path, config: dict[str, Any], data: Callable[[str], str], **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    given = {split: data(split) for split in COUNTS}
    (folder / "recipe.yaml").write_text(RECIPE.format(**given, **fields))
    return folder / "recipe.yaml"


def _rows(columns: str) -> Callable[[str], str]:
    return lambda split: f"dataset: {{path: {split}.jsonl, id: id, columns: {{{columns}}}}}"


def write_class(folder: Path) -> Path:
    write_digits(folder)
    classes = ", ".join(f'"{digit}"' for digit in DIGITS)
    data = _rows("image: image, audio: audio, label: label")
    return _recipe(
        folder,
        digits_config(),
        lambda split: f"{data(split)[:-1]}, classes: {{label: [{classes}]}}}}",
        steps=200,
        rate=0.004,
        student="{from_teacher: {}}",
        goal=0.6,
        metric="accuracy",
    )


def write_number(folder: Path) -> Path:
    write_readings(folder)
    return _recipe(
        folder,
        readings_config(),
        _rows("table: table, series: series, number: number"),
        steps=250,
        rate=0.004,
        student="{from_teacher: {}}",
        goal=0.6,
        metric="rmse",
    )


def write_tags(folder: Path) -> Path:
    write_word_level_tokenizer(vocabulary(), 48, folder)
    return _recipe(
        folder,
        tags_config(),
        lambda split: f"scenes: {{split: {split}, size: {SCENES[split]}, image_size: 24, tags: true}}",
        steps=120,
        rate=0.003,
        student="{from_teacher: {words_layers: 1}}",
        goal=0.8,
        metric="entity_f1",
    )


CASES = [
    Case("fusion-class", write_class, "accuracy", "classify", majority=0.1),
    Case("fusion-tags", write_tags, "entity_f1", "tag", majority=0.0, slow=True),
    Case("fusion-number", write_number, "rmse", "predict_number", majority=60.0, lower_is_better=True, slow=True),
]
