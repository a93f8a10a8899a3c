"""The cut itself: heads, channels of heads, units, width and layers leave a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmcompress.families._structure import drop_layers
from mmcompress.stages._choice import Plan
from mmcompress.stages._pruning import HEAD_WIDTHS, MODEL_WIDTHS, Block, Dependencies, tie_again, tied_parameters

if TYPE_CHECKING:
    from torch import nn

    from mmcompress.stages._importance import Scores


@dataclass
class Found:
    """What may be cut in a model."""

    dependencies: Dependencies
    widths: dict[str, Block]
    """The residual stream of the towers where it may be cut."""
    notes: list[str]
    """What a part that was asked for cannot be cut in, and why."""


def cut(found: Found, plans: Mapping[str, Plan], scores: Scores) -> None:
    """Cut a model in place: what matters least goes.

    Raises:
        StageError: tied weights would be cut differently.
    """
    model = found.dependencies.model
    tied = tied_parameters(model)
    layers: dict[str, set[int]] = {}
    for name, plan in plans.items():
        for block in found.dependencies.blocks:
            if block.prunable.tower != name:
                continue
            if block.layer in plan.dropped:
                continue
            removed = least_of(scores[block.name], block.groups - plan.groups[block.name])
            size = plan.sizes.get(block.name, block.size)
            narrowed = cut_head_width(model, block, size, scores) if size < block.size else block
            found.dependencies.cut(narrowed, removed)
        width = found.widths.get(name)
        if width is not None and plan.width is not None:
            found.dependencies.cut(width, least_of(scores[width.name], width.channels - plan.width))
            _follow_width(found, width, plan.width)
        for layer in plan.dropped:
            layers.setdefault(layer.stack, set()).add(layer.index)
    tie_again(model, tied)
    for stack, indices in layers.items():
        drop_layers(model, stack, [i for i in range(len(model.get_submodule(stack))) if i not in indices])  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.grad = None


def _follow_width(found: Found, width: Block, channels: int) -> None:
    """Set the attributes that tell the width; those of an attention count its heads' channels, and follow these."""
    model, blocks = found.dependencies.model, found.dependencies.blocks
    attentions = {name for block in blocks for name in block.prunable.head_attributes or {}}
    above = {name.rpartition(".")[0] for name in (*width.producers, *width.consumers)} | found.dependencies.touched(
        width
    )
    for name in above - attentions:
        module = model.get_submodule(name)
        for attribute in (*MODEL_WIDTHS, *(f"{width.prunable.tower}_{name}" for name in MODEL_WIDTHS)):
            if getattr(module, attribute, None) == width.channels:
                setattr(module, attribute, channels)


def least_of(importance: Sequence[float], count: int) -> list[int]:
    """The groups of the least importance; ties go by their order."""
    return sorted(sorted(range(len(importance)), key=lambda group: (importance[group], group))[:count])


def knows_head_width(model: nn.Module, block: Block) -> bool:
    """Whether an attention's module has a width of its heads that a cut can set: others read it off their inputs."""
    modules = [model.get_submodule(name) for name in block.prunable.head_attributes or {}]
    return any(getattr(module, name, None) == block.size for module in modules for name in HEAD_WIDTHS)


def cut_head_width(model: nn.Module, block: Block, size: int, scores: Scores) -> Block:
    """Narrow all heads of an attention, the same number of channels in each, in place; gives the block as it is then.

    Queries and keys lose the same channels, values theirs; the scale of the scores stays, as a smaller sum needs none.
    """
    import torch_pruning

    def channels(what: str) -> list[int]:
        values = scores[f"{block.name}.{what}"]
        return [
            head * block.size + channel
            for head in range(block.groups)
            for channel in least_of(values[head * block.size : (head + 1) * block.size], block.size - size)
        ]

    query, key, value = (block.prunable.root, *block.prunable.together)
    in_scores, in_values = channels("scores"), channels("values")
    for name, removed in ((query, in_scores), (key, in_scores), (value, in_values)):
        torch_pruning.prune_linear_out_channels(model.get_submodule(name), removed)
    for name in block.consumers:
        torch_pruning.prune_linear_in_channels(model.get_submodule(name), in_values)
    for name, attributes in (block.prunable.head_attributes or {}).items():
        module = model.get_submodule(name)
        for attribute in (*attributes, *HEAD_WIDTHS):
            before = getattr(module, attribute, None)
            if attribute in HEAD_WIDTHS and before == block.size:
                setattr(module, attribute, size)
            elif before == block.channels and before != block.groups:
                setattr(module, attribute, block.groups * size)
    return replace(block, channels=block.groups * size)
