"""What the ``clip`` family does with a model in torch: outputs, losses, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmcompress.errors import UsageError
from mmcompress.families import Graph, Prunable
from mmcompress.families._clip_towers import NAMES, TEXTS_OF_BERT, TOWERS, embed, kind_of, layout_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def outputs(model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """The wanted outputs by name: embeddings in FP32 also under autocast, one tensor per layer for hidden states and maps.

    Raises:
        UsageError: attention maps of a model that was loaded with another attention than eager, or of films; a bias of a
            CLIP model; hidden states of a tower without layers of tokens.
    """
    result: dict[str, Any] = {}
    for tower in TOWERS:
        of_tower = {name.removeprefix(f"{tower}.") for name in want if name.startswith(f"{tower}.")}
        if of_tower:
            inputs = {name: batch[name] for name in NAMES[tower] if name in batch}
            give = _film_outputs if "frame_mask" in inputs else _tower_outputs
            result.update({f"{tower}.{name}": value for name, value in give(model, tower, inputs, of_tower).items()})
    result["fusion.logit_scale"] = model.get_parameter("logit_scale").float().exp().reshape(())
    if hasattr(model, "logit_bias"):
        result["fusion.logit_bias"] = model.get_parameter("logit_bias").float().reshape(())
    elif "fusion.logit_bias" in want:
        raise UsageError("fusion.logit_bias is SigLIP's; this model has none")
    return result


def _tower_outputs(model: Any, tower: str, inputs: dict[str, Tensor], want: set[str]) -> dict[str, Any]:
    from torch.nn.functional import normalize

    hidden, maps, layout = "hidden_states" in want, "attentions" in want, layout_of(model, tower)
    if layout is None and want - {"embeds"}:
        raise UsageError(
            f"{tower}: a {kind_of(model, tower)} has no layers of tokens, so it gives no"
            f" {', '.join(sorted(want - {'embeds'}))}\n  Use losses on embeddings."
        )
    # A ResNet knows no attention maps to be asked for.
    asked = {} if layout is None else {"output_hidden_states": hidden, "output_attentions": maps}
    given = getattr(model, f"{tower}_model")(**inputs, **asked)
    result: dict[str, Any] = {"embeds": normalize(embed(model, tower, given).float(), dim=-1)}
    if hidden:
        # transformers' first entry is the embeddings, before any layer.
        result["hidden_states"] = tuple(given.hidden_states[1:])
    if maps:
        assert layout is not None
        if len(given.attentions or ()) < len(getattr(model, f"{tower}_model").get_submodule(layout.layers)):
            raise UsageError(
                f"{tower}.attentions come from eager attention alone\n  Set `attention: eager` in the stage."
            )
        result["attentions"] = tuple(given.attentions)
    if "mask" in want:
        # Pictures have no padding, and SigLIP's text tower was trained to see its own: all positions count.
        states = given.last_hidden_state
        result["mask"] = inputs.get("attention_mask", states.new_ones(states.shape[:2]))
    return result


def _film_outputs(model: Any, tower: str, inputs: dict[str, Tensor], want: set[str]) -> dict[str, Any]:
    """Outputs of films: the tokens of all frames in a row, [b, f * s, d]."""
    from mmcompress.families._modules import mean_over_frames

    if "attentions" in want:
        raise UsageError(f"{tower}.attentions: films have none, for tokens of one frame attend to no other frame's")
    mask = inputs["frame_mask"]
    found = _tower_outputs(model, tower, {"pixel_values": inputs["pixel_values"].flatten(0, 1)}, want)
    result: dict[str, Any] = {"embeds": mean_over_frames(found["embeds"], mask)}
    if "hidden_states" in found:
        result["hidden_states"] = tuple(
            states.reshape(len(mask), -1, states.shape[-1]) for states in found["hidden_states"]
        )
    if "mask" in found:
        tokens = found["mask"].shape[1]
        result["mask"] = mask.repeat_interleave(tokens, dim=1)
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
    """Attention heads and feed-forward units of each layer, and the units of SigLIP's pooling head; no part of a ResNet."""
    found: list[Prunable] = []
    for tower in TOWERS:
        layout = layout_of(model, tower)
        if layout is None:
            continue
        base = f"{tower}_model.{layout.layers}"
        for index, layer in enumerate(model.get_submodule(base)):
            attention = f"{base}.{index}.{layout.attention}"
            found.append(
                Prunable(
                    block=f"{tower}.layers.{index}.attention",
                    tower=tower,
                    root=f"{attention}.{layout.query}",
                    heads=int(getattr(layer.get_submodule(layout.attention), layout.heads)),
                    together=tuple(f"{attention}.{name}" for name in layout.beside),
                    # The size of a head and its scale stay: whole heads are cut.
                    head_attributes={attention: (layout.heads, *layout.follows)},
                )
            )
            block = f"{tower}.layers.{index}.feed_forward"
            found.append(Prunable(block=block, tower=tower, root=f"{base}.{index}.{layout.up}", heads=None))
    if hasattr(model.vision_model, "head"):
        root = "vision_model.head.mlp.fc1"
        found.append(Prunable(block="vision.head.feed_forward", tower="vision", root=root, heads=None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any, frames: int | None = None) -> list[Graph]:
    """Both towers with sample inputs of three different examples; with ``frames`` the pictures are films.

    A CLIP text graph takes any length; it reads its answer from the end token, wherever that stands (BERT's from the
    first). SigLIP's reads the last position and was trained on one length alone, so its graph has that length and no
    mask.
    """
    from mmcompress.families._modules import FilmEmbedder, ImageEmbedder, TextEmbedder

    texts = sample_texts(model)
    axes = {0: "batch"} if len(texts) == 1 else {0: "batch", 1: "sequence"}
    lengths = (2, model.config.text_config.max_position_embeddings) if len(axes) > 1 else ()
    film = {0: "batch", 1: "frames"}
    vision = Graph(
        name="vision_model",
        module=(ImageEmbedder if frames is None else FilmEmbedder)(model).eval(),
        inputs={"pixel_values": sample_pictures(model)} if frames is None else sample_films(model, frames),
        dynamic={"pixel_values": {0: "batch"}} if frames is None else {"pixel_values": film, "frame_mask": film},
        outputs=("image_embeds",),
        variants=() if frames is None else (sample_films(model, 1), sample_films(model, 3, padded=True)),
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


def sample_films(model: Any, frames: int, batch: int = 3, padded: bool = False) -> dict[str, Tensor]:
    """Noise films of so many frames; padded ones count one frame fewer for each further film, one at least."""
    import torch

    pixels = sample_pictures(model, batch * frames)
    counts = torch.tensor([max(1, frames - row * padded) for row in range(batch)])
    mask = (torch.arange(frames)[None] < counts[:, None]).long()
    return {"pixel_values": pixels.reshape(batch, frames, *pixels.shape[1:]), "frame_mask": mask}


def sample_texts(model: Any, batch: int = 3, length: int = 8) -> dict[str, Tensor]:
    """Random texts as the tokenizer would give them: of different lengths and padded but for SigLIP, ended for CLIP."""
    import torch

    config = model.config.text_config
    generator = torch.Generator().manual_seed(0)
    if model.config.model_type == "siglip":
        shape = (batch, config.max_position_embeddings)
        return {"input_ids": torch.randint(0, config.vocab_size, shape, generator=generator)}
    length = min(length, config.max_position_embeddings)
    ids = torch.randint(0, config.vocab_size - 1, (batch, length), generator=generator)
    counts = torch.tensor([max(1, length - row) for row in range(batch)])
    mask = (torch.arange(length)[None] < counts[:, None]).long()
    if model.config.model_type in TEXTS_OF_BERT:
        return {"input_ids": ids * mask, "attention_mask": mask}
    # Configurations of before transformers 4.30 say 2; their end token is the highest id of the vocabulary.
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    ids[ids == end] = end - 1 if end > 0 else end + 1
    ends = torch.arange(length)[None] >= counts[:, None] - 1
    return {"input_ids": ids.masked_fill(ends, end), "attention_mask": mask}
