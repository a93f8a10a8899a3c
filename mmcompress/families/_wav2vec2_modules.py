"""Torch modules around transformers' Wav2Vec2 and HuBERT models."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from mmcompress.families._wav2vec2_processing import receptive_field


def frame_mask(config: Any, sample_counts: Tensor, frames: int | torch.SymInt) -> Tensor:
    """Which of so many frames lie within the samples that count: bool [b, t].

    The last sample that frame t is made of is its first one, t strides from the beginning, and a receptive field on.
    """
    field = receptive_field(config.conv_kernel, config.conv_stride)
    count: Any = frames  # a symbol while a graph is traced
    last = torch.arange(count, device=sample_counts.device) * prod(config.conv_stride) + field
    mask: Tensor = last <= sample_counts[:, None]
    return mask


class SpeechEncoder(torch.nn.Module):
    """A model for CTC or for classes of sounds, from samples to logits.

    transformers' forward makes the mask of frames by scattering and cumulative sums; here it is one comparison.
    """

    def __init__(self, model: Any, masked: bool) -> None:
        super().__init__()
        self.model = model
        self.masked = masked
        self.stable = bool(model.config.do_stable_layer_norm)
        self.transcribes = hasattr(model, "lm_head")

    def forward(self, input_values: Tensor, sample_counts: Tensor | None = None) -> dict[str, Tensor]:
        """[b, n] and samples that count [b] to ``logits`` [b, t, c] and ``frames`` that count [b]; or ``logits`` [b, c]."""
        base = self.model.base_model
        features = base.feature_extractor(input_values).transpose(1, 2)
        projected = base.feature_projection(features)
        states = projected[0] if isinstance(projected, tuple) else projected
        counted = None
        if sample_counts is not None:
            counted = frame_mask(self.model.config, sample_counts, states.shape[1])
        mask = counted if self.masked else None
        layers = self._encode(base.encoder, states, mask)
        if counted is not None and self.transcribes:
            return {"logits": self.model.lm_head(layers[-1]), "frames": counted.long().sum(dim=1)}
        return {"logits": self._classify(layers, mask)}

    def _encode(self, encoder: Any, states: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The states before the first layer and after each; last of all what the encoder gives."""
        additive = None
        if mask is not None:
            states = states * mask[:, :, None].to(states.dtype)
            lowest = torch.finfo(states.dtype).min
            additive = (1.0 - mask[:, None, None, :].to(states.dtype)) * lowest
        states = states + encoder.pos_conv_embed(states)
        if not self.stable:
            states = encoder.layer_norm(states)
        found = [states]
        for layer in encoder.layers:
            states = layer(states, attention_mask=additive)
            found.append(states)
        return [*found, encoder.layer_norm(states) if self.stable else states]

    def _classify(self, layers: list[Tensor], mask: Tensor | None) -> Tensor:
        states = layers[-1]
        if self.model.config.use_weighted_layer_sum:
            weights = torch.softmax(self.model.layer_weights, dim=-1)
            states = (torch.stack(layers[:-1], dim=1) * weights.view(-1, 1, 1)).sum(dim=1)
        projected = self.model.projector(states)
        if mask is None:
            pooled = projected.mean(dim=1)
        else:
            counted = mask[:, :, None].to(projected.dtype)
            pooled = (projected * counted).sum(dim=1) / counted.sum(dim=1)
        logits: Tensor = self.model.classifier(pooled)
        return logits
