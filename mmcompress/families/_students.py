"""Students cut from a teacher of transformers' models: fewer layers, narrower feed-forward blocks, its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._checkpoints import copy_files, load_strictly, write_weights
from mmcompress.families._structure import STRUCTURE
from mmcompress.families._transformers import Architecture, build_from_config, load_model
from mmcompress.store import write_json

if TYPE_CHECKING:
    from torch import Tensor


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
        if not _has(model, tower.layers):
            continue  # a family of several architectures names the stacks of all
        kept = choose_layers(tower.name, cut.layers(tower.name), len(model.get_submodule(tower.layers)))
        units = cut.size(tower.name, "feed_forward")
        if cut.layers(tower.name) is not None or units is not None:
            named += tower.stacks
        if units is not None:
            cut_units(state, tower, units, config)
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


def _has(model: Any, name: str) -> bool:
    return any(found == name for found, _ in model.named_modules())


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


def cut_units(state: dict[str, Tensor], tower: Tower, units: int, config: dict[str, Any]) -> None:
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
