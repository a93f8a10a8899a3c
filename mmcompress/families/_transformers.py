"""Model folders of transformers' models, for families that hold one of its classes each: read, build, load, save, cut."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.component import nearest
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family, FromTeacher
from mmcompress.families._checkpoints import copy_files, load_strictly, read_weights, source_folder, write_weights
from mmcompress.families._images import read_object
from mmcompress.families._structure import (
    STRUCTURE,
    apply_structure,
    describe_structure,
    fold_into_config,
    read_structure,
    write_structure,
)
from mmcompress.store import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Architecture:
    """Which classes of transformers a family's model folders hold, and the files beside the weights."""

    family: str
    classes: Mapping[str, str]
    """``model_type`` of config.json to the name of the class: ``{"whisper": "WhisperForConditionalGeneration"}``."""
    files: tuple[str, ...]
    """Processing files (tokenizer, pictures, sounds) that travel with a model, as far as a folder has them."""
    check: Callable[[Path, Any], None] = lambda folder, model: None
    """Raises InputError where processing files in the folder do not fit the model."""
    new: tuple[str, ...] = ()
    """Prefixes of weights that may be missing in a checkpoint, and start at random (a head for a new task, by name)."""
    sdpa: bool = True
    """Whether the class knows SDPA; where it does not, attention is always computed eagerly."""
    dropped: tuple[str, ...] = ()
    """Prefixes of weights that a checkpoint may hold and the class does not (the head of another task)."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Patterns of names in a checkpoint to what they are called here."""
    attention: tuple[str, ...] = ATTENTION
    """Kinds of attention that the class computes; where it is one alone, that one is taken whatever is asked for."""


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
    model_class = _class_of(config, architecture)
    parsed = _parsed_config(model_class, config, str(source))
    with _offline(), torch.random.fork_rng(devices=[]):
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
    return model.eval()


@contextmanager
def _offline() -> Iterator[None]:
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


def _class_of(config: Mapping[str, Any], architecture: Architecture) -> Any:
    import transformers

    return getattr(transformers, architecture.classes[str(config["model_type"])])


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
    if len(architecture.attention) == 1:
        attention = architecture.attention[0]
    model_class = _class_of(config, architecture)
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


# --- students ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tower:
    """A stack of layers that a student may have fewer of, or narrower feed-forward blocks in."""

    name: str
    """As recipes name it: ``encoder`` for ``encoder_layers``."""
    layers: str
    """The module list, by its dotted name: ``model.encoder.layers``."""
    count: tuple[str, ...]
    """The key of the configuration that counts the layers: ``("text_config", "num_hidden_layers")``."""
    units: tuple[str, ...] = ()
    """The key of the feed-forward width; without one it cannot be cut."""
    up: str = "fc1"
    """The feed-forward block's first linear layer, below a layer."""
    down: str = "fc2"
    """Its second."""
    alike: tuple[str, ...] = ()
    """Further module lists that the same keys of the configuration describe, and that are cut alike."""

    @property
    def stacks(self) -> tuple[str, ...]:
        """All its module lists."""
        return (self.layers, *self.alike)


def cuts_of(towers: Iterable[Tower]) -> frozenset[str]:
    """Names of the cuts that towers allow."""
    return frozenset(
        f"{tower.name}_{what}" for tower in towers for what in ("layers", *(["feed_forward"] if tower.units else []))
    )


