"""structure.json: how a pruned model differs from the one that its config.json builds. Data only.

::

    {
      "format": 1,
      "modules": {
        "vision_model.encoder.layers.0.self_attn": {"attributes": {"num_heads": 3}},
        "vision_model.encoder.layers.0.self_attn.q_proj": {
          "shapes": {"weight": [48, 96], "bias": [48]}, "attributes": {"out_features": 48}
        }
      },
      "tied": [["decoder.weight", "embeddings.weight"]]
    }

Shapes are those of a module's own parameters and buffers; pruning narrows, so none grows. Attributes are its numbers (or
tuples of whole numbers). ``tied`` names all parameters that are one and the same tensor. A model is rebuilt in three
steps: built from its config.json, given this structure, loaded strictly.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.component import JSON
from mmcompress.errors import InputError
from mmcompress.families._images import read_object
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

STRUCTURE = "structure.json"
README = "README.md"
FORMAT = 1
PLACES = ("layer_idx", "layer_num")
"""What modules call the number of their layer."""
KEPT = "kept_layers"
"""The attribute of a module list that names the layers it kept, by their index before."""


def describe_structure(model: nn.Module, reference: nn.Module) -> dict[str, JSON] | None:
    """What :func:`apply_structure` has to change of ``reference`` to get the modules of ``model``; None for nothing.

    ``reference`` is freshly built from the same configuration; the meta device is enough.

    Raises:
        ValueError: the two do not consist of the same modules and parameters, so that shapes alone cannot tell them apart.
    """
    layers = _kept_layers(model, reference)
    if layers:
        reference = copy.deepcopy(reference)
        for stack, kept in layers.items():
            drop_layers(reference, stack, kept)
    ours, theirs = dict(model.named_modules()), dict(reference.named_modules())
    if ours.keys() != theirs.keys():
        raise ValueError(f"modules of one model alone: {_some(ours.keys() ^ theirs.keys())}")
    modules = {}
    for name, module in ours.items():
        entry = _changes(name, module, theirs[name])
        if entry:
            modules[name] = entry
    tied = _tied(model)
    if not modules and not layers and tied == _tied(reference):
        return None
    return {"format": FORMAT, "modules": modules, "tied": tied, **({"layers": layers} if layers else {})}


def apply_structure(model: nn.Module, structure: JSON, origin: str | Path = STRUCTURE) -> None:
    """Give a freshly built model the shapes, attributes and ties of ``structure``, in place, before weights are loaded.

    Raises:
        InputError: the structure is of another format or does not fit the model; ``origin`` and the module are named.
    """
    modules, tied, layers = _read(structure, str(origin))
    for stack, kept in layers.items():
        _check_layers(model, stack, kept, str(origin))
        drop_layers(model, stack, kept)
    for name, entry in modules.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise InputError(f"{origin}: the model of config.json has no module {name!r}") from None
        for tensor_name, shape in entry.get("shapes", {}).items():
            _narrow(module, tensor_name, shape, f"{origin}: {name or 'the model'}")
        for attribute, value in entry.get("attributes", {}).items():
            _set_attribute(module, attribute, value, f"{origin}: {name or 'the model'}")
    _tie(model, tied, str(origin))
    for name, module in reversed(list(model.named_modules())):  # what a module holds before the module itself
        problem = _inconsistent(module)
        if problem:
            raise InputError(f"{origin}: {name or 'the model'}: {problem}")


def drop_layers(model: nn.Module, stack: str, kept: Sequence[int]) -> None:
    """Keep some layers of a module list alone, in place; numbers that tell a layer its place in a cache follow."""
    from torch import nn

    before = model.get_submodule(stack)
    assert isinstance(before, nn.ModuleList)
    after = nn.ModuleList([before[index] for index in kept])
    origin = getattr(before, KEPT, None)
    setattr(after, KEPT, [origin[index] for index in kept] if origin else list(kept))
    for place, layer in enumerate(after):
        for module in layer.modules():
            for name in PLACES:
                if type(getattr(module, name, None)) is int:
                    setattr(module, name, place)
    owner, _, attribute = stack.rpartition(".")
    setattr(model.get_submodule(owner), attribute, after)


@contextmanager
def layers_dropped(model: nn.Module, stack: str, kept: Sequence[int]) -> Iterator[None]:
    """:func:`drop_layers` for a while; modules that are named below the stack have other names meanwhile."""
    before = model.get_submodule(stack)
    places = [
        (module, name, getattr(module, name))
        for module in before.modules()
        for name in PLACES
        if type(getattr(module, name, None)) is int
    ]
    drop_layers(model, stack, kept)
    try:
        yield
    finally:
        owner, _, attribute = stack.rpartition(".")
        setattr(model.get_submodule(owner), attribute, before)
        for module, name, place in places:
            setattr(module, name, place)


def _kept_layers(model: nn.Module, reference: nn.Module) -> dict[str, JSON]:
    """Per stack that is shorter than the reference's, the reference's layers that it holds."""
    known = dict(reference.named_modules())
    found: dict[str, JSON] = {}
    for name, module in model.named_modules():
        kept = getattr(module, KEPT, None)
        if kept is not None and name in known and len(known[name]) > len(module):
            found[name] = list(kept)
    return found


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str | Path) -> None:
    """Check names and shapes of weights against a model whose structure was applied, before they are loaded.

    Raises:
        InputError: a tensor is missing or unexpected, or its shape is not the module's; the first ones are named.
    """
    expected = model.state_dict()
    problems = [
        f"{name}: shape {list(weights[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    one_of = {name: group for group in _tied(model) for name in group}
    problems += [
        f"{name}: missing"
        for name in expected
        if name not in weights and not any(other in weights for other in one_of.get(name, ()))
    ]
    problems += [f"{name}: not a part of this model" for name in weights if name not in expected]
    if problems:
        raise InputError(
            f"{origin}: the weights do not fit config.json and {STRUCTURE}\n  "
            + "\n  ".join(problems[:5])
            + (f"\n  and {len(problems) - 5} more" if len(problems) > 5 else "")
        )


def write_readme(family: str, folder: Path) -> None:
    """Say in a pruned model's folder what opens it."""
    text = readme(family, (folder / STRUCTURE).is_file(), read_object(folder / "config.json"))
    (folder / README).write_text(text, encoding="utf-8")


