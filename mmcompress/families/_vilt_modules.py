"""ViLT's forward without anything whose shape depends on what the pictures hold, so that it can be exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

HIDDEN = -65504.0
"""Added to scores of what is padding: the lowest number that half precision has."""


@dataclass(frozen=True)
class States:
    """What ViLT's encoder gives for texts with pictures: the text's tokens, then the picture's class token and patches."""

    last: Tensor
    """[b, s, d], after the last layer norm."""
    pooled: Tensor
    """[b, d], of the text's first token."""
    mask: Tensor
    """[b, s], 1 where there is no padding."""
    hidden_states: tuple[Tensor, ...] | None = None
    """After each layer."""
    attentions: tuple[Tensor, ...] | None = None


def states(
    vilt: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor,
    patch_positions: Tensor,
    picture: Tensor | None = None,
    *,
    hidden: bool = False,
    maps: bool = False,
) -> States:
    """Run a ``ViltModel`` on texts and patches; equals its own forward on the padded pictures.

    transformers gathers the patches of a batch that are no padding, in an order in which padding is drawn at random; all
    of them stay here, and padding is hidden by the mask. Attention knows no order, so the states are the same.

    Args:
        vilt: the ``ViltModel``.
        input_ids: [b, t].
        attention_mask: [b, t].
        pixel_values: patches [b, p, channels * side * side].
        patch_positions: [b, p, 2], row and column from 0 to 1; -1 for padding.
        picture: [b], which picture of its text each is; 0 where None.
        hidden: whether to give the states after each layer.
        maps: whether to give attention maps.
    """
    shown = patch_positions[..., 0] >= 0
    mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1]), shown.to(attention_mask.dtype)], dim=1)
    kinds = vilt.embeddings.token_type_embeddings.weight
    pictures = embed_patches(vilt.embeddings, pixel_values, patch_positions)
    pictures = pictures + (kinds[1] if picture is None else embedding(picture + 1, kinds)[:, None])
    texts = vilt.embeddings.text_embeddings(input_ids=input_ids) + kinds[0]
    embedded = following(texts, pictures)
    hides = (1.0 - mask.to(embedded.dtype))[:, None, None] * HIDDEN
    given = vilt.encoder(embedded, attention_mask=hides, output_hidden_states=hidden, output_attentions=maps)
    last = vilt.layernorm(given.last_hidden_state)
    # transformers' first hidden state is the embeddings, before any layer.
    layers = tuple(given.hidden_states[1:]) if hidden else None
    return States(last, vilt.pooler(last), mask, layers, tuple(given.attentions) if maps else None)


def following(first: Tensor, second: Tensor) -> Tensor:
    """Tokens [b, s, d] with further tokens after them.

    Torch-Pruning takes any joining along axis 1 for one of channels, so these are joined along axis 2.
    """
    return torch.cat([first[:, None], second[:, None]], dim=2).flatten(0, 1)


