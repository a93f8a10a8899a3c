"""Torch modules around ``WhisperForConditionalGeneration``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmcompress.families._decoder_modules import DecoderStart, DecoderStep, Pair, split_heads


class PlainEncoder(nn.Module):
    """The encoder alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> dict[str, Tensor]:
        """[b, mels, frames] to ``states`` [b, t, d]."""
        return {"states": self.encoder(input_features).last_hidden_state}


class ForcedDecoder(nn.Module):
    """The decoder over a whole text at once."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.model.decoder
        self.proj_out = model.proj_out

    def forward(self, input_ids: Tensor, states: Tensor) -> dict[str, Tensor]:
        """[b, s] and the encoder's states [b, t, d] to ``logits`` [b, s, v]."""
        decoded = self.decoder(input_ids=input_ids, encoder_hidden_states=states, use_cache=False)
        return {"logits": self.proj_out(decoded.last_hidden_state)}


class _States(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        states: Tensor = self.encoder(input_features).last_hidden_state
        return states


def decoder_start(model: Any) -> nn.Module:
    """The encoder with keys and values of all cross-attentions, which are computed once per sound."""
    layers = list(model.model.decoder.layers)
    attentions = [layer.encoder_attn for layer in layers]

    def project(states: Tensor) -> list[Pair]:
        return [
            (split_heads(each.k_proj(states), each.head_dim), split_heads(each.v_proj(states), each.head_dim))
            for each in attentions
        ]

    heads = [(int(layer.self_attn.num_heads), int(layer.self_attn.head_dim)) for layer in layers]
    holds = [module for each in attentions for module in (each.k_proj, each.v_proj)]
    return DecoderStart(_States(model), project, heads, holds).eval()


def decoder_step(model: Any) -> nn.Module:
    """A step of the decoder: tokens and their state to logits and the grown state."""
    decoder = model.model.decoder
    width = int(model.config.d_model)

    def call(input_ids: Tensor, cache: Any, stand_in: Tensor, cross_mask: Tensor | None) -> Tensor:
        past = cache.get_seq_length()
        count = input_ids.shape[1]
        places = torch.arange(count, device=input_ids.device) + past
        # A token sees those before it, and itself.
        hidden = torch.arange(past + count, device=input_ids.device)[None] > places[:, None]
        mask = torch.zeros(hidden.shape, device=input_ids.device).masked_fill(hidden, torch.finfo(torch.float32).min)
        decoded = decoder(
            input_ids=input_ids,
            attention_mask=mask[None, None],
            # Seen by nobody: keys and values are in the cache.
            encoder_hidden_states=stand_in.new_zeros(stand_in.shape[0], 1, width),
            past_key_values=cache,
            position_ids=places[None],
            use_cache=True,
        )
        logits: Tensor = model.proj_out(decoded.last_hidden_state[:, -1:])
        return logits

    return DecoderStep(nn.ModuleList([decoder, model.proj_out]), len(decoder.layers), call).eval()
