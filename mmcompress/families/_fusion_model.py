"""Torch's side of the ``fusion`` family: outputs, task loss, what can be pruned, and graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmcompress.families import PADDING, Graph, Prunable
from mmcompress.families._fusion_config import FusionConfig, Input
from mmcompress.families._fusion_parts import Intermediate, Late, Mlp
from mmcompress.families._fusion_processor import TARGETS
from mmcompress.families._fusion_samples import sample_feeds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._fusion_modules import FusionModel

GRAPH = "fusion_model"


# --- training ------------------------------------------------------------------------------------------------------


def provides(config: FusionConfig) -> frozenset[str]:
    """Names of all outputs."""
    names = {"fusion.logits", "fusion.embeds", *(f"{item.name}.embeds" for item in config.inputs)}
    if isinstance(config.fusion, Late):
        names |= {f"{item.name}.logits" for item in config.inputs}
        names |= {f"{item.name}.present" for item in config.inputs} if config.missing else set()
    if config.tagged:
        names.add("fusion.mask")
    if config.output.kind == "number":
        names.add("fusion.scale")
    return frozenset(names)


def task_needs(config: FusionConfig) -> frozenset[str]:
    """Outputs that :func:`task_loss` reads."""
    return frozenset(
        name
        for name in provides(config)
        if name in ("fusion.logits", "fusion.mask", "fusion.scale") or name.endswith((".logits", ".present"))
    )


def outputs(model: FusionModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Forward; in training a model of numbers sees those of the batch first."""
    from torch.nn.functional import normalize

    config = model.settings
    if model.scale is not None and model.training and "number" in batch:
        model.scale.see(batch["number"][:, None])
    encoded = model.encode(batch)
    fused = model.join(encoded, batch)
    found: dict[str, Any] = {"fusion.logits": fused.logits, "fusion.embeds": normalize(fused.embeds.float(), dim=-1)}
    for name, item in encoded.items():
        found[f"{name}.embeds"] = normalize(item.pooled.float(), dim=-1)
    for name, logits in fused.each.items():
        found[f"{name}.logits"] = logits
        if config.missing:
            found[f"{name}.present"] = batch[f"{name}_present"]
    if model.scale is not None:
        found["fusion.scale"] = model.scale.std[0]
    if config.tagged:
        starts = batch[f"{config.tagged}_starts"]
        index = starts.clamp(min=0)[:, :, None].expand(-1, -1, fused.logits.shape[-1])
        found["fusion.logits"] = fused.logits.gather(1, index)
        found["fusion.mask"] = (starts != PADDING).float()
    return found


def task_loss(config: FusionConfig, given: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of the joined answer; in late fusion plus the mean loss of the inputs' own answers.

    Each is cross entropy (``class``; ``tags``: mean over the words), binary cross entropy summed over the classes
    (``several``), or the squared error in standard deviations of the training's numbers (``number``).
    """
    import torch

    target = batch[TARGETS[config.output.kind]]
    each = _loss(config, given["fusion.logits"], target, given)
    total: Tensor
    if config.tagged:
        mask = given["fusion.mask"]
        total = (each * mask).sum() / mask.sum().clamp(min=1)
        return total
    total = each.mean()
    if isinstance(config.fusion, Late):
        own = torch.stack([_loss(config, given[f"{item.name}.logits"], target, given) for item in config.inputs])
        here = [given.get(f"{item.name}.present", torch.ones_like(own[0])) for item in config.inputs]
        weights = torch.stack(here)
        total = total + (own * weights).sum() / weights.sum().clamp(min=1)
    return total


def _loss(config: FusionConfig, logits: Tensor, target: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Per example [b], or per word [b, w]."""
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    if config.output.kind == "number":
        apart: Tensor = (logits[:, 0] - target) / given["fusion.scale"]
        return apart.square()
    if config.output.kind == "several":
        return binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=-1)
    if config.output.kind == "tags":
        return cross_entropy(logits.transpose(1, 2), target, ignore_index=PADDING, reduction="none")
    return cross_entropy(logits, target, reduction="none")


# --- compressing ---------------------------------------------------------------------------------------------------


