"""SigLIP 2's NaFlex models (``Siglip2Model``) as a ``SiglipModel`` with a fixed square grid of patches.

A NaFlex model takes patches of pictures of any shape and resizes its position embeddings to their grid. Devices want
one input size, so the grid is fixed here: its picture is square, and the aspect ratio of pictures is not kept. For a
square picture the embeddings equal those of ``Siglip2Model`` on the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError
from mmcompress.families._checkpoints import read_weights
from mmcompress.families._images import PREPROCESSOR_FILES, read_object

if TYPE_CHECKING:
    from torch import Tensor

    from mmcompress.families._clip_checkpoints import Checkpoint

_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_DEFAULTS = {"num_patches": 256, "patch_size": 16, "num_channels": 3, "hidden_size": 768}
"""Of ``Siglip2VisionConfig``, for configurations that leave them out."""


def read_siglip2(source: Path, config: Mapping[str, Any]) -> Checkpoint:
    """Read a ``Siglip2Model`` folder, converted.

    Raises:
        InputError: weights that are missing, or of shapes that the configuration does not describe.
    """
    from mmcompress.families._clip_checkpoints import Checkpoint

    vision = {**_DEFAULTS, **(config.get("vision_config") or {})}
    processor = _image_processor(source)
    grid = isqrt(int(processor.get("max_num_patches") or vision["num_patches"]))
    weights = convert_weights(read_weights(source), vision, grid, str(source))
    size = grid * int(vision["patch_size"])
    kept = {key: value for key, value in vision.items() if key != "num_patches"}
    new = {
        **config,
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "vision_config": {**kept, "model_type": "siglip_vision_model", "image_size": size},
        "text_config": {**(config.get("text_config") or {}), "model_type": "siglip_text_model"},
    }
    files = {PREPROCESSOR_FILES[0]: _fixed_size(processor, size)}
    return Checkpoint(config=new, weights=weights, files=files)


def convert_weights(
    weights: Mapping[str, Tensor], vision: Mapping[str, Any], grid: int, where: str
) -> dict[str, Tensor]:
    """Weights of a ``Siglip2Model`` as those of a ``SiglipModel`` with ``grid`` x ``grid`` patches."""
    from torch.nn.functional import interpolate

    for name in (_PATCHES, _POSITIONS):
        if name not in weights:
            raise InputError(f"{where}: the weights do not fit the model\n  1 missing: {name}")
    size, channels, width = int(vision["patch_size"]), int(vision["num_channels"]), int(vision["hidden_size"])
    linear, positions = weights[_PATCHES], weights[_POSITIONS]
    side = isqrt(len(positions))
    if tuple(linear.shape) != (width, size * size * channels) or side * side != len(positions):
        raise InputError(
            f"{where}: {_PATCHES} is {list(linear.shape)} and {_POSITIONS} {list(positions.shape)}\n"
            f"  expected [{width}, {size * size * channels}] and a square number of positions"
        )
    result = dict(weights)
    # Flattened patches run over rows, columns, channels; a convolution's kernel over channels, rows, columns.
    result[_PATCHES] = linear.reshape(width, size, size, channels).permute(0, 3, 1, 2).contiguous()
    if grid != side:
        square = positions.float().reshape(side, side, width).permute(2, 0, 1)[None]
        resized = interpolate(square, size=(grid, grid), mode="bilinear", align_corners=False, antialias=True)
        result[_POSITIONS] = resized[0].reshape(width, grid * grid).T.to(positions.dtype).contiguous()
    return result


def _image_processor(source: Path) -> dict[str, Any]:
    for name in PREPROCESSOR_FILES:
        if (source / name).is_file():
            values = read_object(source / name)
            nested: dict[str, Any] = values.get("image_processor", values)
            if "image_mean" in nested or "max_num_patches" in nested or "image_processor_type" in nested:
                return nested
    raise InputError(f"{source}: no settings for pictures\n  expected {' or '.join(PREPROCESSOR_FILES)}")


def _fixed_size(processor: Mapping[str, Any], size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": processor.get("resample", 2),
        "do_rescale": processor.get("do_rescale", True),
        "rescale_factor": processor.get("rescale_factor", 1 / 255),
        "do_normalize": processor.get("do_normalize", True),
        "image_mean": processor.get("image_mean", [0.5, 0.5, 0.5]),
        "image_std": processor.get("image_std", [0.5, 0.5, 0.5]),
    }
