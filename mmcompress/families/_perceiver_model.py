"""What the ``perceiver`` family does with a model in torch: outputs, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmcompress.families import Graph, Prunable
from mmcompress.families._perceiver_processing import Task
from mmcompress.families._students import Tower
from mmcompress.families._transformers import Architecture

if TYPE_CHECKING:
    from torch import Tensor

GRAPH = "model"
INPUTS: dict[Task, tuple[str, ...]] = {
    "text": ("input_ids", "attention_mask"),
    "picture": ("pixel_values",),
    "sound": ("input_values", "sample_counts"),
}
TOWERS = (Tower("encoder", "perceiver.encoder.self_attends", ("num_self_attends_per_block",)),)
CLASSES: dict[Task, tuple[str, ...]] = {
    "text": ("PerceiverForSequenceClassification",),
    "picture": tuple(f"PerceiverForImageClassification{kind}" for kind in ("Learned", "Fourier", "ConvProcessing")),
    "sound": ("mmcompress.families._perceiver_modules:PerceiverForAudioClassification",),
}
DECODER = "perceiver.decoder."


def architecture(task: Task, files: tuple[str, ...], *, new_head: bool = False) -> Architecture:
    """The classes of a task. With a new head the last layer starts at random; so does the whole decoder of a model of texts
    whose checkpoint filled in masked words.
    """
    found = Architecture("perceiver", {"perceiver": CLASSES[task]}, files, sdpa=False)
    if not new_head:
        return found
    last = (f"{DECODER}decoder.final_layer.",)
    if task != "text":
        return replace(found, new=last, fresh=last)
    return replace(found, new=(DECODER,), dropped=(DECODER, "embedding_decoder."), fresh=last)


def outputs(model: Any, batch: Mapping[str, Tensor], want: frozenset[str], task: Task) -> dict[str, Any]:
    """``fusion.logits`` [b, c] and what else is wanted of the latents."""
    from mmcompress.families._perceiver_modules import classify

    inputs = {name: batch[name] for name in INPUTS[task]}
    given = classify(model, inputs, attentions="encoder.attentions" in want)
    result: dict[str, Any] = {"fusion.logits": given.logits}
    if "encoder.hidden_states" in want:
        result["encoder.hidden_states"] = given.hidden
    if "encoder.attentions" in want:
        result["encoder.attentions"] = given.attentions
    if "encoder.mask" in want:
        result["encoder.mask"] = given.hidden[-1].new_ones(given.hidden[-1].shape[:2])
    return result


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any) -> list[Prunable]:
    """Feed-forward units of every layer, and heads where keys are as wide as values: cut at the same channels."""
    encoder = "perceiver.encoder"
    layers = {f"{encoder}.cross_attention": "encoder.cross_attention"}
    layers |= {
        f"{encoder}.self_attends.{i}": f"encoder.layers.{i}" for i in range(len(model.perceiver.encoder.self_attends))
    }
    layers[f"{DECODER}decoder.decoding_cross_attention"] = "decoder"
    found: list[Prunable] = []
    for name, block in layers.items():
        attention = model.get_submodule(f"{name}.attention.self")
        if attention.num_heads > 1 and attention.qk_channels == attention.v_channels:
            root = f"{name}.attention.self"
            found.append(
                Prunable(
                    block=f"{block}.attention",
                    tower="encoder",
                    root=f"{root}.query",
                    heads=int(attention.num_heads),
                    together=(f"{root}.key", f"{root}.value"),
                    head_attributes={root: ("num_heads", "qk_channels", "v_channels")},
                )
            )
        found.append(Prunable(f"{block}.feed_forward", "encoder", f"{name}.mlp.dense1", None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any, task: Task) -> list[Graph]:
    """One graph, ``model``, from inputs of the model's :class:`InputSize` to logits."""
    from mmcompress.families._perceiver_modules import Classifier

    size: tuple[int, ...] = model.input_size.sides

    inputs, *variants = _text_samples(size[0]) if task == "text" else _samples(task, size)
    dynamic = {name: {0: "batch"} for name in inputs}
    if task == "text":
        dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return [Graph(GRAPH, Classifier(model).eval(), inputs, dynamic, ("logits",), tuple(variants))]


def _text_samples(longest: int) -> list[dict[str, Tensor]]:
    """Three texts of different lengths; then the shortest, an odd length with padding, and the longest."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def texts(*lengths: int) -> dict[str, Tensor]:
        kept = [min(length, longest) for length in lengths]
        ids = torch.randint(6, 262, (len(kept), max(kept)), generator=generator)
        mask = (torch.arange(max(kept)) < torch.tensor(kept)[:, None]).long()
        ids[:, 0] = 4
        return {"input_ids": ids * mask, "attention_mask": mask}

    return [texts(24, 17, 9), texts(2), texts(13, 8), texts(longest)]


def _samples(task: Task, size: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """Three pictures or sounds; then one that is filled up almost wholly, and one that is not, where that may be."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if task == "picture":
        pictures = torch.randn(3, 3, 1, 1, generator=generator) + torch.randn(3, 3, *size, generator=generator)
        return [{"pixel_values": pictures}]

    def sounds(*counts: int) -> dict[str, Tensor]:
        values = torch.randn(len(counts), size[0], generator=generator)
        kept = torch.tensor(counts)
        mask = torch.arange(size[0]) < kept[:, None]
        return {"input_values": values * mask, "sample_counts": kept}

    return [sounds(size[0], size[0] // 2, size[0] // 3), sounds(1), sounds(size[0] - 1, 3), sounds(size[0])]
