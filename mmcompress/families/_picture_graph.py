"""Pictures as bytes into the graph: rescaling, normalising and the order of the axes are the engine's work.

Resizing, cropping and decoding stay Pillow's. Its filters widen with the reduction and round to bytes after each axis;
ONNX's ``Resize`` rounds nowhere and its antialiasing is an option that few runtimes have, so that a graph which resized
would see other pictures than the model was trained on. A batch of pictures of many sizes has no one shape either.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmcompress.families import Graph
from mmcompress.families._images import ImageEncoder, ImageSettings

if TYPE_CHECKING:
    from torch import Tensor

PIXELS = "pixels"
"""The input of such a graph: uint8 [batch, height, width, 3] in RGB at the model's size."""


def scale_and_shift(settings: ImageSettings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a byte is multiplied by, and what is added then, per channel: float32 [3] each, rounded once from float64."""
    rescale = 1.0 if settings.rescale is None else settings.rescale
    if settings.mean is None or settings.std is None:
        return np.full(3, rescale, np.float32), np.zeros(3, np.float32)
    mean, std = np.array(settings.mean, np.float64), np.array(settings.std, np.float64)
    return (rescale / std).astype(np.float32), (-mean / std).astype(np.float32)


def normalised(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """uint8 [b, h, w, 3] to float32 [b, 3, h, w], bit for bit as :meth:`ImageEncoder.expand` does it."""
    import torch

    tables = torch.from_numpy(ImageEncoder(settings).tables).to(pixels.device)
    return torch.stack([table[pixels[..., channel].long()] for channel, table in enumerate(tables)], dim=1)


def takes_bytes(graph: Graph, settings: ImageSettings) -> Graph:
    """A graph of ``pixel_values`` as one of :data:`PIXELS`, in float as near to it as float32 is to float64."""
    import torch

    from mmcompress.families._picture_graph_modules import BytePictures

    scale, shift = (torch.from_numpy(value) for value in scale_and_shift(settings))
    batch, channels, height, width = graph.inputs["pixel_values"].shape
    noise = torch.Generator().manual_seed(0)
    shape = (batch, height, width, channels)
    return dataclasses.replace(
        graph,
        module=BytePictures(graph.module, scale, shift).eval(),
        inputs={PIXELS: torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)},
        dynamic={PIXELS: {0: "batch"}},
    )
