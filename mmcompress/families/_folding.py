"""Pruned models whose configuration can tell what they are: such a folder opens with transformers' ``from_pretrained``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from mmcompress.component import JSON
from mmcompress.errors import InputError
from mmcompress.families._structure import describe_structure

if TYPE_CHECKING:
    from torch import nn

FEED_FORWARD_KEYS = ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
"""How transformers' configurations name the width of a feed-forward block."""
LAYER_KEYS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "num_self_attends_per_block")
WIDTH_KEYS = ("hidden_size", "d_model")
HEAD_KEYS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
Change = dict[tuple[str, ...], int]
"""Numbers of a configuration by their place in it."""


def fold_into_config(
    config: Mapping[str, JSON], model: nn.Module, build: Callable[[dict[str, JSON]], nn.Module]
) -> tuple[dict[str, JSON], dict[str, JSON] | None]:
    """Tell by the configuration what it can tell; gives the new configuration and the structure that is left.

    Where layers went, or where all feed-forward blocks that a number in ``config`` (top level or one section below) makes
    were cut to one width, or the whole width with as many heads as it has room for, the numbers are replaced, so that the
    folder opens with transformers' ``from_pretrained`` too.
    ``build`` makes the model of a configuration (on the meta device); ``config`` names its widths in full (``to_dict``).
    """
    folded: dict[str, JSON] = copy.deepcopy(dict(config))
    reference = build(folded)
    structure = describe_structure(model, reference)
    for stack, path in product((structure or {}).get("layers", {}), _paths(folded, LAYER_KEYS)):
        trial = _changed(folded, {path: len(model.get_submodule(stack))})  # type: ignore[arg-type]
        shorter = _described(model, build, trial)
        if shorter is not None and stack not in (shorter[1] or {}).get("layers", {}):
            folded, (reference, structure) = trial, shorter
    for make in (_widths, _feed_forwards):
        for changes in make(folded, structure, reference):
            if structure is None:
                break
            trial = _changed(folded, changes)
            found = _described(model, build, trial)
            if found is None:
                continue
            made_by_it = _places(describe_structure(found[0], reference))
            if made_by_it and not made_by_it & _places(found[1]):
                folded, (reference, structure) = trial, found
    return folded, structure


def _places(structure: Mapping[str, JSON] | None) -> set[tuple[str, str, str]]:
    """Shapes and attributes that a structure changes."""
    modules = structure["modules"] if structure else {}
    return {(name, kind, key) for name, entry in modules.items() for kind, keys in entry.items() for key in keys}


def _described(
    model: nn.Module, build: Callable[[dict[str, JSON]], nn.Module], config: dict[str, JSON]
) -> tuple[nn.Module, dict[str, JSON] | None] | None:
    """The model of a configuration, and what is left to tell of ``model``; None where the two do not fit."""
    try:
        reference = build(copy.deepcopy(config))
        return reference, describe_structure(model, reference)
    except (InputError, ValueError, IndexError):
        return None


def _widths(config: dict[str, JSON], structure: Mapping[str, JSON] | None, reference: nn.Module) -> Iterator[Change]:
    """The whole width of a section with as many heads as it has room for, alone and with a feed-forward width."""
    for path in _paths(config, WIDTH_KEYS) if structure else ():
        section, width = path[:-1], _get(config, path)
        heads = [(*section, key) for key in HEAD_KEYS if type(_section(config, path).get(key)) is int]
        units = [other for other in _paths(config, FEED_FORWARD_KEYS) if other[:-1] == section]
        for narrower in _candidates(structure or {}, reference, width):
            change: Change = {path: narrower}
            for key in heads:
                size = width // _get(config, key)
                change[key] = max(1, narrower // size)
            yield change
            for unit in units:
                for count in _candidates(structure or {}, reference, _get(config, unit)):
                    yield {**change, unit: count}


def _feed_forwards(
    config: dict[str, JSON], structure: Mapping[str, JSON] | None, reference: nn.Module
) -> Iterator[Change]:
    for path in _paths(config, FEED_FORWARD_KEYS) if structure else ():
        for width in _candidates(structure or {}, reference, _get(config, path)):
            yield {path: width}


def _changed(config: dict[str, JSON], changes: Change) -> dict[str, JSON]:
    trial = copy.deepcopy(config)
    for path, value in changes.items():
        _section(trial, path)[path[-1]] = value
    return trial


def _paths(config: Mapping[str, JSON], keys: Sequence[str]) -> list[tuple[str, ...]]:
    top = [(key,) for key in keys if type(config.get(key)) is int]
    below = [
        (section, key)
        for section, values in config.items()
        if isinstance(values, dict)
        for key in keys
        if type(values.get(key)) is int
    ]
    return [*top, *below]


def _section(config: dict[str, JSON], path: tuple[str, ...]) -> dict[str, JSON]:
    section: dict[str, JSON] = config
    for key in path[:-1]:
        section = section[key]
    return section


def _get(config: dict[str, JSON], path: tuple[str, ...]) -> int:
    return int(_section(config, path)[path[-1]])


def _candidates(structure: Mapping[str, JSON], reference: nn.Module, width: int) -> list[int]:
    """Widths that modules now have where the reference has ``width``."""
    found = set()
    for name, entry in structure["modules"].items():
        module = reference.get_submodule(name)
        for attribute, value in entry.get("attributes", {}).items():
            if getattr(module, attribute) == width and type(value) is int:
                found.add(value)
    return sorted(found, reverse=True)
