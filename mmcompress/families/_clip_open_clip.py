"""open_clip folders (``open_clip_config.json``, safetensors, ViT towers) as a ``CLIPModel``.

What the configuration may say is listed here with the values that ``CLIPModel`` can express; anything else is refused
by name, so that no option of open_clip is dropped in silence. Pictures are cut from the middle as transformers does
it, which for odd margins is one row or column off torchvision's rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError
from mmcompress.families._checkpoints import WEIGHTS, read_weights
from mmcompress.families._images import PREPROCESSOR_FILES, read_object

if TYPE_CHECKING:
    from torch import Tensor

    from mmcompress.families._clip_checkpoints import Checkpoint

CONFIG = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", WEIGHTS)
_OPENAI_MEAN, _OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

_READ = {
    "model": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"},
    "vision": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"},
    "text": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"},
}
_IGNORED = {
    "model": {"init_logit_scale", "init_logit_bias", "output_dict", "multimodal_cfg"},
    "vision": {"patch_dropout", "output_tokens", "final_ln_after_pool", "timm_drop", "timm_drop_path"},
    "text": {"output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "correct_cls_mask"},
}
"""Options of training, or without an effect on the embeddings of a ViT that pools its class token."""
_EXPECTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "model": {"nonscalar_logit_scale": (False,)},
    "vision": {
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable",),
        "in_chans": (3,),
    },
    "text": {"proj_type": ("linear",)},
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_NAMES = {
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", False),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", False),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", False),
    "visual.proj": ("visual_projection.weight", True),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
    "ln_final.weight": ("text_model.final_layer_norm.weight", False),
    "ln_final.bias": ("text_model.final_layer_norm.bias", False),
    "text_projection": ("text_projection.weight", True),
    "text_projection.weight": ("text_projection.weight", False),
    "logit_scale": ("logit_scale", False),
}
"""open_clip's name to transformers' name, and whether the matrix is transposed."""


def read_open_clip(source: Path) -> Checkpoint:
    """Read an open_clip folder, converted.

    Raises:
        InputError: an architecture or an option that ``CLIPModel`` cannot express, weights that are missing or
            unexpected.
    """
    from mmcompress.families._clip_checkpoints import Checkpoint

    values = read_object(source / CONFIG)
    config = convert_config(values, str(source / CONFIG))
    weights = convert_weights(_weights(source), str(source))
    preprocessor = convert_preprocessing(values.get("preprocess_cfg") or {}, config, str(source / CONFIG))
    files: dict[str, Mapping[str, Any]] = {PREPROCESSOR_FILES[0]: preprocessor}
    if not (source / "tokenizer_config.json").is_file():
        # OpenAI's BPE with transformers' padding; open_clip pads with 0, which no causal text tower sees.
        files["tokenizer_config.json"] = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": config["text_config"]["max_position_embeddings"],
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        }
    return Checkpoint(config=config, weights=weights, files=files)


def _weights(source: Path) -> dict[str, Tensor]:
    for name in WEIGHT_FILES:
        if (source / name).is_file():
            return read_weights(source, name)
    return read_weights(source, WEIGHT_FILES[0])


# --- configuration -------------------------------------------------------------------------------------------------


def convert_config(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The ``CLIPConfig`` dict of an open_clip configuration.

    Raises:
        InputError: an option that ``CLIPModel`` cannot express, by name.
    """
    model = values.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(f"{t}_cfg"), dict) for t in ("vision", "text")):
        raise InputError(f"{where}: expected model_cfg with vision_cfg and text_cfg")
    vision, text = model["vision_cfg"], model["text_cfg"]
    problems = [
        *_unsupported("model", model, "model_cfg"),
        *_unsupported("vision", vision, "model_cfg.vision_cfg"),
        *_unsupported("text", text, "model_cfg.text_cfg"),
    ]
    if isinstance(vision.get("layers"), list):
        problems.append("model_cfg.vision_cfg.layers is a list: a ResNet tower")
    if text.get("pool_type", "argmax") == "eos" and text.get("eos_id", 2) == 2:
        problems.append("model_cfg.text_cfg.eos_id 2 with pool_type eos (transformers reads 2 as 'the highest id')")
    if problems:
        raise InputError(
            f"{where}: this architecture cannot become a CLIPModel\n  "
            + "\n  ".join(problems)
            + "\n  expected ViT towers; for SigLIP use the transformers repository of the same model"
        )
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": model["embed_dim"],
        "vision_config": _vision_config(vision, model["embed_dim"], activation),
        "text_config": _text_config(text, model["embed_dim"], activation),
    }


