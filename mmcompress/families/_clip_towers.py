"""What the towers of the ``clip`` family's models are called inside, by the ``model_type`` of their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOWERS = ("vision", "text")
NAMES = {"vision": ("pixel_values", "frame_mask"), "text": ("input_ids", "attention_mask")}
"""What each tower is fed."""
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}
TEXTS_OF_BERT = ("chinese_clip", "vision-text-dual-encoder")
"""Kinds of models whose texts are BERT's: they begin with the token that is read, and end nowhere in particular."""


@dataclass(frozen=True)
class Layout:
    """Names below a tower, or below one of its layers."""

    layers: str
    """The module list."""
    attention: str
    """The module that counts heads, below a layer."""
    query: str
    """Below the attention, as :attr:`beside`."""
    beside: tuple[str, ...]
    """Key and value."""
    heads: str
    """The attention's number of heads."""
    follows: tuple[str, ...]
    """Further attributes of the attention that count head channels."""
    up: str
    """The feed-forward block's first linear layer, below a layer."""
    down: str


_CLIP = Layout(
    "encoder.layers", "self_attn", "q_proj", ("k_proj", "v_proj"), "num_heads", ("embed_dim",), "mlp.fc1", "mlp.fc2"
)
_VIT = Layout("layers", "attention", "q_proj", ("k_proj", "v_proj"), "num_attention_heads", (), "mlp.fc1", "mlp.fc2")
_BERT = Layout(
    "encoder.layer",
    "attention.self",
    "query",
    ("key", "value"),
    "num_attention_heads",
    ("all_head_size",),
    "intermediate.dense",
    "output.dense",
)
LAYOUTS: dict[str, Layout | None] = {
    "clip_vision_model": _CLIP,
    "clip_text_model": _CLIP,
    "siglip_vision_model": _CLIP,
    "siglip_text_model": _CLIP,
    "chinese_clip_vision_model": _CLIP,
    "chinese_clip_text_model": _BERT,
    "vit": _VIT,
    "bert": _BERT,
    "resnet": None,
}
"""None for a tower that is no stack of alike layers: it is neither cut nor pruned."""
DUAL = {"vision": ("vit", "resnet", "clip_vision_model"), "text": ("bert",)}
"""Towers that a ``vision-text-dual-encoder`` may have."""


def kind_of(model: Any, tower: str) -> str:
    """The ``model_type`` of a tower."""
    return str(getattr(model.config, f"{tower}_config").model_type)


def layout_of(model: Any, tower: str) -> Layout | None:
    """What a tower's parts are called; None where it has no layers of that kind."""
    return LAYOUTS[kind_of(model, tower)]


def pooled(given: Any) -> Any:
    """The one vector per example [b, d] that a tower's output ends in: Chinese-CLIP's texts have no pooling of their own."""
    vector = given.pooler_output if given.pooler_output is not None else given.last_hidden_state[:, 0]
    return vector.flatten(1)  # a ResNet gives [b, d, 1, 1]


def embed(model: Any, tower: str, given: Any) -> Any:
    """A tower's output to embeddings [b, d], not yet normalised; ``model`` has the tower's projection, or None."""
    projection = getattr(model, PROJECTIONS[tower], None)
    return pooled(given) if projection is None else projection(pooled(given))
