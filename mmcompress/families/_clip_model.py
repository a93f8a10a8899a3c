"""What the ``clip`` family does with a model in torch: outputs, losses, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmcompress.errors import UsageError
from mmcompress.families import Graph, Prunable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOWERS = ("vision", "text")


def outputs(model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """The wanted outputs by name: embeddings in FP32 also under autocast, one tensor per layer for hidden states and maps.

    Raises:
        UsageError: attention maps of a model that was loaded with another attention than eager; a bias of a CLIP model.
    """
    result: dict[str, Any] = {}
    for tower, names in (("vision", ("pixel_values",)), ("text", ("input_ids", "attention_mask"))):
        of_tower = {name.removeprefix(f"{tower}.") for name in want if name.startswith(f"{tower}.")}
        if of_tower:
            inputs = {name: batch[name] for name in names if name in batch}
            given = _tower_outputs(model, tower, inputs, of_tower)
            result.update({f"{tower}.{name}": value for name, value in given.items()})
    result["fusion.logit_scale"] = model.get_parameter("logit_scale").float().exp().reshape(())
    if hasattr(model, "logit_bias"):
        result["fusion.logit_bias"] = model.get_parameter("logit_bias").float().reshape(())
    elif "fusion.logit_bias" in want:
        raise UsageError("fusion.logit_bias is SigLIP's; this model is a CLIP model and has none")
    return result


def _tower_outputs(model: Any, tower: str, inputs: dict[str, Tensor], want: set[str]) -> dict[str, Any]:
    from torch.nn.functional import normalize

    hidden, maps = "hidden_states" in want, "attentions" in want
    given = getattr(model, f"{tower}_model")(**inputs, output_hidden_states=hidden, output_attentions=maps)
    projection = getattr(model, {"vision": "visual_projection", "text": "text_projection"}[tower], None)
    embeds = given.pooler_output if projection is None else projection(given.pooler_output)
    result: dict[str, Any] = {"embeds": normalize(embeds.float(), dim=-1)}
    if hidden:
        # transformers' first entry is the embeddings, before any layer.
        result["hidden_states"] = tuple(given.hidden_states[1:])
    if maps:
        if len(given.attentions) < len(getattr(model, f"{tower}_model").encoder.layers):
            raise UsageError(
                f"{tower}.attentions come from eager attention alone\n  Set `attention: eager` in the stage."
            )
        result["attentions"] = tuple(given.attentions)
    if "mask" in want:
        # Pictures have no padding, and SigLIP's text tower was trained to see its own: all positions count.
        states = given.last_hidden_state
        result["mask"] = inputs.get("attention_mask", states.new_ones(states.shape[:2]))
    return result


# --- losses --------------------------------------------------------------------------------------------------------


def positives(input_ids: Tensor) -> Tensor:
    """Which texts are equal, token by token: bool [b, b], true on the diagonal."""
    equal: Tensor = (input_ids[:, None] == input_ids[None]).all(dim=-1)
    return equal


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, input_ids: Tensor) -> Tensor:
    """Symmetric cross entropy over a batch's similarities (CLIP, arXiv:2103.00020, figure 3).

    The target of a picture is spread evenly over the texts equal to its own, so that a repeated caption is no negative.
    """
    from torch.nn.functional import cross_entropy

    logits = scale * image @ text.T
    same = positives(input_ids).to(logits.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, input_ids: Tensor) -> Tensor:
    """SigLIP's pairwise loss (arXiv:2303.15343, equation 1); equal texts are positives."""
    from torch.nn.functional import logsigmoid

    logits = scale * image @ text.T + bias
    sign = 2 * positives(input_ids).to(logits.dtype) - 1
    return -logsigmoid(sign * logits).sum() / len(logits)


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any) -> list[Prunable]:
    """Attention heads and feed-forward units of each layer, and the units of SigLIP's pooling head."""
    found: list[Prunable] = []
    for tower in TOWERS:
        base = f"{tower}_model.encoder.layers"
        for index, layer in enumerate(model.get_submodule(base)):
            attention = f"{base}.{index}.self_attn"
            found.append(
                Prunable(
                    block=f"{tower}.layers.{index}.attention",
                    tower=tower,
                    root=f"{attention}.q_proj",
                    heads=int(layer.self_attn.num_heads),
                    together=(f"{attention}.k_proj", f"{attention}.v_proj"),
                    # head_dim and scale stay: whole heads are cut.
                    head_attributes={attention: ("num_heads", "embed_dim")},
                )
            )
            block = f"{tower}.layers.{index}.feed_forward"
            found.append(Prunable(block=block, tower=tower, root=f"{base}.{index}.mlp.fc1", heads=None))
    if hasattr(model.vision_model, "head"):
        root = "vision_model.head.mlp.fc1"
        found.append(Prunable(block="vision.head.feed_forward", tower="vision", root=root, heads=None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any) -> list[Graph]:
    """Both towers with sample inputs of three different examples.

    A CLIP text graph takes any length; it reads its answer from the end token, wherever that stands. SigLIP's reads
    the last position and was trained on one length alone, so its graph has that length and no mask.
    """
    from mmcompress.families._modules import ImageEmbedder, TextEmbedder

    texts = sample_texts(model)
    axes = {0: "batch"} if len(texts) == 1 else {0: "batch", 1: "sequence"}
    lengths = (2, model.config.text_config.max_position_embeddings) if len(axes) > 1 else ()
    vision = Graph(
        name="vision_model",
        module=ImageEmbedder(model).eval(),
        inputs={"pixel_values": sample_pictures(model)},
        dynamic={"pixel_values": {0: "batch"}},
        outputs=("image_embeds",),
    )
    text = Graph(
        name="text_model",
        module=TextEmbedder(model).eval(),
        inputs=texts,
        dynamic=dict.fromkeys(texts, axes),
        outputs=("text_embeds",),
        variants=tuple(sample_texts(model, length=length) for length in lengths),
    )
    return [vision, text]


def sample_pictures(model: Any, batch: int = 3) -> Tensor:
    """Noise of the model's picture size: float32 [b, c, h, w], the same at every call."""
    import torch

    config = model.config.vision_config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))


def sample_texts(model: Any, batch: int = 3, length: int = 8) -> dict[str, Tensor]:
    """Random texts as the tokenizer would give them: for CLIP of different lengths, ended and padded."""
    import torch

    config = model.config.text_config
    generator = torch.Generator().manual_seed(0)
    if model.config.model_type == "siglip":
        shape = (batch, config.max_position_embeddings)
        return {"input_ids": torch.randint(0, config.vocab_size, shape, generator=generator)}
    # Configurations of before transformers 4.30 say 2; their end token is the highest id of the vocabulary.
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    length = min(length, config.max_position_embeddings)
    ids = torch.randint(0, config.vocab_size - 1, (batch, length), generator=generator)
    ids[ids == end] = end - 1 if end > 0 else end + 1
    mask = torch.zeros_like(ids)
    for row in range(batch):
        last = max(0, length - 1 - row)
        ids[row, last:] = end
        mask[row, : last + 1] = 1
    return {"input_ids": ids, "attention_mask": mask}
