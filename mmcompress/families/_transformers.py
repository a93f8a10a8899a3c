"""Model folders of transformers' models, for families that hold one of its classes each: read, build, load, save."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.component import nearest
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family
from mmcompress.families._checkpoints import copy_files, load_strictly, read_weights, source_folder, write_weights
from mmcompress.families._folding import fold_into_config
from mmcompress.families._images import read_object
from mmcompress.families._structure import (
    STRUCTURE,
    apply_structure,
    describe_structure,
    read_structure,
    write_structure,
)
from mmcompress.store import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator


ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Architecture:
    """Which classes of transformers a family's model folders hold, and the files beside the weights."""

    family: str
    classes: Mapping[str, str | tuple[str, ...]]
    """``model_type`` of config.json to the name of the class: ``{"whisper": "WhisperForConditionalGeneration"}``.

    Of several, config.json's ``architectures`` names one. ``module:Class`` is one of ours."""
    files: tuple[str, ...]
    """Processing files (tokenizer, pictures, sounds) that travel with a model, as far as a folder has them."""
    check: Callable[[Path, Any], None] = lambda folder, model: None
    """Raises InputError where processing files in the folder do not fit the model."""
    new: tuple[str, ...] = ()
    """Prefixes of weights that may be missing in a checkpoint, and start at random (a head for a new task, by name)."""
    fresh: tuple[str, ...] = ()
    """Prefixes of weights that start at random whatever a checkpoint holds: a new head of as many classes as the old."""
    sdpa: bool = True
    """Whether the class knows SDPA; where it does not, attention is always computed eagerly."""
    dropped: tuple[str, ...] = ()
    """Prefixes of weights that a checkpoint may hold and the class does not (the head of another task)."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Patterns of names in a checkpoint to what they are called here."""


# --- writing -------------------------------------------------------------------------------------------------------


def write_model(
    family: Family, architecture: Architecture, folder: Path, seed: int, changes: Mapping[str, Any] | None = None
) -> None:
    """Write the checkpoint that a component names as a model folder; ``changes`` take the place of keys of its config.

    Raises:
        InputError: no weights, weights missing or unexpected, pickled weights, another kind of model, processing files
            that do not fit the model.
    """
    source = source_folder(family)
    base, config_file = (source.parent, source) if source.is_file() else (source, source / "config.json")
    if not config_file.is_file():
        raise InputError(f"{source}: no config.json\n  expected the folder of a checkpoint, as transformers writes it")
    config = {**read_object(config_file), **(changes or {})}
    check_model_type(config, str(config_file), architecture)
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(base, folder, (STRUCTURE, *architecture.files))
    write_json(folder / "config.json", config)
    if family.config is not None:
        (folder / STRUCTURE).unlink(missing_ok=True)
        model = build(folder, architecture, seed=seed)
    elif (folder / STRUCTURE).is_file():
        model = load_model(source, architecture)
    else:
        model = _pretrained(source, config, architecture, seed)
        write_json(folder / "config.json", json.loads(model.config.to_json_string(use_diff=False)))
    architecture.check(folder, model)
    write_weights(model.state_dict(), folder)


def check_model_type(config: Mapping[str, Any], where: str, architecture: Architecture) -> None:
    """Raise InputError when the family does not know the kind of model, with the family that does."""
    kind = str(config.get("model_type"))
    if kind in architecture.classes:
        return
    hint = nearest(kind, architecture.classes)
    raise InputError(
        f"{where}: the {architecture.family} family knows no model_type {kind!r}{hint}\n"
        f"  known: {', '.join(architecture.classes)}"
    )


