"""Torch modules around transformers' ``ClapModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad


def fused_patches(patches: Any, pictures: Tensor, is_longer: Tensor) -> Tensor:
    """A fused model's patches [b, d, h, w], both with and without the parts of a sound, and then one of the two.

    transformers picks out the longer sounds of a batch; how many there are is no shape that can be exported.

    Args:
        patches: the ``ClapAudioPatchEmbed``.
        pictures: [b, 4, h, w], the whole sound first.
        is_longer: which sounds have parts that differ, [b, 1].
    """
    whole: Tensor = patches.proj(pictures[:, :1])
    parts, height, width = pictures.shape[1] - 1, pictures.shape[2], pictures.shape[3]
    local = patches.mel_conv2d(pictures[:, 1:].reshape(-1, 1, height, width))
    features, rows, columns = local.shape[1:]
    # The parts stand side by side in time.
    local = local.reshape(-1, parts, features, rows, columns).permute(0, 2, 3, 1, 4).flatten(3)
    local = pad(local, (0, whole.shape[-1] - local.shape[-1]))
    return torch.where(is_longer[:, :, None, None], patches.fusion_model(whole, local), whole)


class AudioEmbedder(torch.nn.Module):
    """The sound tower of a ``ClapModel`` up to normalised embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.audio_model.audio_encoder
        self.audio_projection = model.audio_projection

    def forward(self, input_features: Tensor, is_longer: Tensor | None = None) -> dict[str, Tensor]:
        """[b, 1 or 4, t, mels] (and which are longer, [b, 1]) to ``audio_embeds`` [b, d].

        transformers orders the last tokens by frequency before it takes their mean, which is the same.
        """
        encoder = self.encoder
        normal = encoder.batch_norm(input_features.transpose(1, 3)).transpose(1, 3)
        pictures = encoder.reshape_mel2img(normal)
        patches = encoder.patch_embed
        grid = patches.proj(pictures) if is_longer is None else fused_patches(patches, pictures, is_longer)
        tokens = patches.norm(grid.flatten(2).transpose(1, 2))
        for stage, resolution in zip(encoder.layers, encoder.input_resolutions, strict=True):
            tokens = stage(tokens, resolution)[0]
        pooled = encoder.norm(tokens).mean(dim=1)
        return {"audio_embeds": normalize(self.audio_projection(pooled), dim=-1)}


class ClapTextEmbedder(torch.nn.Module):
    """The text tower of a ``ClapModel`` up to normalised embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """[b, s] to ``text_embeds`` [b, d]."""
        pooled = self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return {"text_embeds": normalize(self.text_projection(pooled), dim=-1)}
