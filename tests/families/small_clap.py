"""The clap family's contract case: a small CLAP on spoken codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract import GALLERY, Case

from mmcompress.families._texts import write_word_level_tokenizer

RATE = 4_000
LETTERS = ("a", "b", "c", "d", "e", "f")
DATA = f"rate: {RATE}, digits: 1, words: [{', '.join(LETTERS)}], snr: 30"
RECIPE = f"""\
version: 1
name: clap
data:
  train: {{codes: {{split: train, size: 2000, {DATA}}}}}
  validation: {{codes: {{split: validation, size: 64, {DATA}}}}}
  test: {{codes: {{split: test, size: 400, {DATA}}}}}
stages:
  - finetune: {{student: {{clap: {{config: config.json}}}}, steps: 200, batch_size: 32, learning_rate: 0.001}}
  - distill: {{student: {{from_teacher: {{text_layers: 1}}}}, steps: 60, batch_size: 32}}
  - prune: {{goal: {{macs: 0.9}}, samples: 64}}
quantize: {{calibration_samples: 128}}
targets: [onnxruntime]
measure: {{metrics: [recall_at_k: {{k: [1], gallery_size: {GALLERY}}}, parameters, size], threads: 1}}
"""


def clap_config(**audio: Any) -> dict[str, Any]:
    """A CLAP of two stages over spectrograms of 63 frames and 16 bands."""
    return {
        "model_type": "clap",
        "projection_dim": 48,
        "text_config": {
            "vocab_size": len(LETTERS) + 3,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 10,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": 1,
        },
        "audio_config": {
            "num_mel_bins": 16,
            "spec_size": 32,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "depths": [2, 2],
            "num_attention_heads": [2, 4],
            "num_hidden_layers": 2,
            "patch_embeds_hidden_size": 32,
            "hidden_size": 64,
            "hidden_dropout_prob": 0.0,
            **audio,
        },
    }


def write_clap(folder: Path, config: dict[str, Any], **settings: Any) -> Path:
    """Configuration, sound settings and tokenizer; gives the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_word_level_tokenizer(LETTERS, 8, folder)
    (folder / "config.json").write_text(json.dumps(config))
    extractor = {
        "feature_extractor_type": "ClapFeatureExtractor",
        "sampling_rate": RATE,
        "feature_size": 16,
        "hop_length": 64,
        "fft_window_size": 256,
        "max_length_s": 1,
        "frequency_min": 0,
        "frequency_max": 2000,
        "truncation": "rand_trunc",
        "padding": "repeatpad",
        "top_db": None,
        "padding_value": 0.0,
        "return_attention_mask": False,
        **settings,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder / "config.json"


def write_recipe(folder: Path) -> Path:
    write_clap(folder, clap_config())
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


CASES = [Case("clap", write_recipe, "recall_at_1", "embed_audio", majority=0.25)]
