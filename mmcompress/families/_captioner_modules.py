"""Torch modules around a ``VisionEncoderDecoderModel``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PictureEncoder(nn.Module):
    """The picture encoder, with the projection to the decoder's width where there is one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.enc_to_dec_proj = getattr(model, "enc_to_dec_proj", None)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, h, w] to hidden states [b, t, d]."""
        states: Tensor = self.encoder(pixel_values=pixel_values).last_hidden_state
        return states if self.enc_to_dec_proj is None else self.enc_to_dec_proj(states)


class CaptionReader(nn.Module):
    """The decoder over whole captions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, input_ids: Tensor, states: Tensor) -> Tensor:
        """[b, s] and [b, t, d] to logits [b, s, v]."""
        logits: Tensor = self.decoder(input_ids=input_ids, encoder_hidden_states=states, use_cache=False).logits
        return logits
