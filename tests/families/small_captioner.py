"""The captioner family's contract case: a ViT and a GPT-2 that name the big object of a scene."""

from __future__ import annotations

import json
from pathlib import Path

from contract import Case
from tiny_clip import preprocessor

from mmcompress.data.scenes import Scenes, vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

SIDE = 24
COUNTS = {"train": 2000, "validation": 64, "test": 160}
MAJORITY = 0.86
"""CIDEr-D of the best caption that is the same for all pictures (a big red star)."""
RECIPE = """\
version: 1
name: captioner
data:
  train: {image_text: {path: train.jsonl, image: image, text: "{text}"}}
  validation: {image_text: {path: validation.jsonl, image: image, text: "{text}"}}
  test: {image_text: {path: test.jsonl, image: image, text: "{text}"}}
stages:
  - finetune: {student: {captioner: {config: config.json}}, steps: 200, batch_size: 32, learning_rate: 0.003}
  - distill: {student: {from_teacher: {decoder_layers: 1}}, steps: 60, batch_size: 32, learning_rate: 0.002}
  - prune: {goal: {macs: 0.8}, samples: 64}
quantize: {calibration_samples: 64}
targets: [onnxruntime]
measure: {metrics: [cider, parameters, size], threads: 1}
"""


def write_pictures(folder: Path) -> None:
    """Scenes with the name of their big object and the place it is at."""
    for split, count in COUNTS.items():
        scenes = Scenes(
            split=split, size=count, image_size=SIDE, twins=1, clutter=0.0, unseen=0.0, inside=0.0, objects=(2, 2)
        )
        examples, rows = scenes.read(), []
        for index in range(count):
            values = examples[index].values
            name = f"{split}-{index}.png"
            values["image"].save(folder / name)
            rows.append({"image": name, "text": f"a big {examples.classes()[values['label']]}"})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(decoder: str = "gpt2", words: int | None = None) -> dict[str, object]:
    """A small ViT with a small decoder."""
    size = len(vocabulary()) + 3 if words is None else words
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    shared = {"vocab_size": size, "is_decoder": True, "add_cross_attention": True, **tokens}
    if decoder == "gpt2":
        small = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 40, "n_inner": 128}
        small |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        small |= {"max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {
        "model_type": "vision-encoder-decoder",
        "decoder_start_token_id": 0,
        **tokens,
        "encoder": {
            "model_type": "vit",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": SIDE,
            "patch_size": 8,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "decoder": {"model_type": decoder, **shared, **small},
    }


def write_config(folder: Path, decoder: str = "gpt2") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_word_level_tokenizer(vocabulary(), 40, folder)
    (folder / "config.json").write_text(json.dumps(config(decoder)))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(SIDE)))
    return folder / "config.json"


def write_recipe(folder: Path) -> Path:
    write_config(folder)
    write_pictures(folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


CASES = [Case("captioner", write_recipe, "cider", "caption", majority=MAJORITY)]
