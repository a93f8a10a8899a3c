"""Torch modules around transformers' Perceiver: sounds with classes, and one forward for texts, pictures and sounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PerceiverConfig, PerceiverModel
from transformers.models.perceiver.modeling_perceiver import (
    PerceiverAudioPreprocessor,
    PerceiverClassificationDecoder,
    PerceiverPreTrainedModel,
)

AUDIO_BANDS = 192
"""Frequencies of a sound's positions, as in transformers' ``PerceiverForMultimodalAutoencoding``."""


class PerceiverForAudioClassification(PerceiverPreTrainedModel):  # type: ignore[no-untyped-call]
    """transformers has no Perceiver that classifies sounds; this one is made of its parts, as its picture classifiers are.

    Patches of ``samples_per_patch`` samples with Fourier features of their places, ``num_frames *
    audio_samples_per_frame`` samples in all, are read by the encoder; the decoder of all classifiers asks the latents.
    """

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__(config)
        samples = config.num_frames * config.audio_samples_per_frame
        positions = {
            "num_bands": AUDIO_BANDS,
            "max_resolution": (samples,),
            "sine_only": False,
            "concat_pos": True,
        }
        self.num_labels = config.num_labels
        decoder: Any = PerceiverClassificationDecoder
        self.perceiver = PerceiverModel(
            config,
            input_preprocessor=PerceiverAudioPreprocessor(
                config,
                position_encoding_type="fourier",
                fourier_position_encoding_kwargs=positions,
                samples_per_patch=config.samples_per_patch,
            ),
            decoder=decoder(
                config,
                num_channels=config.d_latents,
                trainable_position_encoding_kwargs={"num_channels": config.d_latents, "index_dims": 1},
                use_query_residual=True,
            ),
        )
        self.post_init()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class States:
    """What a forward pass gives."""

    logits: Tensor
    """[b, c]."""
    hidden: tuple[Tensor, ...]
    """The latents after each layer, blocks that run several times as often as they run: [b, l, d] each."""
    attentions: tuple[Tensor, ...]
    """Of each of these layers, [b, heads, l, l]; none where they are not asked for."""


def classify(model: Any, inputs: dict[str, Tensor], attentions: bool = False) -> States:
    """Texts (``input_ids``, ``attention_mask``), pictures (``pixel_values``) or sounds (``input_values``,
    ``sample_counts``) to classes, as the model's own forward.

    Features of positions are made once and for no batch, so that a graph holds them as constants.
    """
    perceiver = model.perceiver
    features, mask = _features(perceiver.input_preprocessor, inputs)
    additive = None
    if mask is not None:
        additive = (1.0 - mask[:, None, None, :].to(features.dtype)) * torch.finfo(features.dtype).min
    encoder = perceiver.encoder
    latents = perceiver.embeddings(batch_size=features.shape[0])
    latents = encoder.cross_attention(latents, inputs=features, inputs_mask=additive)[0]
    hidden: list[Tensor] = []
    maps: list[Tensor] = []
    for _ in range(encoder.config.num_blocks):
        for layer in encoder.self_attends:
            latents, *rest = layer(latents, output_attentions=attentions)
            hidden.append(latents)
            maps += rest
    decoded = perceiver.decoder(perceiver.decoder.decoder_query(features), z=latents)
    return States(decoded.logits, tuple(hidden), tuple(maps))


def _features(preprocessor: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What the latents read, [b, n, d], and which of it counts, [b, n]."""
    if "input_ids" in inputs:
        return preprocessor(inputs["input_ids"])[0], inputs["attention_mask"]
    if "input_values" in inputs:
        size = preprocessor.samples_per_patch
        values = inputs["input_values"]
        patches = values.reshape(values.shape[0], -1, size)
        first = torch.arange(patches.shape[1], device=values.device) * size
        return _placed(preprocessor, patches, (patches.shape[1],)), first < inputs["sample_counts"][:, None]
    pixels = inputs["pixel_values"]
    if preprocessor.prep_type == "conv":
        pixels = preprocessor.convnet(pixels)
    elif preprocessor.prep_type == "conv1x1":
        pixels = preprocessor.convnet_1x1(pixels)
    places = (pixels.shape[2], pixels.shape[3])
    return _placed(preprocessor, pixels.flatten(2).transpose(1, 2), places), None


def _placed(preprocessor: Any, values: Tensor, places: tuple[int, ...]) -> Tensor:
    """Values [b, n, c] beside the features of their places."""
    embeddings = preprocessor.position_embeddings
    if preprocessor.position_encoding_type == "trainable":
        positions = embeddings(1)
    else:
        positions = embeddings(list(places), 1, device=values.device, dtype=values.dtype)
    positions = preprocessor.positions_projection(positions)
    return torch.cat([values, positions.expand(values.shape[0], -1, -1)], dim=-1)


class Classifier(torch.nn.Module):
    """A model's inputs to its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """``logits`` [b, c]; see :func:`classify`."""
        return {"logits": classify(self.model, inputs).logits}
