"""A checkpoint that is an adapter (LoRA and its kin, by PEFT) on another one: merged into it when it is read."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mmcompress.component import JSON, digest_path
from mmcompress.errors import InputError
from mmcompress.families import Family
from mmcompress.families._images import read_object

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OLD_NAME = "`is_gradient_checkpointing` is deprecated"
"""What transformers says of how peft 0.21 asks it."""


def write_model(family: Family, folder: Path, work: Path, seed: int) -> None:
    """:meth:`Family.write`, also for a folder that holds an adapter alone: the model it belongs to with the adapter merged.

    Args:
        family: names the checkpoint.
        folder: where the model folder is written.
        work: a folder of its own for what lies between.
        seed: for random weights.

    Raises:
        InputError: as :meth:`Family.write`; an adapter without safetensors, or whose base is not there.
    """
    if not is_adapter(family):
        family.write(folder, seed)
        return
    assert family.path is not None
    base = base_of(family)
    plain = work / "base"
    shutil.rmtree(plain, ignore_errors=True)
    plain.mkdir(parents=True)
    base.write(plain, seed)
    model = base.load(plain)
    base.save(_merged(model, family.path), plain, folder)


def is_adapter(family: Family) -> bool:
    """Whether a family's path is the folder of an adapter."""
    return family.path is not None and (family.path / CONFIG).is_file()


def base_of(family: Family) -> Family:
    """The checkpoint that an adapter belongs to: a folder, by its path from the adapter's, or a hub id with a revision.

    Raises:
        InputError: the adapter names none, or a folder that is not there, or a hub id without a revision.
    """
    assert family.path is not None
    settings = read_object(family.path / CONFIG)
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    where = family.path / CONFIG
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{where}: base_model_name_or_path is missing\n  expected the model that the adapter belongs to"
        )
    local = family.path / Path(name).expanduser()
    if local.is_dir():
        return family.model_copy(update={"path": local})
    if isinstance(revision, str) and revision:
        return family.model_copy(update={"path": None, "hub": name, "revision": revision})
    raise InputError(
        f"{where}: base_model_name_or_path {name!r} is no folder, and as a hub id it has no revision\n"
        "  expected a folder, from the adapter's own, or a hub id with a `revision` in the same file"
    )


def base_identity(family: Family) -> JSON:
    """What an artifact's key takes from the model below an adapter; nothing where there is no adapter."""
    if not is_adapter(family):
        return None
    base = base_of(family)
    return digest_path(base.path) if base.path is not None else [base.hub, base.revision]


def _merged(model: torch.nn.Module, adapter: Path) -> torch.nn.Module:
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            f"{adapter}: an adapter, which peft merges into its model; peft is not installed\n"
            "  pip install 'mmcompress[lora]', or merge it before (merge_and_unload) and name the merged folder."
        )
    if not (adapter / WEIGHTS).is_file():
        raise InputError(f"{adapter}: {WEIGHTS} is missing; pickled adapters can run code and are not loaded")
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", OLD_NAME, FutureWarning)
            merged: torch.nn.Module = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{adapter}: the adapter does not fit its model: {error}") from None
    return merged
