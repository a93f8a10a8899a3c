"""The wav2vec2 family's contract cases: a small Wav2Vec2 that spells spoken codes, and a small HuBERT that tells speakers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract import Case

from mmcompress.families._characters import BLANK, DELIMITER, write_characters

RATE = 4_000
LETTERS = ("a", "b", "c", "d")
TOKENS = (BLANK, DELIMITER, *LETTERS)
WORDS = ", ".join(LETTERS)
TRANSCRIBE = f"""\
version: 1
name: wav2vec2-transcribe
data:
  train: {{codes: {{split: train, size: 1500, rate: {RATE}, digits: 2, words: [{WORDS}], snr: 30}}}}
  validation: {{codes: {{split: validation, size: 32, rate: {RATE}, digits: 2, words: [{WORDS}], snr: 30}}}}
  test: {{codes: {{split: test, size: 96, rate: {RATE}, digits: 2, words: [{WORDS}], snr: 30}}}}
stages:
  - finetune: {{student: {{wav2vec2: {{config: config.json, max_seconds: 1.0}}}}, steps: 300, batch_size: 16, learning_rate: 0.0015}}
  - distill: {{student: {{from_teacher: {{encoder_layers: 1}}}}, steps: 80, batch_size: 16}}
  - prune: {{goal: {{macs: 0.9}}, samples: 32, recover: {{steps: 40, batch_size: 16}}}}
quantize: {{calibration_samples: 64}}
targets: [onnxruntime]
measure: {{metrics: [wer, parameters, size], threads: 1}}
"""
CLASSIFY = f"""\
version: 1
name: wav2vec2-classify
data:
  train: {{codes: {{split: train, size: 1000, rate: {RATE}, digits: 1, words: [{WORDS}], snr: 30}}}}
  validation: {{codes: {{split: validation, size: 32, rate: {RATE}, digits: 1, words: [{WORDS}], snr: 30}}}}
  test: {{codes: {{split: test, size: 400, rate: {RATE}, digits: 1, words: [{WORDS}], snr: 30}}}}
stages:
  - finetune:
      student: {{wav2vec2: {{config: config.json, task: classify, max_seconds: 0.6}}}}
      steps: 200
      batch_size: 16
      learning_rate: 0.0015
  - distill: {{student: {{from_teacher: {{encoder_layers: 1}}}}, steps: 50, batch_size: 16}}
  - prune: {{goal: {{macs: 0.85}}, samples: 32}}
quantize: {{calibration_samples: 64}}
targets: [onnxruntime]
measure: {{metrics: [accuracy, parameters, size], threads: 1}}
"""


def speech_config(**changes: Any) -> dict[str, Any]:
    """A Wav2Vec2 of two layers whose frames are 50 ms at :data:`RATE`."""
    return {
        "model_type": "wav2vec2",
        "vocab_size": len(TOKENS),
        "pad_token_id": 0,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "conv_dim": [32, 48, 48],
        "conv_kernel": [10, 10, 8],
        "conv_stride": [5, 5, 8],
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "final_dropout": 0.0,
        **changes,
    }


def write_speech(folder: Path, config: dict[str, Any], *, masked: bool = True) -> Path:
    """Configuration, sound settings and vocabulary; gives the configuration's path."""
    write_characters(TOKENS, folder)
    (folder / "config.json").write_text(json.dumps(config))
    settings = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "sampling_rate": RATE,
        "do_normalize": True,
        "return_attention_mask": masked,
        "padding_value": 0.0,
        "feature_size": 1,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder / "config.json"


def transcribe(folder: Path) -> Path:
    write_speech(folder, speech_config())
    (folder / "recipe.yaml").write_text(TRANSCRIBE)
    return folder / "recipe.yaml"


def classify(folder: Path) -> Path:
    """A HuBERT whose features are normalised over time, and that is told nothing of where a sound ends."""
    names = {"id2label": dict(enumerate(LETTERS)), "label2id": {name: index for index, name in enumerate(LETTERS)}}
    config = speech_config(model_type="hubert", feat_extract_norm="group", classifier_proj_size=32, **names)
    write_speech(folder, config, masked=False)
    (folder / "recipe.yaml").write_text(CLASSIFY)
    return folder / "recipe.yaml"


CASES = [
    Case("wav2vec2-transcribe", transcribe, "wer", "transcribe", majority=1.0, lower_is_better=True),
    Case("wav2vec2-classify", classify, "accuracy", "classify", majority=1 / len(LETTERS), slow=True),
]
