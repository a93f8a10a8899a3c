"""The ``fusion`` family's model: an encoder per input, and what joins them.

Shapes: b examples, t tokens, d an encoder's width, w the width of the fusion, c classes (1 for a number).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmcompress.families._fusion_config import FusionConfig
from mmcompress.families._fusion_encoder_modules import (
    Encoded,
    InputEncoder,
    Layers,
    Standardise,
    masked_mean,
    steps_mask,
)
from mmcompress.families._fusion_parts import Early, Intermediate, Late


@dataclass(frozen=True)
class Fused:
    """What a fusion gives."""

    logits: Tensor
    """[b, c]; [b, t, c] for a class per token."""
    embeds: Tensor
    """[b, k]: the joined features, not normalised."""
    each: Mapping[str, Tensor]
    """[b, c] per input: its own logits (late fusion)."""


class EarlyFusion(nn.Module):
    """The features of all inputs, joined, into linear layers."""

    def __init__(self, widths: Mapping[str, int], classes: int, settings: Early, tagged: str = "") -> None:
        super().__init__()
        self.tagged = tagged
        self.layers = Layers(sum(widths.values()), settings.hidden, classes, settings.dropout)

    def forward(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Fused:
        """With ``tagged``, every token of that input beside the features of the others."""
        if not self.tagged:
            logits, hidden = self.layers(torch.cat([item.pooled for item in encoded.values()], dim=-1))
            return Fused(logits, hidden, {})
        text = encoded[self.tagged]
        steps = text.tokens.shape[1]
        joined = [
            item.tokens if name == self.tagged else item.pooled[:, None].expand(-1, steps, -1)
            for name, item in encoded.items()
        ]
        logits, hidden = self.layers(torch.cat(joined, dim=-1))
        return Fused(logits, masked_mean(hidden, text.mask), {})


class CrossAttention(nn.Module):
    """Tokens of one input read those of the others, by heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """[b, t, w] reads [b, u, w] where ``mask`` [b, u] holds."""
        query, key, value = (
            layer(given).view(given.shape[0], given.shape[1], -1, self.head_dim).transpose(1, 2)
            for layer, given in ((self.q_proj, tokens), (self.k_proj, others), (self.v_proj, others))
        )
        scores = query @ key.transpose(2, 3) * self.head_dim**-0.5
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        read = scores.softmax(dim=-1) @ value
        result: Tensor = self.o_proj(read.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[1], -1))
        return result