def embed_patches(embeddings: Any, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
    """Patches [b, p, channels * side * side] to embeddings [b, 1 + p, d], the picture's class token first."""
    projection = embeddings.patch_embeddings.projection
    # A convolution whose step is its size is one product per patch.
    patches = linear(pixel_values, projection.weight.flatten(1), projection.bias)
    patches = patches + interpolated_positions(embeddings.position_embeddings, patch_positions)
    first = embeddings.cls_token + embeddings.position_embeddings[:, :1]
    embedded: Tensor = embeddings.dropout(following(first.expand(patches.shape[0], -1, -1), patches))
    return embedded


def interpolated_positions(table: Tensor, patch_positions: Tensor) -> Tensor:
    """Position embeddings of patches [b, p, d], as transformers interpolates them for each picture's size.

    ``interpolate(mode="bilinear", align_corners=True)`` to rows and columns of patches reads the square table at the
    patches' places as shares of the picture; this reads it there, whatever the size.

    Args:
        table: [1, 1 + side * side, d], the class token's first.
        patch_positions: [b, p, 2], row and column from 0 to 1.
    """
    side = int((table.shape[1] - 1) ** 0.5)
    places = patch_positions.clamp(min=0) * (side - 1)
    before = places.floor().clamp(max=side - 1)
    after = (before + 1).clamp(max=side - 1)
    share = (places - before)[..., None]  # [b, p, 2, 1]
    (top, left), (bottom, right) = before.long().unbind(-1), after.long().unbind(-1)
    grid = table[0, 1:]

    def row(index: Tensor) -> Tensor:
        near, far = embedding(index * side + left, grid), embedding(index * side + right, grid)
        return near + (far - near) * share[..., 1, :]

    above, below = row(top), row(bottom)
    return above + (below - above) * share[..., 0, :]


# --- tasks ---------------------------------------------------------------------------------------------------------


class QuestionAnswerer(torch.nn.Module):
    """A ``ViltForQuestionAnswering``: a score per answer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vilt, self.classifier = model.vilt, model.classifier

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, patch_positions: Tensor
    ) -> dict[str, Tensor]:
        """Question [b, t] and patches [b, p, ...] to ``logits`` [b, c]."""
        found = states(self.vilt, input_ids, attention_mask, pixel_values, patch_positions)
        return {"logits": self.classifier(found.pooled)}


class Matcher(torch.nn.Module):
    """A ``ViltForImageAndTextRetrieval``: how well a text fits a picture."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vilt, self.rank_output = model.vilt, model.rank_output

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, patch_positions: Tensor
    ) -> dict[str, Tensor]:
        """Text [b, t] and patches [b, p, ...] to ``logits`` [b, 1]."""
        found = states(self.vilt, input_ids, attention_mask, pixel_values, patch_positions)
        return {"logits": self.rank_output(found.pooled)}


class Filler(torch.nn.Module):
    """A ``ViltForMaskedLM``: a score per word for every place of a text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vilt, self.mlm_score = model.vilt, model.mlm_score

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, patch_positions: Tensor
    ) -> dict[str, Tensor]:
        """Text [b, t] and patches [b, p, ...] to ``logits`` [b, t, v]."""
        found = states(self.vilt, input_ids, attention_mask, pixel_values, patch_positions)
        return {"logits": self.mlm_score(found.last[:, : input_ids.shape[1]])}


class Reasoner(torch.nn.Module):
    """A ``ViltForImagesAndTextClassification``: a score per class of a text with several pictures."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vilt, self.classifier = model.vilt, model.classifier

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, patch_positions: Tensor
    ) -> dict[str, Tensor]:
        """Text [b, t] and patches [b, n, p, ...] to ``logits`` [b, c]."""
        found = several_states(self.vilt, input_ids, attention_mask, pixel_values, patch_positions)
        return {"logits": self.classifier(joined(found.pooled, pixel_values.shape[1]))}


def several_states(
    vilt: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor,
    patch_positions: Tensor,
    *,
    hidden: bool = False,
    maps: bool = False,
) -> States:
    """As :func:`states` for n pictures per text, patches [b, n, p, ...]: rows of one text follow each other, [b * n, ...]."""
    count = pixel_values.shape[1]
    return states(
        vilt,
        repeated(input_ids, count),
        repeated(attention_mask, count),
        pixel_values.flatten(0, 1),
        patch_positions.flatten(0, 1),
        torch.zeros_like(input_ids[:, :1]).add(torch.arange(count, device=input_ids.device)).flatten(),
        hidden=hidden,
        maps=maps,
    )


def repeated(values: Tensor, count: int) -> Tensor:
    """Each row ``count`` times: [b, ...] to [b * count, ...]."""
    return values[:, None].expand(-1, count, *values.shape[1:]).flatten(0, 1)


def joined(pooled: Tensor, count: int) -> Tensor:
    """[b * count, d] to [b, count * d]."""
    return pooled.reshape(-1, count * pooled.shape[-1])
