"""Torch modules around decoders of others: a graph that gives what a decoder starts from, and one step with a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
"""Keys and values of a layer, [b, h, s, d]."""


def cache_of(past: Sequence[Pair], cross: Sequence[Pair]) -> Any:
    """Transformers' cache of a decoder, from the keys and values of its layers; the cross part is complete."""
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.cache_utils import DynamicLayer

    def filled(pairs: Sequence[Pair]) -> Any:
        cache: Any = DynamicCache()
        for keys, values in pairs:
            layer: Any = cast("Any", DynamicLayer)()
            layer.keys, layer.values = keys, values
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            cache.layers.append(layer)
        return cache

    both: Any = EncoderDecoderCache(filled(past), filled(cross))
    both.is_updated = dict.fromkeys(range(len(cross)), True)
    return both


def named_pairs(prefix: str, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """``<prefix>.<layer>.key`` and ``.value``."""
    return {
        f"{prefix}.{layer}.{what}": tensor
        for layer, pair in enumerate(pairs)
        for what, tensor in zip(("key", "value"), pair, strict=True)
    }


def read_pairs(prefix: str, tensors: dict[str, Tensor], layers: int) -> list[Pair]:
    """The reverse of :func:`named_pairs`."""
    return [(tensors[f"{prefix}.{layer}.key"], tensors[f"{prefix}.{layer}.value"]) for layer in range(layers)]


class DecoderStart(nn.Module):
    """Encodes, and gives the state that a decoder starts from: cross keys and values, and an empty past."""

    def __init__(
        self,
        encoder: nn.Module,
        project: Callable[[Tensor], Sequence[Pair]],
        heads: Sequence[tuple[int, int]],
        holds: Sequence[nn.Module],
        mask: str | None = None,
    ) -> None:
        """Take the parts.

        Args:
            encoder: inputs by keyword to hidden states [b, t, d].
            project: hidden states to keys and values of every layer's cross-attention.
            heads: number and width of the heads of every layer's self-attention.
            holds: the modules that ``project`` uses, so that they belong to this one.
            mask: the input [b, t] that tells which states count, handed on as ``cross.mask``; None where all do.
        """
        super().__init__()
        self.encoder = encoder
        self.holds = nn.ModuleList(holds)
        self._project = project
        self._heads = tuple(heads)
        self._mask = mask

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Inputs of the encoder to ``cross.<i>.*`` [b, h, t, d] and ``past.<i>.*`` [b, h, 0, d]."""
        states: Tensor = self.encoder(**inputs)
        empty = [(states.new_zeros(states.shape[0], h, 0, d),) * 2 for h, d in self._heads]
        mask = {} if self._mask is None else {"cross.mask": inputs[self._mask].clone()}
        return {**named_pairs("cross", self._project(states)), **mask, **named_pairs("past", empty)}


class DecoderStep(nn.Module):
    """A decoder that is given its cache and gives it back, grown; keyword tensors in, named tensors out."""

    def __init__(
        self, decoder: nn.Module, layers: int, call: Callable[[Tensor, Any, Tensor, Tensor | None], Tensor]
    ) -> None:
        """Take the parts.

        Args:
            decoder: the module that ``call`` uses, so that it belongs to this one.
            layers: number of layers.
            call: ``(input_ids, cache, stand_in, mask)`` to logits [b, s, v]; the stand-in has the shape of the encoder's
                hidden states [b, t, d], for decoders that want to see some although their keys and values are in the
                cache; the mask is ``cross.mask`` [b, t], or None.
        """
        super().__init__()
        self.decoder = decoder
        self._layers = layers
        self._call = call

    def forward(self, input_ids: Tensor, **state: Tensor) -> dict[str, Tensor]:
        """Tokens [b, s] and the state to ``logits`` of the last token [b, 1, v] and ``present.<i>.*``."""
        past, cross = (read_pairs(prefix, state, self._layers) for prefix in ("past", "cross"))
        cache = cache_of(past, cross)
        stand_in = cross[0][0].transpose(1, 2).flatten(2)
        logits = self._call(input_ids, cache, stand_in, state.get("cross.mask"))
        grown = [(layer.keys, layer.values) for layer in cache.self_attention_cache.layers]
        return {"logits": logits[:, -1:], **named_pairs("present", grown)}


def split_heads(states: Tensor, width: int) -> Tensor:
    """[b, t, heads * width] to [b, heads, t, width]."""
    return states.view(*states.shape[:-1], -1, width).transpose(1, 2)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the next token, mean over the tokens that count: [b, s, v] and [b, s] with -100 elsewhere."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def after_tokens(step: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Inputs of a step with a cache, after ``count`` tokens: the cache is repeated to that length."""
    return {
        name: value[:, :, torch.arange(count) % value.shape[2]] if name.startswith("past.") else value
        for name, value in step.items()
    }
