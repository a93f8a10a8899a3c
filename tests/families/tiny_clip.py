"""Small checkpoints with random weights that the tests of the clip family share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mmcompress.families._checkpoints import write_weights
from mmcompress.families._texts import write_word_level_tokenizer

WORDS = ("red", "green", "blue", "circle", "square", "star", "above", "below", "a", "the")


def preprocessor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": size, "width": size},
        "do_center_crop": False,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }


def clip_config(**text: Any) -> dict[str, Any]:
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    }
    words = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": 16,
        "max_position_embeddings": 12,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return {
        "model_type": "clip",
        "projection_dim": 20,
        "vision_config": {**common, **vision},
        "text_config": {**common, **words, **text},
    }


def siglip_config() -> dict[str, Any]:
    config = clip_config(max_position_embeddings=8)
    for part in ("vision_config", "text_config"):
        config[part].update(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    config["text_config"].update(hidden_size=32, num_attention_heads=4, projection_size=32)
    config.pop("projection_dim")
    return {**config, "model_type": "siglip"}


def write_config_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with everything but weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(16)))
    write_word_level_tokenizer(WORDS, config["text_config"]["max_position_embeddings"], folder)
    return folder


def shake(model: Any, seed: int = 0) -> None:
    """Weights large enough that every part of the model shows in its outputs (norms and biases start at 1 and 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def write_checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """A transformers checkpoint: config, weights, tokenizer, settings of pictures."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    write_config_folder(folder, config)
    torch.manual_seed(0)
    if config["model_type"] == "clip":
        model: Any = CLIPModel(CLIPConfig.from_dict(config))
    else:
        model = SiglipModel(SiglipConfig.from_dict(config))
    shake(model)
    write_weights(model.state_dict(), folder)
    return folder