def prunable(model: FusionModel) -> list[Prunable]:
    """Heads and feed-forward units of ViT, BERT and the cross-attention; hidden widths of linear layers.

    Convolutions, GRUs and LSTMs are left as they are: Torch-Pruning does not see into a recurrence, and only linear
    layers are cut.
    """
    found: list[Prunable] = []
    for item in model.settings.inputs:
        found += _prunable_encoder(model, item)
    if isinstance(model.settings.fusion, Intermediate):
        for number, blocks in enumerate(model.get_submodule("fusion.layers").children()):
            for name, block in blocks.named_children():
                place, shown = f"fusion.layers.{number}.{name}", f"fusion.layers.{number}.{name.removesuffix('_block')}"
                heads: Any = block.get_submodule("attention").num_heads
                at = f"{place}.attention"
                found.append(
                    Prunable(
                        f"{shown}.attention",
                        "fusion",
                        f"{at}.q_proj",
                        int(heads),
                        (f"{at}.k_proj", f"{at}.v_proj"),
                        {at: ("num_heads",)},
                    )
                )
                found.append(Prunable(f"{shown}.feed_forward", "fusion", f"{place}.fc1", None))
    elif not isinstance(model.settings.fusion, Late):
        linears = list(model.get_submodule("fusion.layers.linears").children())
        found += [
            Prunable(f"fusion.hidden.{index}", "fusion", f"fusion.layers.linears.{index}", None)
            for index in range(len(linears) - 1)
        ]
    return found


def _prunable_encoder(model: FusionModel, item: Input) -> list[Prunable]:
    root = f"{item.name}_encoder.encoder"
    kind = item.encoder.kind
    if isinstance(item.encoder, Mlp):
        return [
            Prunable(f"{item.name}.hidden.{index}", item.name, f"{root}.layers.linears.{index}", None)
            for index in range(len(item.encoder.hidden))
        ]
    if kind not in ("vit", "bert"):
        return []
    layers = f"{root}.model.{'layers' if kind == 'vit' else 'encoder.layer'}"
    found = []
    for number, layer in enumerate(model.get_submodule(layers).children()):
        place = f"{layers}.{number}"
        attention = f"{place}.attention" if kind == "vit" else f"{place}.attention.self"
        names = ("q_proj", "k_proj", "v_proj") if kind == "vit" else ("query", "key", "value")
        attributes = ("num_attention_heads",) if kind == "vit" else ("num_attention_heads", "all_head_size")
        heads: Any = layer.get_submodule(attention.removeprefix(f"{place}.")).num_attention_heads
        first, *others = (f"{attention}.{name}" for name in names)
        shown = f"{item.name}.layers.{number}"
        found.append(
            Prunable(f"{shown}.attention", item.name, first, int(heads), tuple(others), {attention: attributes})
        )
        up = f"{place}.{'mlp.fc1' if kind == 'vit' else 'intermediate.dense'}"
        found.append(Prunable(f"{shown}.feed_forward", item.name, up, None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: FusionModel) -> list[Graph]:
    """``fusion_model``: all of it."""
    from mmcompress.families._fusion_modules import FusionGraph

    samples = sample_feeds(model)
    return [Graph(GRAPH, FusionGraph(model), samples.inputs, samples.dynamic, ("logits",), samples.variants)]


def traced(model: FusionModel) -> list[Graph]:
    """One graph per encoder that can be pruned and one of what joins them, so that each tower's cost is its own."""
    import torch

    from mmcompress.families._fusion_modules import EncoderGraph, JoinGraph

    feeds = sample_feeds(model).inputs
    found = []
    joined: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        encoded = model.encode(feeds)
    for item in model.settings.inputs:
        parts = ("values", "length") if item.kind == "text" else ("values",)
        inputs = {part: feeds[f"{item.name}_{part}"] for part in parts}
        joined |= {f"{item.name}_tokens": encoded[item.name].tokens, f"{item.name}_pooled": encoded[item.name].pooled}
        if _prunable_encoder(model, item):
            module = EncoderGraph(model.encoder(item.name))
            found.append(Graph(f"{item.name}_encoder", module, inputs, {}, ("tokens", "pooled")))
    found.append(Graph("fusion", JoinGraph(model), joined, {}, ("logits",)))
    return found
