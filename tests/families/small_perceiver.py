"""The perceiver family's contract case: a small Perceiver IO that reads the bytes of a sentence and tells its subject."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

from contract import Case

SUBJECTS = {
    "weather": ("rain", "cloud", "storm", "frost", "sunny"),
    "food": ("bread", "soup", "apple", "pizza", "rice"),
    "travel": ("train", "hotel", "flight", "ticket", "beach"),
    "music": ("piano", "song", "violin", "drum", "choir"),
}
BEFORE = ("we had", "you said", "no more", "all about", "she likes", "give me", "who wants", "so much", "my", "what a")
AFTER = ("today", "again", "at last", "for two", "!", "maybe", "to me", "by noon", "as well", "once", "then", "and us")
COUNTS = {"train": 1500, "validation": 64, "test": 420}
LONGEST = 40


def config(**changes: Any) -> dict[str, Any]:
    """A Perceiver of texts: two blocks of the same two layers."""
    return {
        "model_type": "perceiver",
        "architectures": ["PerceiverForSequenceClassification"],
        "id2label": dict(enumerate(SUBJECTS)),
        "label2id": {name: number for number, name in enumerate(SUBJECTS)},
        "num_latents": 8,
        "d_latents": 64,
        "d_model": 48,
        "num_blocks": 2,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "self_attention_widening_factor": 2,
        "cross_attention_widening_factor": 1,
        "max_position_embeddings": LONGEST,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
        **changes,
    }


RECIPE = """\
version: 1
name: perceiver-text
data:
  train: {dataset: {path: train.jsonl, columns: {text: text, label: label}, classes: {label: [CLASSES]}}}
  validation: {dataset: {path: validation.jsonl, columns: {text: text, label: label}, classes: {label: [CLASSES]}}}
  test: {dataset: {path: test.jsonl, columns: {text: text, label: label}, classes: {label: [CLASSES]}}}
stages:
  - finetune: {student: {perceiver: {config: config.json, task: text}}, steps: 320, batch_size: 32, learning_rate: 0.002}
  - distill: {student: {from_teacher: {encoder_layers: 1}}, steps: 80, batch_size: 32, learning_rate: 0.001}
  - prune: {goal: {macs: 0.9}, samples: 64}
quantize: {calibration_samples: 64}
targets: [onnxruntime]
measure: {metrics: [accuracy, parameters, size], threads: 1}
""".replace("CLASSES", ", ".join(SUBJECTS))


def write_text(folder: Path) -> Path:
    """Sentences, each once: who says what decides nothing, the noun between does."""
    rows = [
        {"text": f"{before} {noun} {after}", "label": subject}
        for subject, nouns in SUBJECTS.items()
        for noun, before, after in itertools.product(nouns, BEFORE, AFTER)
    ]
    random.Random(0).shuffle(rows)
    for split, count in COUNTS.items():
        own, rows = rows[:count], rows[count:]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (folder / "config.json").write_text(json.dumps(config()))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


CASES = [Case("perceiver-text", write_text, "accuracy", "classify", majority=0.28)]