class CrossBlock(nn.Module):
    """Cross-attention and a feed-forward block, each behind a layer norm and added to what it read."""

    def __init__(self, settings: Intermediate) -> None:
        super().__init__()
        width = settings.width
        self.norm, self.norm_others, self.norm_after = (nn.LayerNorm(width) for _ in range(3))
        self.attention = CrossAttention(width, settings.heads)
        self.fc1, self.fc2 = nn.Linear(width, settings.feed_forward), nn.Linear(settings.feed_forward, width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, tokens: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """[b, t, w], [b, u, w] and which of the latter count, to [b, t, w]."""
        tokens = tokens + self.dropout(self.attention(self.norm(tokens), self.norm_others(others), mask))
        result: Tensor = tokens + self.dropout(self.fc2(nn.functional.gelu(self.fc1(self.norm_after(tokens)))))
        return result


class IntermediateFusion(nn.Module):
    """Cross-attention between the inputs' tokens.

    Before its tokens every input has one that holds its feature vector, or what stands for it where it is absent: it
    is always there, so that there is always something to read, and in the end it is the input's part of the answer.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, settings: Intermediate, tagged: str = "") -> None:
        super().__init__()
        self.names, self.tagged = tuple(widths), tagged
        self.projections = nn.ModuleList(nn.Linear(width, settings.width) for width in widths.values())
        # Behind the last layer nothing is read but what is tagged, where something is.
        read = [list(widths)] * (settings.layers - 1) + [[tagged] if tagged else list(widths)]
        self.layers = nn.ModuleList(
            nn.ModuleDict({f"{name}_block": CrossBlock(settings) for name in names}) for names in read
        )
        self.norm = nn.LayerNorm(settings.width)
        joined = settings.width * (1 if tagged else len(widths))
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(joined, classes)

    def forward(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Fused:
        """See :class:`IntermediateFusion`."""
        tokens, masks = {}, {}
        for name, projection in zip(self.names, self.projections, strict=True):
            item = encoded[name]
            tokens[name] = projection(torch.cat([item.pooled[:, None], item.tokens], dim=1))
            masks[name] = torch.cat([torch.ones_like(item.mask[:, :1]), item.mask], dim=1)
        for number, blocks in enumerate(self.layers):
            last = number == len(self.layers) - 1
            read = {}
            for name in [name for name in self.names if f"{name}_block" in blocks]:  # type: ignore[operator]
                # Behind the last layer of what is not tagged only the feature vectors are read.
                own = tokens[name][:, :1] if last and not self.tagged else tokens[name]
                read[name] = blocks[f"{name}_block"](own, _others(tokens, name), _others(masks, name))  # type: ignore[index]
            tokens = read
        if self.tagged:
            words = self.norm(tokens[self.tagged][:, 1:])
            return Fused(self.head(self.dropout(words)), masked_mean(words, encoded[self.tagged].mask), {})
        vectors = torch.cat([self.norm(tokens[name][:, 0]) for name in self.names], dim=-1)
        return Fused(self.head(self.dropout(vectors)), vectors, {})


def _others(parts: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.cat([part for other, part in parts.items() if other != name], dim=1)


class LateFusion(nn.Module):
    """A linear head per input; their logits are averaged with weights over the inputs that are there."""

    def __init__(self, widths: Mapping[str, int], classes: int, settings: Late) -> None:
        super().__init__()
        self.names = tuple(widths)
        self.heads = nn.ModuleList(nn.Linear(width, classes) for width in widths.values())
        self.log_weights = nn.Parameter(torch.zeros(len(widths))) if settings.weights == "learned" else None

    def forward(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Fused:
        """sum_i w_i p_i z_i / sum_i w_i p_i, with weights w above 0 and p 1 for an input that is there, else 0."""
        each = {name: head(encoded[name].pooled) for name, head in zip(self.names, self.heads, strict=True)}
        votes = torch.stack(list(each.values()), dim=1)
        weights = torch.ones_like(votes[:, :, :1])
        if self.log_weights is not None:
            weights = weights * self.log_weights.exp()[None, :, None]
        if present:
            weights = weights * torch.stack([present[name] for name in self.names], dim=1)[:, :, None]
        embeds = torch.cat([item.pooled for item in encoded.values()], dim=-1)
        return Fused((votes * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6), embeds, each)


class FusionModel(nn.Module):
    """Encoders, called ``<input>_encoder``, and ``fusion``; for a number also ``scale``, what numbers it was shown."""

    def __init__(self, config: FusionConfig, encoders: Mapping[str, InputEncoder]) -> None:
        super().__init__()
        self.settings = config
        for name, encoder in encoders.items():
            self.add_module(f"{name}_encoder", encoder)
        widths = {name: encoder.width for name, encoder in encoders.items()}
        fusion, classes, tagged = config.fusion, config.width, config.tagged
        self.fusion: nn.Module
        if isinstance(fusion, Early):
            self.fusion = EarlyFusion(widths, classes, fusion, tagged)
        elif isinstance(fusion, Intermediate):
            self.fusion = IntermediateFusion(widths, classes, fusion, tagged)
        else:
            self.fusion = LateFusion(widths, classes, fusion)
        self.scale = Standardise(1) if config.output.kind == "number" else None

    def encoder(self, name: str) -> InputEncoder:
        """The encoder of an input."""
        found = self.get_submodule(f"{name}_encoder")
        assert isinstance(found, InputEncoder)
        return found

    def encode(self, feeds: Mapping[str, Tensor]) -> dict[str, Encoded]:
        """Every input's values (``<input>_values``, ``_length``, ``_present``) through its encoder."""
        return {
            item.name: self.encoder(item.name)(
                feeds[f"{item.name}_values"], feeds.get(f"{item.name}_length"), feeds.get(f"{item.name}_present")
            )
            for item in self.settings.inputs
        }

    def join(self, encoded: Mapping[str, Encoded], feeds: Mapping[str, Tensor]) -> Fused:
        """What comes of all inputs; numbers in their unit."""
        present = {
            item.name: feeds[f"{item.name}_present"] for item in self.settings.inputs if f"{item.name}_present" in feeds
        }
        fused: Fused = self.fusion(encoded, present)
        if self.scale is None:
            return fused

        def in_unit(logits: Tensor) -> Tensor:
            assert self.scale is not None
            return logits.float() * self.scale.std + self.scale.mean

        return Fused(in_unit(fused.logits), fused.embeds, {name: in_unit(z) for name, z in fused.each.items()})


class FusionGraph(nn.Module):
    """The whole model as one graph."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **feeds: Tensor) -> dict[str, Tensor]:
        """``logits`` [b, c], or [b, t, c] for a class per token."""
        return {"logits": self.model.join(self.model.encode(feeds), feeds).logits}


class EncoderGraph(nn.Module):
    """What lies inside one encoder and can be pruned, as pruning traces it."""

    def __init__(self, encoder: InputEncoder) -> None:
        super().__init__()
        self.encoder, self.film = encoder.encoder, encoder.film

    def forward(self, **feeds: Tensor) -> dict[str, Tensor]:
        """``values`` and the ``length`` of texts, to ``tokens`` and ``pooled``."""
        values, length = feeds["values"], feeds.get("length")
        mask = None if length is None else steps_mask(length, values.shape[1])
        found = self.encoder(values.flatten(0, 1) if self.film else values, mask)
        return {"tokens": found.tokens, "pooled": found.pooled}


class JoinGraph(nn.Module):
    """What joins the encoders, as pruning traces it."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.names = tuple(item.name for item in model.settings.inputs)
        self.fusion = model.fusion

    def forward(self, **feeds: Tensor) -> dict[str, Tensor]:
        """``<input>_tokens`` and ``<input>_pooled`` to ``logits``."""
        encoded = {}
        for name in self.names:
            tokens, pooled = feeds[f"{name}_tokens"], feeds[f"{name}_pooled"]
            encoded[name] = Encoded(tokens, torch.ones_like(tokens[:, :, 0]).bool(), pooled)
        return {"logits": self.fusion(encoded, {}).logits}
