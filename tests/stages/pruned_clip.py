"""A small CLIP that the tests of pruning share."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("red", "green", "blue", "circle", "square", "star", "above", "below")
SHAPE = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def write_small_clip(folder: Path, **larger: int) -> Path:
    """A model folder of a small CLIP whose weights are large enough to show in its outputs.

    ``larger`` are fields of its picture tower's configuration.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    from mmcompress.families._checkpoints import write_weights
    from mmcompress.families._texts import write_word_level_tokenizer

    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8, **larger}
    text = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6}
    ids = {"vocab_size": 16, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = {
        "model_type": "clip",
        "projection_dim": 20,
        "vision_config": {**SHAPE, **vision, "image_size": 16, "patch_size": 8},
        "text_config": {**SHAPE, **text, **ids},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"size": {"height": 16, "width": 16}, "do_center_crop": False, "resample": 3}
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings, **statistics})
    )
    write_word_level_tokenizer(WORDS, 12, folder)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig.from_dict(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    write_weights(model.state_dict(), folder)
    return folder
