"""Torch modules of ours around models of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


class ImageEmbedder(torch.nn.Module):
    """The picture tower of a ``CLIPModel`` or ``SiglipModel`` up to normalised embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", None)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """[b, 3, h, w] to ``image_embeds`` [b, d]."""
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        embeds = pooled if self.visual_projection is None else self.visual_projection(pooled)
        return {"image_embeds": normalize(embeds, dim=-1)}


class TextEmbedder(torch.nn.Module):
    """The text tower of a ``CLIPModel`` or ``SiglipModel`` up to normalised embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = getattr(model, "text_projection", None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """[b, s] to ``text_embeds`` [b, d]."""
        pooled = self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        embeds = pooled if self.text_projection is None else self.text_projection(pooled)
        return {"text_embeds": normalize(embeds, dim=-1)}


class Named(torch.nn.Module):
    """A model whose outputs are named by its own fields: for graphs that are one call of it."""

    def __init__(self, model: torch.nn.Module, *names: str) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The named fields of what the model gives."""
        found = self.model(**inputs)
        return {name: getattr(found, name) for name in self.names}