def _unsupported(part: str, values: Mapping[str, Any], path: str) -> Iterable[str]:
    known = _READ[part] | _IGNORED[part]
    if part == "text" and values.get("pool_type", "argmax") not in ("argmax", "eos"):
        yield f"{path}.pool_type {values['pool_type']!r} (expected argmax or eos)"
    for name, value in values.items():
        if name in known or value is None or value is False:
            continue
        expected = _EXPECTED[part].get(name)
        if expected is None or value not in expected:
            yield f"{path}.{name} {value!r}"


def _vision_config(vision: Mapping[str, Any], embed_dim: int, activation: str) -> dict[str, Any]:
    width = vision.get("width", 768)
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": vision.get("layers", 12),
        "num_attention_heads": width // vision.get("head_width", 64),
        "image_size": vision.get("image_size", 224),
        "patch_size": vision.get("patch_size", 16),
        "projection_dim": embed_dim,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def _text_config(text: Mapping[str, Any], embed_dim: int, activation: str) -> dict[str, Any]:
    width, vocabulary = text.get("width", 512), text.get("vocab_size", 49408)
    # 2 stands for open_clip's argmax: the answer is read where the highest id of the text stands.
    end = text["eos_id"] if text.get("pool_type", "argmax") == "eos" else 2
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": int(width * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": vocabulary,
        "projection_dim": embed_dim,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": max(0, vocabulary - 2),
        "eos_token_id": end,
        "pad_token_id": vocabulary - 1,
    }


def convert_preprocessing(values: Mapping[str, Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """open_clip's ``preprocess_cfg`` as a ``CLIPImageProcessor``'s settings."""
    size = values.get("size") or config["vision_config"]["image_size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    interpolation, mode = values.get("interpolation", "bicubic"), values.get("resize_mode", "shortest")
    filters = {"bicubic": 3, "bilinear": 2, "random": 3}
    if interpolation not in filters or mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise InputError(
            f"{where}: preprocess_cfg: interpolation {interpolation!r} with resize_mode {mode!r} to {height} x {width}"
            " is not supported\n  expected bicubic or bilinear, and squash, or shortest to a square"
        )
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height} if mode == "shortest" else {"height": height, "width": width},
        "resample": filters[interpolation],
        "do_center_crop": mode == "shortest",
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(values.get("mean") or _OPENAI_MEAN),
        "image_std": list(values.get("std") or _OPENAI_STD),
    }


# --- weights -------------------------------------------------------------------------------------------------------


def convert_weights(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """open_clip's state dict under transformers' names; models with ``custom_text`` have ``text.`` before theirs.

    Raises:
        InputError: weights of no ViT CLIP, the first few by name.
    """
    result: dict[str, Tensor] = {}
    unknown: list[str] = []
    for full, tensor in weights.items():
        name = full.removeprefix("text.")
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if name in _NAMES:
            new, transposed = _NAMES[name]
            result[new] = tensor.T.contiguous() if transposed else tensor
        elif name == "attn_mask":
            continue
        elif block is None or not _convert_block(block[1], block[2], block[3], tensor, result):
            unknown.append(full)
    if unknown:
        raise InputError(
            f"{where}: the weights do not fit the model\n  {len(unknown)} unexpected: {', '.join(unknown[:4])}\n"
            "  expected the weights of an open_clip model with ViT towers"
        )
    return result


def _convert_block(visual: str | None, index: str, rest: str, tensor: Tensor, result: dict[str, Tensor]) -> bool:
    base = f"{'vision' if visual else 'text'}_model.encoder.layers.{index}"
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rpartition("_")[2]
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            result[f"{base}.self_attn.{letter}_proj.{kind}"] = part.contiguous()
        return True
    module, _, kind = rest.rpartition(".")
    if module not in _BLOCK or kind not in ("weight", "bias"):
        return False
    result[f"{base}.{_BLOCK[module]}.{kind}"] = tensor
    return True
