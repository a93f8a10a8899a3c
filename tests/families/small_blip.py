"""The blip family's contract cases: a small BLIP per task, on scenes with the name of their big object."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from contract import GALLERY, Case
from small_captioner import MAJORITY, SIDE, write_pictures
from tiny_clip import preprocessor

from mmcompress.data.scenes import Scenes, answer_vocabulary, question_vocabulary, vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

SCENES = f"image_size: {SIDE}, twins: 1, clutter: 0.0, unseen: 0.0, inside: 0.0, objects: [2, 2]"
CAPTIONS = '{{image_text: {{path: {split}.jsonl, image: image, text: "{{text}}"}}}}'
PAIRS = "{{dataset: {{path: {split}-pairs.jsonl, columns: {{image: image, text: text, label: label}}}}}}"
QUESTIONS = "{{scenes: {{split: {split}, size: {size}, questions: true, {scenes}}}}}"
RECIPE = """\
version: 1
name: blip-{task}
data:
  train: {train}
  validation: {validation}
  test: {test}
stages:
  - finetune: {{student: {{blip: {{config: config.json, task: {task}}}}}, steps: {steps}, batch_size: {batch}, learning_rate: 0.002}}
  - distill: {{student: {{from_teacher: {{text_layers: 1}}}}, steps: 80, batch_size: {batch}, learning_rate: 0.002}}
  - prune: {{goal: {{macs: 0.85}}, samples: 64}}
quantize: {{calibration_samples: 64}}
targets: [onnxruntime]
measure: {{metrics: [{metric}, parameters, size], threads: 1}}
"""


def config() -> dict[str, Any]:
    """A small BLIP that reads and writes words of scenes."""
    common = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
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
    return sorted({*vocabulary(), *question_vocabulary(), *answer_vocabulary()})


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_word_level_tokenizer(words(), 48, folder)
    (folder / "config.json").write_text(json.dumps(config()))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(SIDE)))
    return folder / "config.json"


def write_pairs(folder: Path) -> None:
    """Every picture with its own text or another's, half and half."""
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        pairs = []
        for index, row in enumerate(rows):
            other = next(r["text"] for r in [*rows[index + 1 :], *rows] if r["text"] != row["text"])
            fits = index % 2 == 0
            pairs.append({**row, "text": row["text"] if fits else other, "label": "yes" if fits else "no"})
        (folder / f"{split}-pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def write_recipe(task: str, data: str, metric: str, steps: int, batch: int, folder: Path) -> Path:
    write_config(folder)
    write_pictures(folder)
    write_pairs(folder)
    sizes = {"train": 4000, "validation": 64, "test": 400}
    splits = {name: data.format(split=name, size=size, scenes=SCENES) for name, size in sizes.items()}
    text = RECIPE.format(task=task, metric=metric, steps=steps, batch=batch, **splits)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def _case(task: str, data: str, row: str, request: str, majority: float, metric: str, steps: int, batch: int) -> Case:
    recipe: Callable[[Path], Path] = partial(write_recipe, task, data, metric, steps, batch)
    return Case(f"blip-{task}", recipe, row, request, majority)


def majority_answer() -> float:
    """VQA accuracy of the answer that most questions of the test have."""
    from mmcompress._vqa import accuracy

    spec = Scenes(
        split="test",
        size=400,
        questions=True,
        image_size=SIDE,
        twins=1,
        clutter=0.0,
        unseen=0.0,
        inside=0.0,
        objects=(2, 2),
    )
    said = [spec.read()[index].values["answers"] for index in range(400)]
    return max(sum(accuracy(answer, each) for each in said) / 400 for answer in answer_vocabulary())


CASES = [
    _case("caption", CAPTIONS, "cider", "caption", MAJORITY, "cider", 400, 32),
    _case("vqa", QUESTIONS, "vqa_accuracy", "answer", majority_answer(), "vqa_accuracy", 500, 32),
    _case("match", PAIRS, "accuracy", "match", 0.5, "accuracy: {request: match}", 500, 32),
    _case(
        "retrieval",
        CAPTIONS,
        "recall_at_1",
        "embed_image",
        1 / GALLERY,
        f"recall_at_k: {{k: [1], gallery_size: {GALLERY}}}",
        250,
        64,
    ),
]