def carry_readme(family: str, source: Path, folder: Path) -> None:
    """Say it again where the model of ``source``, which was pruned, was trained and saved in ``folder``."""
    if (source / README).is_file() or (folder / STRUCTURE).is_file():
        write_readme(family, folder)


def readme(family: str, structured: bool, config: Mapping[str, JSON]) -> str:
    """What opens a pruned model's folder: Markdown."""
    own = f"`mmcompress` opens it as `{family}: {{path: THIS_FOLDER}}` in a recipe.\n"
    if not _of_transformers(config):
        reason = "It is no model of transformers."
    elif structured:
        reason = (
            f"Its parts were cut to sizes that `config.json` cannot tell and `{STRUCTURE}` does, so"
            " `from_pretrained` of transformers does not open it."
        )
    else:
        reason = (
            "Its configuration tells all that was cut, so `from_pretrained` of transformers opens it too (with the class"
            " that opened the whole model)."
        )
    return f"# A pruned model\n\n{own}{reason}\n"


def _of_transformers(config: Mapping[str, JSON]) -> bool:
    kind = config.get("model_type")
    return isinstance(kind, str) and not kind.startswith("mmcompress-")


def read_structure(folder: Path) -> JSON | None:
    """The structure of a model folder, or None where it has none.

    Raises:
        InputError: the file is no JSON.
    """
    path = folder / STRUCTURE
    return read_json(path) if path.exists() else None


def write_structure(folder: Path, structure: JSON | None) -> None:
    """Write a structure into a model folder; nothing for None."""
    if structure is not None:
        write_json(folder / STRUCTURE, structure)


# --- describing ----------------------------------------------------------------------------------------------------


