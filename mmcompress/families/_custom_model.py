"""Torch's side of the ``custom`` family: outputs, task loss, graphs, and what pruning may narrow, found by itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmcompress.errors import StageError, require
from mmcompress.families import Graph, Prunable
from mmcompress.families._clip_model import contrastive_loss
from mmcompress.families._custom_config import EMBEDDED, CustomConfig, Embed, PredictNumber
from mmcompress.families._input_samples import EXAMPLES, Samples, noise, sample_inputs, sample_pictures
from mmcompress.families._inputs import FilmInput, Input, PictureInput, SeriesInput, SoundInput, TextInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._custom_modules import CustomModel

GRAPH = "custom_model"
_SAME = 1e-4
"""Of the largest output: how far a model may be off whose channels were cut, from one whose channels are ignored."""


def graph_name(kind: str) -> str:
    """The graph that embeds an input of a kind: ``vision_model``."""
    return f"{EMBEDDED[kind][1]}_model"


# --- training ------------------------------------------------------------------------------------------------------


def provides(config: CustomConfig) -> frozenset[str]:
    """Names of all outputs."""
    if isinstance(config.task, Embed):
        return frozenset({"fusion.logit_scale", *(f"{EMBEDDED[item.kind][1]}.embeds" for item in config.inputs)})
    return frozenset({"fusion.logits"} | ({"fusion.scale"} if isinstance(config.task, PredictNumber) else set()))


def outputs(model: CustomModel, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """Forward, of an embedding model for the inputs whose embeddings are wanted."""
    import torch
    from torch.nn.functional import normalize

    from mmcompress.families._custom_modules import tensors_of

    config = model.settings
    if not isinstance(config.task, Embed):
        inputs = tensors_of(batch, [item.name for item in config.inputs])
        if isinstance(config.task, PredictNumber):
            number = model.number(inputs)
            return {"fusion.logits": number, "fusion.scale": number.new_tensor(config.task.std)}
        return {"fusion.logits": model.answer(inputs, "logits")["logits"]}
    found: dict[str, Any] = {"fusion.logit_scale": torch.tensor(config.task.scale)}
    for item in config.inputs:
        name = f"{EMBEDDED[item.kind][1]}.embeds"
        if name in want:
            given = model.answer(tensors_of(batch, [item.name]), f"{item.name}_embeds")
            found[name] = normalize(given[f"{item.name}_embeds"].float(), dim=-1)
            if "logit_scale" in given:
                found["fusion.logit_scale"] = given["logit_scale"].float().reshape(())
    return found


def task_loss(config: CustomConfig, given: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy; binary cross entropy summed over the classes; the squared error in the task's ``std``; or CLIP's
    symmetric cross entropy over the similarities, where equal texts are positives of each other's partners.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    task = config.task
    if isinstance(task, Embed):
        first, second = (given[f"{EMBEDDED[item.kind][1]}.embeds"] for item in config.inputs)
        texts = [batch[f"{item.name}_values"] for item in config.inputs if item.kind == "text"]
        alike = texts[0] if texts else torch.arange(len(first), device=first.device)[:, None]
        return contrastive_loss(first, second, given["fusion.logit_scale"], alike)
    logits, target = given["fusion.logits"], batch[config.target]
    loss: Tensor
    if isinstance(task, PredictNumber):
        loss = ((logits[:, 0] - target) / task.std).square().mean()
    elif task.several:
        loss = binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=-1).mean()
    else:
        loss = cross_entropy(logits, target)
    return loss


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: CustomModel) -> list[Graph]:
    """``custom_model``: all inputs to ``logits`` or ``number``; of an embedding model a graph per input, to ``embeds``."""
    from mmcompress.families._custom_modules import CustomGraph

    config = model.settings
    if not isinstance(config.task, Embed):
        samples = _samples(model, config.inputs)
        output = "number" if isinstance(config.task, PredictNumber) else "logits"
        return [Graph(GRAPH, CustomGraph(model), samples.inputs, samples.dynamic, (output,), samples.variants)]
    found = []
    for item in config.inputs:
        samples, module = _samples(model, [item]), CustomGraph(model, item.name)
        found.append(
            Graph(graph_name(item.kind), module, samples.inputs, samples.dynamic, ("embeds",), samples.variants)
        )
    return found


def _samples(model: CustomModel, items: Sequence[Input]) -> Samples:
    import torch

    def values(item: Input, steps: int, generator: torch.Generator) -> Tensor:
        if isinstance(item, TextInput):
            return torch.randint(0, model.vocabulary, (EXAMPLES, steps), generator=generator)
        if isinstance(item, (PictureInput, FilmInput)):
            return sample_pictures(item, steps, generator)
        width: int = item.channels_in  # type: ignore[attr-defined]
        shape = (EXAMPLES, steps, width) if isinstance(item, (SoundInput, SeriesInput)) else (EXAMPLES, width)
        return noise(generator, *shape)

    samples = sample_inputs(items, values, lambda most: most)
    if model.settings.padding == "max_length":
        return Samples(samples.inputs, {})
    return samples


# --- pruning -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A linear layer whose output channels other linear layers alone take."""

    root: str
    producers: tuple[str, ...]
    taken: tuple[tuple[str, int], ...]
    """Each layer that takes them, with its input channel that the root's first output channel is."""


