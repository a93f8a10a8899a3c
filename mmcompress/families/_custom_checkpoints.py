"""Model folders of the ``custom`` family, and the installed modules behind them."""

from __future__ import annotations

import copy
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.component import JSON, digest_path, nearest
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family, FromTeacher
from mmcompress.families._checkpoints import copy_files, load_strictly, read_weights, source_folder, write_weights
from mmcompress.families._custom_config import parse_config, read_config
from mmcompress.families._images import read_object
from mmcompress.families._structure import (
    STRUCTURE,
    apply_structure,
    describe_structure,
    read_structure,
    write_structure,
)
from mmcompress.families._texts import TOKENIZER_FILES, load_tokenizer, read_text_settings
from mmcompress.store import write_json

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.families._custom_modules import CustomModel

GROUP = "mmcompress.models"
"""Entry points of installed packages that build a module."""


# --- installed modules ---------------------------------------------------------------------------------------------


def installed_identity() -> JSON:
    """What keys take from the modules that are installed: their packages' versions and their files, by name."""
    return {
        entry.name: {
            "value": entry.value,
            "version": entry.dist.version if entry.dist is not None else "unknown",
            "source": _source_digest(entry),
        }
        for entry in entry_points(group=GROUP)
    }


def _source_digest(entry: EntryPoint) -> str:
    try:
        spec = find_spec(entry.module)
    except ModuleNotFoundError:
        return "absent"
    return digest_path(Path(spec.origin)) if spec is not None and spec.origin is not None else "absent"


def build_inner(config: dict[str, Any], where: str, seed: int) -> nn.Module:
    """The module that a configuration names, with random weights; leaves torch's random state alone.

    Raises:
        InputError: nothing of that name is installed, it cannot be imported, or it builds no module.
    """
    import torch

    name = str(config["mmcompress_model"])
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise InputError(
            f"{where}: no installed package has the model {name!r}{nearest(name, found)}\n"
            f"  installed: {known}\n  Install the package that has it, as an entry point of the group {GROUP}."
        )
    try:
        build: Any = found[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{where}: the model {name!r} ({found[name].value}) cannot be imported: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(copy.deepcopy(config))
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{where}: {found[name].value} builds a {type(module).__name__}; expected a torch.nn.Module")
    return module.float().eval()


# --- model folders -------------------------------------------------------------------------------------------------


def write_checkpoint(family: Family, folder: Path, seed: int) -> None:
    """Write the checkpoint that a component names; see :meth:`mmcompress.families.custom.Custom.write`."""
    source = source_folder(family)
    base, file = (source.parent, source) if source.is_file() else (source, source / "config.json")
    if not file.is_file():
        raise InputError(f"{source}: no config.json\n  expected that of a custom model")
    values = read_object(file)
    parse_config(values, str(file))
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(base, folder, TOKENIZER_FILES)
    write_json(folder / "config.json", values)
    vocabulary_of(folder)
    if family.config is None:
        copy_files(base, folder, (STRUCTURE,))
        inner = load_model(base).inner
    else:
        inner = build_inner(values, str(file), seed)
    write_weights(inner.state_dict(), folder)


def load_model(folder: Path) -> CustomModel:
    """The module of a model folder, in FP32 and evaluation mode; see :meth:`mmcompress.families.custom.Custom.load`."""
    from mmcompress.families._custom_modules import CustomModel

    config = read_config(folder)
    inner = build_inner(read_object(folder / "config.json"), str(folder / "config.json"), seed=0)
    structure = read_structure(folder)
    if structure is not None:
        apply_structure(inner, structure, folder / STRUCTURE)
    load_strictly(inner, read_weights(folder), str(folder))
    return CustomModel(inner, config, vocabulary_of(folder)).eval()


def save_model(model: CustomModel, source: Path, folder: Path) -> None:
    """Write a model that came from ``source`` and was trained or pruned since."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(source, folder, ("config.json", *TOKENIZER_FILES))
    reference = build_inner(read_object(source / "config.json"), str(source / "config.json"), seed=0)
    write_structure(folder, describe_structure(model.inner, reference))
    write_weights(model.inner.float().state_dict(), folder)


def write_student(teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
    """A student of the teacher's own shape; see :meth:`mmcompress.families.custom.Custom.student`."""
    if cut.named():
        raise UsageError(
            f"a custom model has no {', '.join(cut.named())} to cut\n"
            "  Give the student a smaller configuration: student: {custom: {config: smaller/config.json}}, or prune."
        )
    model = load_model(teacher)
    if cut.init == "random":
        model.inner = build_inner(read_object(teacher / "config.json"), str(teacher / "config.json"), seed)
    save_model(model, teacher, folder)


def vocabulary_of(folder: Path) -> int:
    """Tokens of the tokenizer; 0 where no input is a text.

    Raises:
        InputError: a text without a tokenizer.
    """
    texts = [item for item in read_config(folder).inputs if item.kind == "text"]
    for item in texts:
        read_text_settings(folder, item.max_length)
    return load_tokenizer(folder).get_vocab_size() if texts else 0