def _changes(name: str, module: nn.Module, reference: nn.Module) -> dict[str, JSON]:
    ours, theirs = dict(_own_tensors(module)), dict(_own_tensors(reference))
    if ours.keys() != theirs.keys():
        raise ValueError(f"{name}: tensors of one model alone: {_some(ours.keys() ^ theirs.keys())}")
    shapes = {key: list(tensor.shape) for key, tensor in ours.items() if tensor.shape != theirs[key].shape}
    before = _numbers(reference)
    attributes = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in _numbers(module).items()
        if before.get(key) != value
    }
    entry: dict[str, JSON] = {}
    if shapes:
        entry["shapes"] = shapes
    if attributes:
        entry["attributes"] = attributes
    return entry


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Attributes that are numbers or tuples of whole numbers; switches (bool) are not structure."""
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) in (int, float)


def _tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)


def _some(names: Any) -> str:
    return ", ".join(sorted(names)[:5])


# --- applying ------------------------------------------------------------------------------------------------------


def _read(structure: JSON, origin: str) -> tuple[dict[str, dict[str, Any]], list[list[str]], dict[str, list[int]]]:
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        found = structure.get("format") if isinstance(structure, dict) else type(structure).__name__
        raise InputError(f"{origin}: format {found!r}, expected {FORMAT}\n  Write the model again with this version.")
    unknown = structure.keys() - {"format", "modules", "tied", "layers"}
    modules, tied, layers = structure.get("modules"), structure.get("tied"), structure.get("layers", {})
    if unknown or not isinstance(modules, dict) or not isinstance(tied, list) or not isinstance(layers, dict):
        raise InputError(
            f"{origin}: expected the keys format, modules (a mapping), tied (a list) and, at will, layers (a mapping)"
        )
    for name, entry in modules.items():
        if not isinstance(entry, dict) or entry.keys() - {"shapes", "attributes"}:
            raise InputError(f"{origin}: {name}: expected a mapping with shapes and attributes")
        if not all(isinstance(entry.get(key, {}), dict) for key in ("shapes", "attributes")):
            raise InputError(f"{origin}: {name}: shapes and attributes are mappings")
    for group in tied:
        if not isinstance(group, list) or len(group) < 2 or not all(isinstance(item, str) for item in group):
            raise InputError(f"{origin}: tied: expected lists of two or more parameter names, got {group!r}")
    return modules, tied, layers


def _check_layers(model: nn.Module, stack: str, kept: JSON, origin: str) -> None:
    from torch import nn

    module = dict(model.named_modules()).get(stack)
    if not isinstance(module, nn.ModuleList):
        raise InputError(f"{origin}: layers: the model of config.json has no stack of layers {stack!r}")
    rising = isinstance(kept, list) and bool(kept) and all(type(i) is int for i in kept) and kept == sorted(set(kept))
    if not rising or kept[0] < 0 or kept[-1] >= len(module):
        raise InputError(
            f"{origin}: layers: {stack}: {kept!r} are not rising indices of the {len(module)} layers that config.json makes"
        )


def _narrow(module: nn.Module, name: str, shape: JSON, where: str) -> None:
    from torch import nn

    tensor = dict(_own_tensors(module)).get(name)
    if tensor is None:
        raise InputError(f"{where}: the module has no parameter or buffer {name!r}")
    before = list(tensor.shape)
    fits = (
        isinstance(shape, list)
        and len(shape) == len(before)
        and all(type(size) is int and 1 <= size <= limit for size, limit in zip(shape, before, strict=True))
    )
    if not fits:
        raise InputError(f"{where}: {name}: shape {shape!r} is not {before} or narrower, which config.json makes")
    narrowed = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(narrowed, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, narrowed)


def _set_attribute(module: nn.Module, name: str, value: JSON, where: str) -> None:
    before = _numbers(module).get(name)
    if before is None:
        raise InputError(f"{where}: the module has no number called {name!r}")
    if isinstance(value, list):
        value = tuple(value)
    alike = type(value) is type(before) or (type(value) is int and type(before) is float)
    if not _is_number(value) or not alike or value != value:
        raise InputError(f"{where}: {name}: expected a number like {before!r}, got {value!r}")
    setattr(module, name, value)


def _inconsistent(module: nn.Module) -> str | None:
    """Numbers of a module that contradict its own tensors: what a forward pass would only find out late, or never."""
    from torch import nn

    if isinstance(module, nn.Linear) and (module.out_features, module.in_features) != tuple(module.weight.shape):
        return f"{module.in_features} to {module.out_features} features, weight {list(module.weight.shape)}"
    if isinstance(module, nn.Linear) and module.bias is not None and module.bias.shape[0] != module.out_features:
        return f"{module.out_features} features, bias {list(module.bias.shape)}"
    if isinstance(module, nn.Embedding) and (module.num_embeddings, module.embedding_dim) != tuple(module.weight.shape):
        return f"{module.num_embeddings} x {module.embedding_dim}, weight {list(module.weight.shape)}"
    heads, width = getattr(module, "num_heads", None), getattr(module, "head_dim", None)
    query = getattr(module, "q_proj", None)
    if (
        isinstance(query, nn.Linear)
        and type(heads) is int
        and type(width) is int
        and heads * width != len(query.weight)
    ):
        return f"{heads} heads of width {width}, but its q_proj gives {len(query.weight)} channels"
    return None


def _tie(model: nn.Module, tied: Sequence[Sequence[str]], origin: str) -> None:
    from torch import nn

    wanted = [set(group) for group in tied]
    for fresh in _tied(model):
        for name in fresh[1:]:
            if not any({fresh[0], name} <= names for names in wanted):
                parameter = model.get_parameter(name)
                own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                _replace(model, name, own)
    known = dict(model.named_parameters(remove_duplicate=False))
    for group in tied:
        for name in group:
            if name not in known:
                raise InputError(f"{origin}: tied: the model of config.json has no parameter {name!r}")
            if known[name].shape != known[group[0]].shape:
                raise InputError(f"{origin}: tied: {name} and {group[0]} differ in shape")
            _replace(model, name, known[group[0]])


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, parameter)
