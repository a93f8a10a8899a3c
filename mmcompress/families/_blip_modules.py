"""Torch modules around BLIP's models: one per graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmcompress.families._blip_model import image_embeds, match_logits, question_states, text_embeds


class _Parts(nn.Module):
    """Holds the parts of a model that a graph runs through, under their own names, and those alone."""

    parts: tuple[str, ...] = ()
    vision_model: Any
    text_encoder: Any
    text_decoder: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name in self.parts:
            self.add_module(name, getattr(model, name))


class Seen(_Parts):
    """The picture tower."""

    parts = ("vision_model",)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, h, w] to states [b, t, d]."""
        states: Tensor = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return states


class Asked(_Parts):
    """A question about a picture."""

    parts = ("vision_model", "text_encoder")

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[b, 3, h, w], [b, s] and [b, s] to states [b, s, d]."""
        seen = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return question_states(self, seen, input_ids, attention_mask)


class AskedOfStates(_Parts):
    """A question about a picture that was seen already."""

    parts = ("text_encoder",)

    def forward(self, seen: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[b, t, d], [b, s] and [b, s] to states [b, s, d]."""
        return question_states(self, seen, input_ids, attention_mask)


class Match(_Parts):
    """Whether a text fits a picture."""

    parts = ("vision_model", "text_encoder", "itm_head")

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """[b, 3, h, w], [b, s] and [b, s] to ``logits`` [b, 2]."""
        seen = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return {"logits": match_logits(self, seen, input_ids, attention_mask)}


class ImageEmbeds(_Parts):
    """Pictures in the space of the contrastive heads."""

    parts = ("vision_model", "vision_proj")

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """[b, 3, h, w] to ``image_embeds`` [b, d]."""
        return {"image_embeds": image_embeds(self, self.vision_model(pixel_values).last_hidden_state)}


class TextEmbeds(_Parts):
    """Texts in the space of the contrastive heads."""

    parts = ("text_encoder", "text_proj")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """[b, s] and [b, s] to ``text_embeds`` [b, d]."""
        return {"text_embeds": text_embeds(self, input_ids, attention_mask)}


class Reader(_Parts):
    """The decoder over whole texts."""

    parts = ("text_decoder",)

    def forward(self, input_ids: Tensor, states: Tensor) -> Tensor:
        """[b, s] and [b, t, d] to logits [b, s, v]."""
        logits: Tensor = self.text_decoder(input_ids=input_ids, encoder_hidden_states=states, use_cache=False).logits
        return logits
