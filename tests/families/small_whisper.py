"""The whisper family's contract case: a small Whisper that writes down spoken codes."""

from __future__ import annotations

from pathlib import Path

from contract import Case
from tiny_whisper import RATE, write_tiny

DATA = f"rate: {RATE}, digits: 2, snr: 30.0, speakers: 4, words: [zero, one, two, three, four]"
RECIPE = f"""\
version: 1
name: whisper
data:
  train: {{codes: {{split: train, size: 1200, {DATA}}}}}
  validation: {{codes: {{split: validation, size: 32, {DATA}}}}}
  test: {{codes: {{split: test, size: 200, {DATA}}}}}
stages:
  - finetune: {{student: {{whisper: {{config: config.json}}}}, steps: 180, batch_size: 32, learning_rate: 0.0015}}
  - distill: {{student: {{from_teacher: {{decoder_layers: 1}}}}, steps: 40, batch_size: 32, learning_rate: 0.001}}
  - prune: {{goal: {{macs: 0.8}}, samples: 64, batch_size: 32}}
quantize: {{calibration_samples: 64}}
targets: [onnxruntime]
measure: {{metrics: [wer, parameters, size], threads: 1}}
"""


def write_recipe(folder: Path) -> Path:
    write_tiny(folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


CASES = [Case("whisper", write_recipe, "wer", "transcribe", majority=1.0, lower_is_better=True)]