def _pretrained(source: Path, config: Mapping[str, Any], architecture: Architecture, seed: int) -> Any:
    """The checkpoint by transformers' own loading, which knows the names of older versions; nothing may be left over."""
    import torch

    weights = [*source.glob("*.safetensors")]
    if not weights:
        read_weights(source)  # tells what is there instead
    model_class = _class_of(config, architecture, str(source))
    parsed = _parsed_config(model_class, config, str(source))
    with offline(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = model_class.from_pretrained(
                source,
                config=parsed,
                use_safetensors=True,
                dtype="auto",
                output_loading_info=True,
                local_files_only=True,
                key_mapping=dict(architecture.renamed),
                ignore_mismatched_sizes=bool(architecture.new),
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{source}: transformers cannot load it: {str(error).strip().splitlines()[0]}") from None
    missing = [name for name in info["missing_keys"] if not name.startswith(architecture.new or ("\0",))]
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(architecture.dropped or ("\0",))]
    # What transformers leaves as it was made: a head of as many classes as the recipe asks for.
    mismatched = [name for name, *_ in info["mismatched_keys"] if not name.startswith(architecture.new or ("\0",))]
    problems = [
        f"  {len(names)} {what}: {', '.join(sorted(map(str, names))[:4])}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        hint = "  expected exactly the weights that config.json describes"
        raise InputError("\n".join([f"{source}: the weights do not fit the model", *problems, hint]))
    if architecture.fresh:
        untrained = build_from_config(config, str(source), architecture, seed=seed).state_dict()
        fresh = {name: value for name, value in untrained.items() if name.startswith(architecture.fresh)}
        model.load_state_dict(fresh, strict=False)
    return model.eval()


@contextmanager
def offline() -> Iterator[None]:
    """Keep transformers from asking its conversion service, and from printing what we check ourselves."""
    from transformers.utils import logging as quiet

    logging: Any = quiet
    level, before = logging.get_verbosity(), os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if before is None:
            del os.environ["DISABLE_SAFETENSORS_CONVERSION"]
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = before


# --- loading and saving --------------------------------------------------------------------------------------------


def _class_of(config: Mapping[str, Any], architecture: Architecture, where: str) -> Any:
    name = architecture.classes[str(config["model_type"])]
    if not isinstance(name, str):
        name = _named_of(name, config.get("architectures") or (), where)
    module, _, name = name.rpartition(":")
    return getattr(import_module(module or "transformers"), name)


def _named_of(known: Sequence[str], named: Sequence[str], where: str) -> str:
    """The one of the known classes that a configuration names.

    Raises:
        InputError: it names none, or several.
    """
    found = [name for name in known if name.rpartition(":")[2] in named]
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{where}: architectures names {', '.join(named) or 'nothing'}\n"
        f"  expected {' or '.join(name.rpartition(':')[2] for name in known)}"
    )


def _parsed_config(model_class: Any, config: Mapping[str, Any], where: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return model_class.config_class.from_dict(dict(config))
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: transformers refuses this configuration: {error}") from None


def build_from_config(
    config: Mapping[str, Any], where: str, architecture: Architecture, attention: str = "sdpa", seed: int = 0
) -> Any:
    """The untrained model of a configuration, in FP32 and evaluation mode; leaves torch's random state alone.

    Raises:
        InputError: a configuration that transformers refuses, or another kind of model.
        UsageError: an unknown kind of attention.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError

    check_model_type(config, where, architecture)
    if attention not in ATTENTION:
        raise UsageError(f"unknown attention {attention!r}; known: {', '.join(ATTENTION)}")
    model_class = _class_of(config, architecture, where)
    parsed = _parsed_config(model_class, config, where)
    attention = attention if architecture.sdpa else "eager"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_class._from_config(parsed, attn_implementation=attention, dtype=torch.float32)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: transformers refuses this configuration: {error}") from None
    return model.eval()


def build(folder: Path, architecture: Architecture, attention: str = "sdpa", seed: int = 0) -> Any:
    """The untrained model of a folder's config.json and structure.json."""
    config = read_object(folder / "config.json")
    model = build_from_config(config, str(folder / "config.json"), architecture, attention, seed)
    structure = read_structure(folder)
    if structure is not None:
        apply_structure(model, structure, folder / STRUCTURE)
    return model


def load_model(folder: Path, architecture: Architecture, attention: str = "sdpa") -> Any:
    """The model of a model folder, in FP32 and evaluation mode.

    Raises:
        InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
    """
    model = build(folder, architecture, attention)
    load_strictly(model, read_weights(folder), str(folder))
    return model


def save_model(model: Any, source: Path, folder: Path, architecture: Architecture) -> None:
    """Write a model that came from the model folder ``source``: its files, the weights in FP32, what pruning changed."""
    import torch

    def untrained(config: dict[str, Any]) -> Any:
        with torch.device("meta"):
            return build_from_config(config, str(source / "config.json"), architecture)

    copy_files(source, folder, architecture.files)
    config = read_object(source / "config.json")
    structure = describe_structure(model, untrained(config))
    if structure is not None:
        full = json.loads(untrained(config).config.to_json_string(use_diff=False))
        config, structure = fold_into_config(full, model, untrained)
    write_json(folder / "config.json", config)
    write_structure(folder, structure)
    write_weights(model.state_dict(), folder)
