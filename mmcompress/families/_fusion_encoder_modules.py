"""Encoders of the ``fusion`` family: an input's values to tokens and to one feature vector.

Shapes: b examples, t tokens (steps, patches, frames), c columns or channels, d the encoder's width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_MOST_COUNTED = 1e6
"""Rows from which statistics no longer settle: float32 cannot count on."""


class Encoded(NamedTuple):
    """What an input became."""

    tokens: Tensor
    """[b, t, d]"""
    mask: Tensor
    """bool [b, t]: which tokens count."""
    pooled: Tensor
    """[b, d]"""


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """[b, t, d] and [b, t] to [b, d]: the mean of the tokens that count, 0 where none does."""
    counts = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def steps_mask(length: Tensor, steps: int) -> Tensor:
    """Lengths [b] to bool [b, t]."""
    return torch.arange(steps, device=length.device)[None] < length[:, None]


class Standardise(nn.Module):
    """Subtracts a mean and divides by a standard deviation per channel: fixed ones, or those seen in training.

    Seen values are pooled over all batches so far (Chan, Golub and LeVeque, 1979, equation 2.1), so that training and
    evaluation compute the same, and a batch of one works. Only what counts is seen: no padding, no absent input.
    """

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.learns = mean is None
        self.register_buffer("mean", torch.tensor([0.0] * channels if mean is None else list(mean)))
        self.register_buffer("variance", torch.tensor([1.0] * channels if std is None else list(std)).square())
        self.register_buffer("count", torch.zeros(()))
        self.mean: Tensor
        self.variance: Tensor
        self.count: Tensor

    @property
    def std(self) -> Tensor:
        """[c]; 1 where a channel never varied."""
        return torch.where(self.variance > 1e-12, self.variance, torch.ones_like(self.variance)).sqrt()

    @torch.no_grad()
    def see(self, rows: Tensor) -> None:
        """Add rows [n, c] to the statistics."""
        if len(rows) == 0:
            return
        mean, variance, count = rows.float().mean(dim=0), rows.float().var(dim=0, unbiased=False), float(len(rows))
        total = self.count + count
        apart = mean - self.mean
        seen = self.count / total
        # Before anything was seen the variance of 1 stands for none.
        spread = self.variance * seen + variance * (1 - seen) + apart.square() * seen * (1 - seen)
        self.mean += apart * (1 - seen)
        self.variance.copy_(spread)
        self.count.copy_(total.clamp(max=_MOST_COUNTED))

    def forward(self, values: Tensor, counts: Tensor) -> Tensor:
        """[..., c] to the same shape; in training ``counts`` bool [...] tells which rows are seen."""
        if self.training and self.learns:
            self.see(values[counts])
        return (values - self.mean) / self.std


class TransformersEncoder(nn.Module):
    """A ``ResNetModel``, ``ViTModel`` or ``BertModel``."""

    def __init__(self, kind: str, model: nn.Module, width: int) -> None:
        super().__init__()
        self.kind, self.model, self.width = kind, model, width

    def forward(self, values: Tensor, mask: Tensor | None) -> Encoded:
        """Pictures [b, 3, h, w], or token ids [b, t] with their mask."""
        if mask is not None:
            tokens = self.model(input_ids=values, attention_mask=mask.long()).last_hidden_state
            return Encoded(tokens, mask, masked_mean(tokens, mask))
        states = self.model(pixel_values=values).last_hidden_state
        if self.kind == "resnet":
            tokens = states.flatten(2).transpose(1, 2)
            pooled = tokens.mean(dim=1)
        else:
            tokens, pooled = states, states[:, 0]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), pooled)


class RecurrentLayer(nn.Module):
    """One layer of a GRU or LSTM, exported as the ONNX operator of that name: torch's exporter would fix the length."""

    def __init__(self, kind: str, inputs: int, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.cell: nn.GRU | nn.LSTM = (nn.GRU if kind == "gru" else nn.LSTM)(inputs, width, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        """[b, t, c] to the states after each step [b, t, d]."""
        if torch.compiler.is_exporting():
            return self._as_operator(values)
        # Autocast of recurrent layers is incomplete on CPUs.
        with torch.autocast(values.device.type, enabled=False):
            states: Tensor = self.cell(values.float())[0]
        return states

    def _as_operator(self, values: Tensor) -> Tensor:
        # torch's gates are (reset, update, new) and (input, forget, cell, output); ONNX's are in these orders.
        order = (1, 0, 2) if self.kind == "gru" else (0, 3, 1, 2)

        def gates(name: str) -> Tensor:
            parts = getattr(self.cell, name).chunk(len(order))
            return torch.cat([parts[index] for index in order])

        weights = [gates(f"weight_{side}_l0")[None] for side in ("ih", "hh")]
        bias = torch.cat([gates(f"bias_{side}_l0") for side in ("ih", "hh")])[None]
        attributes: dict[str, Any] = {"hidden_size": self.width}
        if self.kind == "gru":
            attributes["linear_before_reset"] = 1
        states = torch.onnx.ops.symbolic(
            self.kind.upper(),
            (values.transpose(0, 1), *weights, bias),
            attributes,
            dtype=values.dtype,
            shape=(values.shape[1], 1, values.shape[0], self.width),
            version=20,
        )
        return states[:, 0].transpose(0, 1)


class RecurrentEncoder(nn.Module):
    """Layers of a GRU or LSTM."""

    def __init__(self, kind: str, inputs: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(
            RecurrentLayer(kind, inputs if index == 0 else width, width) for index in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Encoded:
        """[b, t, c] to the states, and the state after the last step that counts."""
        for index, layer in enumerate(self.layers):
            values = layer(values if index == 0 else self.dropout(values))
        last = mask.sum(dim=1).clamp(min=1) - 1
        pooled = values.gather(1, last[:, None, None].expand(-1, 1, values.shape[-1]))[:, 0]
        return Encoded(values, mask, pooled)


class ConvEncoder(nn.Module):
    """Convolutions over time. What lies behind an example's end is zero in every layer, as if nothing were there."""

    def __init__(self, inputs: int, channels: Sequence[int], kernel: int, stride: int) -> None:
        super().__init__()
        self.width, self.stride = channels[-1], stride
        widths = (inputs, *channels)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride=stride, padding=kernel // 2)
            for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)

    def forward(self, values: Tensor, mask: Tensor) -> Encoded:
        """[b, t, c] to [b, t / stride ** layers, d], and their mean."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            values = convolution((values * mask.unsqueeze(-1).to(values.dtype)).transpose(1, 2)).transpose(1, 2)
            values = nn.functional.gelu(norm(values))
            mask = mask[:, :: self.stride]
        return Encoded(values, mask, masked_mean(values, mask))


class Layers(nn.Module):
    """Linear layers with GELU (and drop-out) between them."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = (inputs, *hidden, outputs)
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[..., inputs] to [..., outputs], and what went into the last layer."""
        hidden = values
        for linear in list(self.linears)[:-1]:
            hidden = self.dropout(nn.functional.gelu(linear(hidden)))
        return self.linears[-1](hidden), hidden


class MlpEncoder(nn.Module):
    """Linear layers on a vector: one token."""

    def __init__(self, inputs: int, hidden: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = Layers(inputs, hidden, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> Encoded:
        """[b, c] to [b, 1, d] and [b, d]."""
        pooled, _ = self.layers(values)
        here = torch.ones(values.shape[:1], dtype=torch.bool, device=values.device)[:, None]
        return Encoded(pooled.unsqueeze(1), here if mask is None else mask, pooled)


class InputEncoder(nn.Module):
    """One input: what its values pass through, and what stands for it where it is absent."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        standardise: Standardise | None = None,
        embedding: nn.Embedding | None = None,
        over_time: RecurrentEncoder | None = None,
        film: bool = False,
        frozen: bool = False,
        may_miss: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.film, self.frozen = encoder, film, frozen
        self.standardise, self.embedding, self.over_time = standardise, embedding, over_time
        width: Any = encoder.width if over_time is None else over_time.width
        self.width = int(width)
        self.absent = nn.Parameter(torch.zeros(self.width)) if may_miss else None

    def train(self, mode: bool = True) -> InputEncoder:
        """As every module's; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, values: Tensor, length: Tensor | None = None, present: Tensor | None = None) -> Encoded:
        """Values with their lengths [b] where they have any, and 1 or 0 [b] where the input may be absent.

        Values: [b, 3, h, w] pictures, [b, f, 3, h, w] films, [b, t] token ids, [b, t, c] steps, [b, c] columns.
        """
        here = None if present is None else present > 0.5
        mask = self._mask(values, length, here)
        if self.film:
            found = self._film(values, mask)
        elif values.ndim == 4:
            found = self._encode(values, None)
        else:
            if self.standardise is not None:
                counts = mask if here is None else mask & here[:, None]
                values = self.standardise(values, counts if values.ndim == 3 else counts[:, 0])
            if self.embedding is not None:
                values = self.embedding(values)
            found = self._encode(values, mask)
        if here is None or self.absent is None:
            return found
        pooled = torch.where(here[:, None], found.pooled, self.absent.to(found.pooled.dtype))
        return Encoded(found.tokens, found.mask & here[:, None], pooled)

    def _mask(self, values: Tensor, length: Tensor | None, here: Tensor | None) -> Tensor:
        if length is not None:
            return steps_mask(length, values.shape[1])
        ones = torch.ones(values.shape[:1], dtype=torch.bool, device=values.device) if here is None else here
        return ones[:, None]

    def _encode(self, values: Tensor, mask: Tensor | None) -> Encoded:
        if self.frozen and self.training:
            with torch.no_grad():
                given: Encoded = self.encoder(values, mask)
            return given
        found: Encoded = self.encoder(values, mask)
        return found

    def _film(self, values: Tensor, mask: Tensor) -> Encoded:
        """[b, f, 3, h, w]: the pictures' features are the film's tokens."""
        each = self._encode(values.flatten(0, 1), None).pooled
        tokens = each.view(values.shape[0], values.shape[1], each.shape[-1])
        if self.over_time is None:
            return Encoded(tokens, mask, masked_mean(tokens, mask))
        found: Encoded = self.over_time(tokens, mask)
        return found
