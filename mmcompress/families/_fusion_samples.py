"""Sample inputs of a ``fusion`` model, by which it is traced and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmcompress.families._fusion_config import Film, Input, Picture, Series, Sound, Text
from mmcompress.families._fusion_parts import Conv1d

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._fusion_modules import FusionModel

EXAMPLES = 3
_TRACED_STEPS = 37
"""Steps of the samples where strides ask for no more: an odd number, and few."""


@dataclass(frozen=True)
class Samples:
    """Inputs that differ between examples."""

    inputs: Mapping[str, Tensor]
    varying: Mapping[str, str]
    """The axis that varies besides the batch, the second, by input."""
    variants: tuple[Mapping[str, Tensor], ...] = field(default=())
    """The shortest, the longest, an odd length with padding; each input absent, and all others."""


def sample_feeds(model: FusionModel) -> Samples:
    """Values like those of the training data, as far as the model knows them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    items = model.settings.inputs
    varying = {
        f"{item.name}_values": f"{item.name}_{'sequence' if isinstance(item, Text) else 'steps'}"
        for item in items
        if _longest(item) > 1
    }

    def feeds(steps: Callable[[int], int], padded: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for item in items:
            longest = _longest(item)
            count = steps(longest) if longest else 0
            found[f"{item.name}_values"] = _values(model, item, count, generator)
            if longest:
                lengths = [count, max(1, (count + 1) // 2), max(1, count - 1)] if padded else [count] * EXAMPLES
                found[f"{item.name}_length"] = torch.tensor(lengths)
            if model.settings.missing:
                found[f"{item.name}_present"] = torch.ones(EXAMPLES)
        return found

    # A length that strides make 1 while it is traced would become fixed.
    least = max([_TRACED_STEPS, *(3 * _stride(item) + 1 for item in items)])
    inputs = feeds(lambda longest: min(longest, least), True)
    variants: list[dict[str, Tensor]] = []
    if varying:
        variants += [feeds(lambda longest: 1, False), feeds(lambda longest: longest, False)]
        variants.append(feeds(lambda longest: _odd(longest), True))
    if model.settings.missing:
        for item in items:
            if item.name != model.settings.tagged:
                variants.append({**inputs, f"{item.name}_present": torch.tensor([0.0, 1.0, 0.0])})
    return Samples(inputs, varying, tuple(variants))


def _stride(item: Input) -> int:
    """Steps of an input per token of its encoder."""
    encoder = item.encoder
    return encoder.stride ** len(encoder.channels) if isinstance(encoder, Conv1d) else 1


def _odd(longest: int) -> int:
    half = max(1, longest * 2 // 3)
    return half if half % 2 else half - 1 or 1


def _longest(item: Input) -> int:
    """Most steps, tokens or pictures; 0 for what has none."""
    if isinstance(item, Text):
        return item.max_length
    if isinstance(item, (Sound, Series)):
        return item.steps
    return item.frames if isinstance(item, Film) else 0


def _values(model: FusionModel, item: Input, steps: int, generator: torch.Generator) -> Tensor:
    import torch

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    encoder = model.encoder(item.name)
    if isinstance(item, Text):
        rows = _vocabulary(model, item)
        return torch.randint(0, rows, (EXAMPLES, steps), generator=generator)
    if isinstance(item, (Picture, Film)):
        size = item.settings.output_size
        assert size is not None
        each = (EXAMPLES, 3, *size) if isinstance(item, Picture) else (EXAMPLES, steps, 3, *size)
        # Pictures that differ in light and contrast too, not in their noise alone.
        shape = (*each[:-2], 1, 1)
        return noise(*shape) + noise(*each) * noise(*shape)
    assert encoder.standardise is not None
    mean, std = encoder.standardise.mean, encoder.standardise.std
    shape = (EXAMPLES, steps, len(mean)) if isinstance(item, (Sound, Series)) else (EXAMPLES, len(mean))
    return (mean + std * noise(*shape)).detach()


def _vocabulary(model: FusionModel, item: Text) -> int:
    encoder = model.encoder(item.name)
    if encoder.embedding is not None:
        return encoder.embedding.num_embeddings
    embeddings: torch.nn.Embedding = encoder.encoder.model.get_input_embeddings()  # type: ignore[union-attr, operator]
    return embeddings.num_embeddings
