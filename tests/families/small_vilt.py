"""The vilt family's contract cases: a small ViLT answers questions about cloths, or compares two of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from contract import Case
from tiny_vilt import preprocessor, vilt_config, write_config_folder

from mmcompress.component import JSON

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (235, 215, 50)}
PATTERNS = ("plain", "striped", "dotted")
ANSWERS = (*COLOURS, *PATTERNS, "yes", "no")
QUESTION_WORDS = {*COLOURS, *PATTERNS, "what", "color", "pattern", "is", "it"}
SENTENCE_WORDS = {*COLOURS, "both", "show"}
HEIGHT, WIDTHS = 24, (24, 36)


def cloth(rng: random.Random, colour: str, pattern: str = "plain") -> Any:
    """A picture of a cloth, with noise; its width varies."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(rng.getrandbits(32))
    rows, columns = np.mgrid[:HEIGHT, : rng.choice(WIDTHS)]
    dark = {"plain": rows < 0, "striped": rows % 8 < 4, "dotted": (rows % 8 < 4) & (columns % 8 < 4)}[pattern]
    pixels = np.where(dark[..., None], 0, np.array(COLOURS[colour])) + noise.normal(0, 15, (*rows.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def question(rng: random.Random, picture: Path) -> dict[str, JSON]:
    """A cloth with a question, and ten answers, one of them of no use."""
    shown = {"color": rng.choice(list(COLOURS)), "pattern": rng.choice(PATTERNS)}
    cloth(rng, shown["color"], shown["pattern"]).save(picture)
    kind = rng.choice(list(shown))
    words, truth = f"what {kind} is it", shown[kind]
    if rng.random() < 0.3:
        asked = truth if rng.random() < 0.5 else rng.choice(list(COLOURS) if kind == "color" else PATTERNS)
        words, truth = f"is it {asked}", "yes" if asked == truth else "no"
    return {"image": picture.name, "question": words, "answers": [truth] * 9 + ["who knows"]}


def comparison(rng: random.Random, picture: Path) -> dict[str, JSON]:
    """Two cloths and a sentence that is true of both or not."""
    first, second, said = (rng.choice(list(COLOURS)) for _ in range(3))
    if rng.random() < 0.5:
        said = second = first
    other = picture.with_name(f"second-{picture.name}")
    cloth(rng, first).save(picture)
    cloth(rng, second).save(other)
    label = "true" if first == second == said else "false"
    return {"image": picture.name, "image2": other.name, "text": f"both show {said}", "label": label}


def named(rng: random.Random, picture: Path) -> dict[str, JSON]:
    """A cloth and its name."""
    colour, pattern = rng.choice(list(COLOURS)), rng.choice(PATTERNS)
    cloth(rng, colour, pattern).save(picture)
    return {"image": picture.name, "text": f"it is {pattern} {colour}"}


def write_rows(folder: Path, name: str, count: int, make: Any, seed: int) -> None:
    rng = random.Random(seed)
    home = folder / name
    home.mkdir(parents=True)
    rows = [make(rng, home / f"{index}.png") for index in range(count)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path, classes: tuple[str, ...], words: set[str], **fields: Any) -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "image_size": HEIGHT,
        "initializer_range": 0.1,
    }
    config = vilt_config(classes, **{**sizes, "max_position_embeddings": 12, "vocab_size": len(words) + 5, **fields})
    write_config_folder(folder, config, words)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(HEIGHT, 8)))


RECIPE = """\
version: 1
name: vilt
data:
  train: {{dataset: {{path: train/rows.jsonl, {columns}}}}}
  validation: {{dataset: {{path: validation/rows.jsonl, {columns}}}}}
  test: {{dataset: {{path: test/rows.jsonl, {columns}}}}}
stages:
  - finetune: {{student: {{vilt: {{config: config.json, {fields}}}}}, steps: {steps}, batch_size: 48, learning_rate: 0.002, weight_decay: 0.01}}
  - distill: {{student: {{from_teacher: {{encoder_layers: 1}}}}, steps: {more}, batch_size: 48, learning_rate: 0.002}}
  - prune: {{goal: {{macs: 0.9}}, samples: 64}}
quantize: {{calibration_samples: 128}}
targets: [onnxruntime]
measure: {{metrics: [{metric}, parameters, size], threads: 1}}
"""


def write_vqa(folder: Path) -> Path:
    for seed, (name, count) in enumerate({"train": 1200, "validation": 64, "test": 420}.items()):
        write_rows(folder, name, count, question, seed)
    write_model(folder, ANSWERS, QUESTION_WORDS)
    columns = "columns: {image: '{image}', question: question, answers: answers}"
    values = {"columns": columns, "fields": "task: vqa", "steps": 220, "more": 220, "metric": "vqa_accuracy"}
    (folder / "recipe.yaml").write_text(RECIPE.format(**values))
    return folder / "recipe.yaml"


def write_nlvr(folder: Path) -> Path:
    for seed, (name, count) in enumerate({"train": 1200, "validation": 64, "test": 420}.items()):
        write_rows(folder, name, count, comparison, seed)
    write_model(folder, ("false", "true"), SENTENCE_WORDS, num_images=2, modality_type_vocab_size=3)
    columns = (
        "columns: {image: '{image}', image2: '{image2}', text: text, label: label}, classes: {label: ['false', 'true']}"
    )
    values = {"columns": columns, "fields": "task: nlvr", "steps": 220, "more": 220, "metric": "accuracy"}
    (folder / "recipe.yaml").write_text(RECIPE.format(**values))
    return folder / "recipe.yaml"


def write_retrieval(folder: Path) -> Path:
    for seed, (name, count) in enumerate({"train": 1200, "validation": 64, "test": 420}.items()):
        write_rows(folder, name, count, named, seed)
    write_model(folder, ("LABEL_0", "LABEL_1"), QUESTION_WORDS)
    columns = "columns: {image: '{image}', texts: text}"
    values = {"columns": columns, "fields": "task: retrieval", "steps": 220, "more": 220, "metric": "recall_at_k"}
    (folder / "recipe.yaml").write_text(RECIPE.format(**values))
    return folder / "recipe.yaml"


CASES = [
    Case("vilt-vqa", write_vqa, "vqa_accuracy", "answer", majority=0.18),
    Case("vilt-nlvr", write_nlvr, "accuracy", "classify", majority=0.55, slow=True),
    Case("vilt-retrieval", write_retrieval, "recall_at_1", "match", majority=1 / 12, slow=True),
]
