"""The graphs of the ``blip`` family: what is exported, and what pruning traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmcompress.families import Graph

if TYPE_CHECKING:
    from torch import Tensor

    from mmcompress.families._decoder_modules import Pair

_PICTURES = {"pixel_values": {0: "batch"}}
_TEXTS = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}


def graphs(model: Any, task: str) -> list[Graph]:
    """The graphs of a task."""
    from mmcompress.families._blip_modules import ImageEmbeds, Match, TextEmbeds

    pictures, texts = {"pixel_values": sample_pictures(model)}, sample_texts(model)
    shorter = {name: value[:, :2].contiguous() for name, value in texts.items()}
    others = (shorter, sample_texts(model, length=11), _longest_texts(model))
    if task in ("caption", "vqa"):
        return _writing(model, task)
    variants = tuple({**pictures, **other} for other in others)
    both = {**pictures, **texts}
    match = Graph("match_model", Match(model).eval(), both, {**_PICTURES, **_TEXTS}, ("logits",), variants)
    vision = Graph("vision_model", ImageEmbeds(model).eval(), pictures, _PICTURES, ("image_embeds",))
    text = Graph("text_model", TextEmbeds(model).eval(), texts, _TEXTS, ("text_embeds",), others)
    return {"match": [match], "retrieval": [vision, text], "pretrained": [vision, text, match]}[task]


def _writing(model: Any, task: str) -> list[Graph]:
    """What the decoder starts from, and one step of it."""
    import torch

    from mmcompress.families._blip_modules import Asked, Seen
    from mmcompress.families._decoder_modules import DecoderStart, DecoderStep, after_tokens

    layers = list(model.text_decoder.bert.encoder.layer)
    asked = task == "vqa"
    heads = [(one.num_attention_heads, one.attention_head_size) for one in (layer.attention.self for layer in layers)]
    start = DecoderStart(
        Asked(model) if asked else Seen(model),
        lambda states: _cross(layers, states),
        heads,
        layers,
        "attention_mask" if asked else None,
    ).eval()
    step = DecoderStep(
        model.text_decoder,
        len(layers),
        lambda ids, cache, stand_in, mask: (
            model.text_decoder(
                input_ids=ids,
                past_key_values=cache,
                encoder_hidden_states=stand_in,
                encoder_attention_mask=mask,
                use_cache=True,
            ).logits
        ),
    ).eval()
    inputs = {"pixel_values": sample_pictures(model), **(sample_texts(model) if asked else {})}
    ids = sample_tokens(model)
    with torch.inference_mode():
        state = start(**inputs)
        outputs = step(input_ids=ids[:, :3], **state)
    later = {**state, **{f"past.{k.partition('.')[2]}": v.clone() for k, v in outputs.items() if k != "logits"}}
    axes = {name: _state_axes(name, asked) for name in state}
    one = ids[:, 3:4]
    asked_others = [
        {**inputs, **texts}
        for texts in (({name: inputs[name][:, :3] for name in _TEXTS}, _longest_texts(model)) if asked else ())
    ]
    with torch.inference_mode():
        states = [state, *(start(**other) for other in asked_others)]
    dynamic = {**_PICTURES, **(_TEXTS if asked else {})}
    encoder = Graph("encoder_model", start, inputs, dynamic, tuple(state), tuple(asked_others))
    decoder = Graph(
        "decoder_model",
        step,
        {"input_ids": ids[:, 3:5], **later},
        {"input_ids": {0: "batch", 1: "tokens"}, **axes},
        tuple(outputs),
        variants=(
            *({"input_ids": ids[:, :1], **other} for other in states),
            {"input_ids": ids[:, :5], **state},
            {"input_ids": one, **later},
            after_tokens({"input_ids": one, **later}, model.config.text_config.max_position_embeddings - 1),
        ),
    )
    return [encoder, decoder]


def _state_axes(name: str, asked: bool) -> dict[int, str]:
    if name.startswith("past."):
        return {0: "batch", 2: "past"}
    if not asked:
        return {0: "batch"}
    return {0: "batch", 1: "sequence"} if name == "cross.mask" else {0: "batch", 2: "sequence"}


def _cross(layers: Sequence[Any], states: Tensor) -> Sequence[Pair]:
    """Keys and values of each layer's cross-attention."""
    from mmcompress.families._decoder_modules import split_heads

    pairs = []
    for layer in layers:
        one = layer.crossattention.self
        width = one.attention_head_size
        pairs.append((split_heads(one.key(states), width), split_heads(one.value(states), width)))
    return pairs


def traced(model: Any, task: str) -> list[Graph]:
    """One graph per tower: the picture tower, the text encoder and the decoder, as far as the task has them."""
    from mmcompress.families._blip_modules import AskedOfStates, Reader, Seen, TextEmbeds

    pictures, texts = {"pixel_values": sample_pictures(model)}, sample_texts(model)
    vision = Seen(model).eval()
    seen = vision(**pictures).detach()
    found = [Graph("vision_model", vision, pictures, {}, ())]
    if task in ("vqa", "match", "pretrained"):
        found.append(Graph("text_encoder", AskedOfStates(model).eval(), {"seen": seen, **texts}, {}, ()))
    if task == "retrieval":
        found.append(Graph("text_encoder", TextEmbeds(model).eval(), texts, {}, ()))
    if task in ("caption", "vqa"):
        states = found[-1].module(**found[-1].inputs).detach() if task == "vqa" else seen
        inputs = {"input_ids": sample_tokens(model), "states": states}
        found.append(Graph("text_decoder", Reader(model).eval(), inputs, {}, ()))
    return found


def sample_pictures(model: Any, batch: int = 3) -> Tensor:
    """Noise of the model's picture size: float32 [b, 3, h, w], the same at every call."""
    import torch

    size = model.config.vision_config.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def sample_tokens(model: Any, batch: int = 3, length: int = 8) -> Tensor:
    """Random tokens, int64 [b, s]."""
    import torch

    size = model.config.text_config.vocab_size
    return torch.randint(0, size, (batch, length), generator=torch.Generator().manual_seed(0))


def _longest_texts(model: Any) -> dict[str, Tensor]:
    return sample_texts(model, length=model.config.text_config.max_position_embeddings)


def sample_texts(model: Any, batch: int = 3, length: int = 8) -> dict[str, Tensor]:
    """Random texts of different lengths, padded: ``input_ids`` and ``attention_mask``, int64 [b, s]."""
    import torch

    length = min(length, model.config.text_config.max_position_embeddings)
    lengths = torch.tensor([[max(1, length - row)] for row in range(batch)])
    mask = (torch.arange(length)[None] < lengths).long()
    return {"input_ids": sample_tokens(model, batch, length) * mask, "attention_mask": mask}