def write_student(
    teacher: Path, cut: FromTeacher, folder: Path, seed: int, architecture: Architecture, towers: Sequence[Tower]
) -> None:
    """Cut a student from an unpruned teacher and write it as a model folder; it opens with ``from_pretrained``.

    Layers are chosen evenly spaced, the first and the last included; feed-forward units are those of the largest norm.
    With ``init: random`` the towers that are named get new weights, or the whole model where none is named.

    Raises:
        UsageError: a cut that the teacher does not allow, with what it allows.
    """
    if cut.init not in ("inherit", "random"):
        raise UsageError(f"init: {cut.init!r} is unknown\n  expected inherit (the teacher's weights) or random")
    if (teacher / STRUCTURE).is_file():
        raise UsageError(
            f"{teacher}: a student cannot be cut from a pruned model, whose layers differ in width\n"
            "  cut it from the model before pruning, and prune the student"
        )
    model = load_model(teacher, architecture)
    config = json.loads(model.config.to_json_string(use_diff=False))
    state: dict[str, Tensor] = dict(model.state_dict())
    named: list[str] = []
    for tower in towers:
        kept = choose_layers(tower.name, cut.layers(tower.name), len(model.get_submodule(tower.layers)))
        units = cut.size(tower.name, "feed_forward")
        if cut.layers(tower.name) is not None or units is not None:
            named += tower.stacks
        if units is not None:
            _cut_units(state, tower, units, config)
        for stack in tower.stacks:
            state = renumber(state, stack, kept)
        _set(config, tower.count, len(kept))
    student = build_from_config(config, str(teacher / "config.json"), architecture, seed=seed)
    if cut.init == "random":
        fresh = dict(student.state_dict())
        starts = tuple(f"{name}." for name in named)
        state = {name: fresh[name] if not starts or name.startswith(starts) else state[name] for name in fresh}
    load_strictly(student, state, f"student of {teacher}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    copy_files(teacher, folder, architecture.files)
    write_weights(student.state_dict(), folder)


def choose_layers(tower: str, asked: int | Sequence[int] | None, have: int) -> tuple[int, ...]:
    """Indices of the layers that stay: all, evenly spaced ones, or those named.

    Raises:
        UsageError: more than there are, or indices that are none of theirs.
    """
    if asked is None:
        return tuple(range(have))
    if isinstance(asked, int):
        if not 1 <= asked <= have:
            raise UsageError(f"{tower}_layers: {asked} is not possible: the teacher has {have}\n  expected 1 to {have}")
        return evenly_spaced(have, asked)
    chosen = tuple(asked)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= have:
        raise UsageError(
            f"{tower}_layers: {list(chosen)} is not possible: the teacher has {have} layers\n"
            f"  expected indices from 0 to {have - 1} in rising order, each once"
        )
    return chosen


def evenly_spaced(have: int, keep: int) -> tuple[int, ...]:
    """``keep`` of ``have`` layers, the first and the last included; of one, the first, which knows its input."""
    if keep == 1:
        return (0,)
    return tuple(round(index * (have - 1) / (keep - 1)) for index in range(keep))


def renumber(state: Mapping[str, Tensor], layers: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """Weights with the kept layers of a stack alone, under their new numbers."""
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    result = {}
    for name, tensor in state.items():
        place = pattern.match(name)
        if place is None:
            result[name] = tensor
        elif int(place[1]) in kept:
            result[f"{layers}.{kept.index(int(place[1]))}.{name[place.end() :]}"] = tensor
    return result


def _cut_units(state: dict[str, Tensor], tower: Tower, units: int, config: dict[str, Any]) -> None:
    """Keep the feed-forward units of the largest norm in every layer of a tower, in place."""
    if not tower.units:
        raise UsageError(f"{tower.name}_feed_forward cannot be cut in this family")
    layers = {m[0] for s in tower.stacks for name in state if (m := re.match(rf"{re.escape(s)}\.\d+\.", name))}
    for layer in layers:
        up, down = (f"{layer}{part}" for part in (tower.up, tower.down))
        have = len(state[f"{up}.weight"])
        if not 1 <= units <= have:
            raise UsageError(f"{tower.name}_feed_forward: {units} is not possible\n  expected 1 to {have}")
        norms = state[f"{up}.weight"].double().square().sum(1) * state[f"{down}.weight"].double().square().sum(0)
        kept = norms.topk(units).indices.sort().values
        state[f"{up}.weight"] = state[f"{up}.weight"][kept].contiguous()
        if f"{up}.bias" in state:
            state[f"{up}.bias"] = state[f"{up}.bias"][kept].contiguous()
        state[f"{down}.weight"] = state[f"{down}.weight"][:, kept].contiguous()
    _set(config, tower.units, units)


def _set(config: dict[str, Any], path: Sequence[str], value: int) -> None:
    section: dict[str, Any] = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
