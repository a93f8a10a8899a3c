"""Small ViLT checkpoints with random weights that the tests of the vilt family share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_clip import shake

from mmcompress.families._vilt_model import INPUTS
from mmcompress.families.vilt import Vilt

WORDS = ("what", "color", "is", "the", "red", "blue", "green", "star", "ring", "left", "of", "a", "yes", "no")
ANSWERS = ("yes", "no", "red", "blue", "2", "t shirt")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tokenizer(words: Iterable[str], max_length: int, folder: Path) -> int:
    """A word tokenizer with BERT's special tokens; gives the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    vocabulary = [*SPECIAL, *sorted(set(words))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    config = {"tokenizer_class": "BertTokenizerFast", "model_max_length": max_length, "pad_token": "[PAD]"}
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **names}))
    return len(vocabulary)


def preprocessor(shortest_edge: int, divisor: int) -> dict[str, Any]:
    return {
        "image_processor_type": "ViltImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shortest_edge},
        "size_divisor": divisor,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }


def vilt_config(classes: Iterable[str] = ANSWERS, **fields: Any) -> dict[str, Any]:
    names = list(classes)
    return {
        "model_type": "vilt",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "vocab_size": len(WORDS) + len(SPECIAL),
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-6,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        **fields,
    }


def write_config_folder(folder: Path, config: dict[str, Any], words: Iterable[str] = WORDS) -> Path:
    """A folder with everything but weights."""
    write_tokenizer(words, config["max_position_embeddings"], folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(config["image_size"], 8)))
    return folder


SIZES = ((40, 60), (33, 100), (100, 33), (32, 32), (50, 20), (1, 1), (64, 48))
TEXTS = (
    "what color is the star",
    "is the ring red",
    "what",
    "is a star left of the ring yes no",
    "red",
    "blue",
    "no no",
)


def pictures(seed: int = 0) -> list[Image.Image]:
    noise = np.random.default_rng(seed)
    return [Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]


def small(folder: Path, task: str = "vqa", seed: int = 0, classes: Any = ANSWERS, **fields: Any) -> tuple[Vilt, Path]:
    """A family with a model folder whose weights all show in its outputs."""
    source = write_config_folder(folder / "source", vilt_config(classes, **fields))
    written = Vilt.model_validate({"config": source / "config.json", "task": task})
    written.write(folder / "written", seed)
    model = written.load(folder / "written")
    shake(model, seed)
    written.save(model, folder / "written", folder / "model")
    return Vilt.model_validate({"path": folder / "model", "task": task}), folder / "model"


def theirs(images: list[Image.Image]) -> dict[str, torch.Tensor]:
    """What transformers' own processor makes of pictures."""
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    settings = {name: value for name, value in preprocessor(32, 8).items() if name != "image_processor_type"}
    return dict(ViltImageProcessorPil(**settings)(images, return_tensors="pt"))


def tensors(feeds: dict[str, np.ndarray], names: tuple[str, ...] = INPUTS) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(feeds[name]) for name in names}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
