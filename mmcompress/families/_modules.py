"""Torch modules of ours around models of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcompress.families._clip_towers import embed


class ImageEmbedder(torch.nn.Module):
    """The picture tower of a model of the clip family up to normalised embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", None)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """[b, 3, h, w] to ``image_embeds`` [b, d]."""
        embeds = embed(self, "vision", self.vision_model(pixel_values=pixel_values))
        return {"image_embeds": normalize(embeds, dim=-1)}


class FilmEmbedder(ImageEmbedder):
    """The picture tower over the frames of films, up to one normalised embedding per film."""

    def forward(self, pixel_values: Tensor, frame_mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """[b, f, 3, h, w] and which frames count [b, f] to ``image_embeds`` [b, d]."""
        frames = super().forward(pixel_values.flatten(0, 1))["image_embeds"]
        return {"image_embeds": mean_over_frames(frames, frame_mask)}


class TextEmbedder(torch.nn.Module):
    """The text tower of a model of the clip family up to normalised embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = getattr(model, "text_projection", None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """[b, s] to ``text_embeds`` [b, d]."""
        embeds = embed(self, "text", self.text_model(input_ids=input_ids, attention_mask=attention_mask))
        return {"text_embeds": normalize(embeds, dim=-1)}


def mean_over_frames(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Normalised embeddings of frames [b * f, d] to those of films [b, d]: the mean of the frames that count [b, f].

    CLIP4Clip's parameter-free similarity (arXiv:2104.08860, section 3.3): normalised, averaged, normalised. The order of
    the frames does not show in it.
    """
    counted = frame_mask.to(frames.dtype).unsqueeze(-1)
    total = (frames.reshape(*frame_mask.shape, frames.shape[-1]) * counted).sum(dim=1)
    return normalize(total, dim=-1)


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
