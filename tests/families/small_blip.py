"""The blip family's contract cases: a small BLIP per task, on scenes with the name of their big object."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from contract import Case
from small_captioner import MAJORITY, SIDE, write_pictures
from small_vilt import ANSWERS, COLOURS, QUESTION_WORDS, cloth, question, write_rows
from tiny_clip import preprocessor

from mmcompress.data.scenes import vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

CAPTIONS = '{{image_text: {{path: {split}.jsonl, image: image, text: "{{text}}"}}}}'
PAIRS = "{{dataset: {{path: {split}/rows.jsonl, columns: {{image: '{{image}}', text: text, label: label}}, classes: {{label: ['no', 'yes']}}}}}}"
QUESTIONS = (
    "{{dataset: {{path: {split}/rows.jsonl, columns: {{image: '{{image}}', question: question, answers: answers}}}}}}"
)
TEXTS = "{{dataset: {{path: {split}/rows.jsonl, columns: {{image: '{{image}}', texts: text}}}}}}"
RECIPE = """\
version: 1
name: blip-{task}
data:
  train: {train}
  validation: {validation}
  test: {test}
stages:
  - finetune: {{student: {{blip: {{config: config.json, task: {task}}}}}, steps: {steps}, batch_size: 32, learning_rate: {rate}}}
  - distill: {{student: {{from_teacher: {{text_layers: 1}}}}, steps: 80, batch_size: 32, learning_rate: {rate}}}
  - prune: {{goal: {{macs: 0.85}}, samples: 64}}
quantize: {{calibration_samples: 64}}
targets: [onnxruntime]
measure: {{metrics: [{metric}, parameters, size], threads: 1}}
"""


def config() -> dict[str, Any]:
    """A small BLIP that reads and writes words of scenes."""
    common = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    common["initializer_range"] = 0.1  # type: ignore[assignment]
    return {
        "model_type": "blip",
        "image_text_hidden_size": 32,
        "projection_dim": 32,
        "vision_config": {**common, "image_size": SIDE, "patch_size": 8},
        "text_config": {
            **common,
            "encoder_hidden_size": 64,
            "vocab_size": len(words()) + 3,
            "max_position_embeddings": 48,
            "bos_token_id": 0,
            "sep_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
    }


def words() -> list[str]:
    """Of captions, questions and answers."""
    return sorted({*vocabulary(), *QUESTION_WORDS, *ANSWERS, "who", "knows"})


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_word_level_tokenizer(words(), 48, folder)
    (folder / "config.json").write_text(json.dumps(config()))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(SIDE)))
    return folder / "config.json"


def pair(rng: random.Random, picture: Path) -> dict[str, Any]:
    """A cloth, and a sentence that names it or another."""
    shown, said = rng.sample(list(COLOURS), k=2)
    fits = rng.random() < 0.5
    cloth(rng, shown).save(picture)
    return {"image": picture.name, "text": f"the color is {shown if fits else said}", "label": "yes" if fits else "no"}


def fitting(rng: random.Random, picture: Path) -> dict[str, Any]:
    """A cloth, and the sentence that names it: nothing says that other sentences do not fit."""
    shown = rng.choice(list(COLOURS))
    cloth(rng, shown).save(picture)
    return {"image": picture.name, "text": f"the color is {shown}"}


def write_recipe(task: str, data: str, metric: str, steps: int, rate: float, folder: Path) -> Path:
    write_config(folder)
    splits = {name: data.format(split=name) for name in ("train", "validation", "test")}
    make = {"vqa": question, "match": pair, "pretrained": pair}.get(task)
    if make is None:
        write_pictures(folder)
    else:
        for seed, (name, count) in enumerate({"train": 1200, "validation": 64, "test": 400}.items()):
            # What is only pre-trained sees texts that fit, and no labels.
            alone = task == "pretrained" and name == "train"
            write_rows(folder, name, count, fitting if alone else make, seed)
            splits[name] = TEXTS.format(split=name) if alone else splits[name]
    text = RECIPE.format(task=task, metric=metric, steps=steps, rate=rate, **splits)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def _case(task: str, data: str, row: str, request: str, majority: float, metric: str, steps: int, rate: float) -> Case:
    recipe: Callable[[Path], Path] = partial(write_recipe, task, data, metric, steps, rate)
    return Case(f"blip-{task}", recipe, row, request, majority, slow=task != "vqa")


CASES = [
    _case("caption", CAPTIONS, "cider", "caption", MAJORITY, "cider", 250, 0.002),
    _case("vqa", QUESTIONS, "vqa_accuracy", "answer", 0.18, "vqa_accuracy", 150, 0.002),
    _case("match", PAIRS, "accuracy", "match", 0.55, "accuracy: {request: match}", 300, 0.001),
    _case("pretrained", PAIRS, "accuracy", "match", 0.55, "accuracy: {request: match}", 300, 0.001),
]