def prunable(model: CustomModel) -> list[Prunable]:
    """Hidden widths between linear layers, one budget per graph: those where a cut changes nothing else.

    Torch-Pruning finds in the traced graph what takes a layer's channels. A pair is kept where a copy without the first
    channel answers as the model does that ignores it; views, attention and the like, whose sizes a cut would shift, drop
    out that way. A layer that two graphs run through is left whole.

    Raises:
        StageError: the forward cannot be traced.
    """
    found: list[tuple[str, _Pair]] = []
    own = graphs(model)
    for graph in own:
        tower = GRAPH if len(own) == 1 else graph.name.removesuffix("_model")
        found += [("model" if tower == GRAPH else tower, pair) for pair in _verified(model, graph)]
    roots = [name for _, pair in found for name in pair.producers]
    return [
        Prunable(pair.root.removeprefix("inner."), tower, pair.root, None)
        for tower, pair in found
        if all(roots.count(name) == 1 for name in pair.producers)
    ]


def _verified(model: CustomModel, graph: Graph) -> list[_Pair]:
    pairs = _pairs(model, graph, _trace(model, graph))
    if not pairs or _same_when_cut(model, graph, pairs):
        return pairs
    return [pair for pair in pairs if _same_when_cut(model, graph, [pair])]


def _trace(model: CustomModel, graph: Graph) -> Any:
    import torch

    torch_pruning = require("torch_pruning", "compress")
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(graph.module, dict(graph.inputs), verbose=False)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        inner = type(model.inner)
        raise StageError(
            f"prune: the forward of {inner.__module__}.{inner.__qualname__} ({model.settings.mmcompress_model!r}) "
            f"cannot be traced: {type(error).__name__}: {error}"
        ) from error


def _pairs(model: CustomModel, graph: Graph, traced: Any) -> list[_Pair]:
    import torch_pruning
    from torch import nn

    names = {module: name for name, module in model.named_modules()}
    found: list[_Pair] = []
    for name, module in model.named_modules():
        known = {other for pair in found for other in pair.producers}
        if not isinstance(module, nn.Linear) or module not in traced.module2node or name in known:
            continue
        group = traced.get_pruning_group(module, torch_pruning.prune_linear_out_channels, [*range(module.out_features)])
        makers: list[str] = []
        taken: list[tuple[str, int]] = []
        plain = True
        for item in group.items:
            target = item.dep.target.module
            if target not in names:
                plain = plain and not isinstance(target, nn.Parameter)
            elif not isinstance(target, nn.Linear) or len(item.idxs) != module.out_features:
                plain = False
            elif traced.is_out_channel_pruning_fn(item.dep.handler):
                makers.append(names[target])
            else:
                taken.append((names[target], int(item.idxs[0])))
        if plain and taken and name in makers and module.out_features > 1:
            found.append(_Pair(name, tuple(dict.fromkeys(makers)), tuple(dict.fromkeys(taken))))
    return found


def _same_when_cut(model: CustomModel, graph: Graph, pairs: Sequence[_Pair]) -> bool:
    """Whether a copy without the first channel of each pair answers as one that ignores these channels."""
    import torch

    ignoring, cut = copy.deepcopy(graph), copy.deepcopy(graph)
    with torch.no_grad():
        for pair in pairs:
            for name, channel in pair.taken:
                weight: Any = ignoring.module.get_submodule(f"model.{name}").weight
                weight[:, channel] = 0.0
    try:
        _cut_first(model, cut, pairs)
        with torch.no_grad():
            found, wanted = (each.module(**each.inputs) for each in (cut, ignoring))
    except (RuntimeError, ValueError, TypeError, IndexError, StageError):
        return False  # a size that the forward has fixed
    return all(
        found[name].shape == value.shape
        and float((found[name] - value).abs().max()) <= _SAME * float(value.abs().max().clamp(min=1e-6))
        for name, value in wanted.items()
    )


def _cut_first(model: CustomModel, graph: Graph, pairs: Sequence[_Pair]) -> None:
    import torch_pruning

    traced = _trace(model, graph)
    for pair in pairs:
        layer = graph.module.get_submodule(f"model.{pair.root}")
        traced.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, [0]).prune()
