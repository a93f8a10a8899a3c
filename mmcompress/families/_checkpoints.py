"""Reading and writing weights: safetensors alone, every weight accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmcompress.errors import InputError
from mmcompress.families import Family
from mmcompress.families._images import read_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HARMLESS = (".position_ids",)
"""Ends of names that checkpoints may hold, and that follow from the shapes."""


def source_folder(family: Family) -> Path:
    """The folder that a family's ``path``, ``hub`` or ``config`` field names, downloaded where it is a hub id.

    Raises:
        InputError: there is none, or the repository cannot be had.
    """
    if family.hub is not None and family.revision is not None:
        return _download(family.hub, family.revision)
    folder = family.path if family.path is not None else family.config
    if folder is None or not folder.exists():
        raise InputError(f"{folder}: no such checkpoint\n  expected a folder with config.json and model.safetensors")
    if family.path is not None and not folder.is_dir():
        raise InputError(f"{folder}: a checkpoint is a folder with config.json and model.safetensors, this is a file")
    return folder


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
            ignore_patterns=["*/*"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"hub {repository} at {revision}: cannot be downloaded: {reason}") from None
    if not any(Path(folder).glob("*.safetensors")):
        raise InputError(
            f"hub {repository} at {revision}: no safetensors in this revision, and pickled weights are not loaded\n"
            "  name a revision that has them, such as the refs/pr/... of the hub's conversion bot"
        )
    return Path(folder)


def read_weights(folder: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors file, or of the shards that its index lists.

    Raises:
        InputError: no weights, pickled ones alone, a damaged file, a shard that is missing or outside the folder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / name).is_file():
        files = [folder / name]
    elif (folder / INDEX).is_file():
        files = _shards(folder)
    else:
        pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
        if pickled:
            raise InputError(
                f"{folder}: pickled weights alone ({', '.join(pickled[:3])}); they can run code and are not loaded\n"
                f"  convert them with safetensors.torch.save_file to {name}, or name a revision that has safetensors"
            )
        raise InputError(f"{folder}: no weights\n  expected {name} or {INDEX}")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a readable safetensors file: {error}") from None
    return {key: tensor for key, tensor in weights.items() if not key.endswith(_HARMLESS)}


def _shards(folder: Path) -> list[Path]:
    table = read_object(folder / INDEX).get("weight_map")
    if not isinstance(table, dict):
        raise InputError(f"{folder / INDEX}: expected a 'weight_map' of names to files")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{folder / INDEX}: the shard {name!r} is not a file of this folder")
        if not (folder / name).is_file():
            raise InputError(f"{folder / INDEX}: the shard {name} is listed and absent")
    return [folder / name for name in names]


def load_strictly(model: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load every weight in place; the model's precision stays.

    Raises:
        InputError: weights missing, unexpected, of another shape or of no floating point type, the first few by name.
    """
    own = model.state_dict(keep_vars=True)
    loaded = {own[name].data_ptr() for name in weights if name in own}
    missing = [
        name
        for name, tensor in own.items()
        if name not in weights and tensor.data_ptr() not in loaded and not name.endswith(_HARMLESS)
    ]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} is {list(tensor.shape)}, the model has {list(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and own[name].shape != tensor.shape
    ]
    types = [
        f"{name} is {tensor.dtype}"
        for name, tensor in weights.items()
        if not tensor.is_floating_point() and (name not in own or own[name].is_floating_point())
    ]
    problems = [
        f"  {len(names)} {what}: {_first(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("not of a floating point type", types),
        )
        if names
    ]
    if problems:
        hint = "  expected exactly the weights that config.json describes"
        raise InputError("\n".join([f"{where}: the weights do not fit the model", *problems, hint]))
    model.load_state_dict(dict(weights), strict=False)


def _first(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``model.safetensors``; of tensors that share memory (tied parameters) the first name alone."""
    from safetensors.torch import save_file

    seen: set[tuple[int, tuple[int, ...]]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor.detach().to("cpu").contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def copy_files(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that the source folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
