"""Sample inputs of a ``fusion`` model, by which it is traced and checked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mmcompress.families._fusion_parts import Conv1d
from mmcompress.families._input_samples import EXAMPLES, Samples, noise, sample_inputs, sample_pictures
from mmcompress.families._inputs import FilmInput, Input, PictureInput, SeriesInput, SoundInput, TextInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._fusion_config import Input as FusionInput
    from mmcompress.families._fusion_modules import FusionModel

_TRACED_STEPS = 37
"""Steps of the samples where strides ask for no more: an odd number, and few."""


def sample_feeds(model: FusionModel) -> Samples:
    """Values like those of the training data, as far as the model knows them; variants with each input absent too."""
    import torch

    settings = model.settings
    # A length that strides make 1 while it is traced would become fixed.
    least = max([_TRACED_STEPS, *(3 * _stride(item) + 1 for item in settings.inputs)])
    present = {f"{item.name}_present": torch.ones(EXAMPLES) for item in settings.inputs} if settings.missing else {}
    samples = sample_inputs(
        settings.inputs,
        lambda item, steps, generator: _values(model, item, steps, generator),
        lambda most: min(most, least),
        present,
    )
    absent = tuple(
        {**samples.inputs, f"{item.name}_present": torch.tensor([0.0, 1.0, 0.0])}
        for item in settings.inputs
        if settings.missing and item.name != settings.tagged
    )
    return replace(samples, variants=(*samples.variants, *absent))


def _stride(item: FusionInput) -> int:
    """Steps of an input per token of its encoder."""
    encoder = item.encoder
    return encoder.stride ** len(encoder.channels) if isinstance(encoder, Conv1d) else 1


def _values(model: FusionModel, item: Input, steps: int, generator: torch.Generator) -> Tensor:
    import torch

    encoder = model.encoder(item.name)
    if isinstance(item, TextInput):
        rows = _vocabulary(model, item)
        return torch.randint(0, rows, (EXAMPLES, steps), generator=generator)
    if isinstance(item, (PictureInput, FilmInput)):
        return sample_pictures(item, steps, generator)
    assert encoder.standardise is not None
    mean, std = encoder.standardise.mean, encoder.standardise.std
    shape = (EXAMPLES, steps, len(mean)) if isinstance(item, (SoundInput, SeriesInput)) else (EXAMPLES, len(mean))
    return (mean + std * noise(generator, *shape)).detach()


def _vocabulary(model: FusionModel, item: Input) -> int:
    encoder = model.encoder(item.name)
    if encoder.embedding is not None:
        return encoder.embedding.num_embeddings
    embeddings: torch.nn.Embedding = encoder.encoder.model.get_input_embeddings()  # type: ignore[union-attr, operator]
    return embeddings.num_embeddings
