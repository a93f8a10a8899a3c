"""What the ``blip`` family does with its models in torch: classes, students, outputs, what can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError
from mmcompress.families import Prunable
from mmcompress.families._blip_processing import FILES
from mmcompress.families._students import Tower
from mmcompress.families._transformers import Architecture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_CLASSES = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "match": "BlipForImageTextRetrieval",
    "retrieval": "BlipForImageTextRetrieval",
    "pretrained": "BlipForImageTextRetrieval",
}
_TEXT_STACKS = {
    "caption": ("text_decoder.bert.encoder.layer",),
    "vqa": ("text_encoder.encoder.layer", "text_decoder.bert.encoder.layer"),
    "match": ("text_encoder.encoder.layer",),
    "retrieval": ("text_encoder.encoder.layer",),
    "pretrained": ("text_encoder.encoder.layer",),
}


def architecture(task: str) -> Architecture:
    """The class of a task, and its files."""
    return Architecture("blip", {"blip": _CLASSES[task]}, FILES, check=_check, sdpa=False)


def _check(folder: Path, model: Any) -> None:
    from mmcompress.families._images import read_image_settings
    from mmcompress.families._texts import load_tokenizer

    size = model.config.vision_config.image_size
    given = read_image_settings(folder).output_size
    if given != (size, size):
        raise InputError(f"{folder}: the picture settings give {given}, the model takes {(size, size)}")
    text = model.config.text_config
    highest = max(load_tokenizer(folder).get_vocab(with_added_tokens=True).values(), default=-1)
    highest = max(highest, text.bos_token_id, text.sep_token_id)
    if highest >= text.vocab_size:
        raise InputError(
            f"{folder / 'tokenizer.json'}: does not fit the model: token ids up to {highest},"
            f" the model knows {text.vocab_size}"
        )


def towers(task: str) -> tuple[Tower, ...]:
    """The picture tower, and the text towers, which one part of the configuration describes."""
    vision = ("vision_config", "num_hidden_layers"), ("vision_config", "intermediate_size")
    text = ("text_config", "num_hidden_layers"), ("text_config", "intermediate_size")
    first, *others = _TEXT_STACKS[task]
    return (
        Tower("vision", "vision_model.encoder.layers", *vision, "mlp.fc1", "mlp.fc2"),
        Tower("text", first, *text, "intermediate.dense", "output.dense", tuple(others)),
    )


def mask_cross_attention(model: Any) -> None:
    """Let cross-attention see its mask, in place.

    transformers 5.23 hands the mask of the encoder's states to the layer under the name of the other mask, where
    cross-attention does not look: a padded question would be answered otherwise than alone.
    """

    def hand_on(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("encoder_hidden_states") is not None and kwargs.get("encoder_attention_mask") is None:
            kwargs = {**kwargs, "encoder_attention_mask": kwargs.get("attention_mask")}
        return args, kwargs

    for name, module in model.named_modules():
        if name.endswith(".crossattention.self"):
            module.register_forward_pre_hook(hand_on, with_kwargs=True)


# --- training ------------------------------------------------------------------------------------------------------


def outputs(model: Any, task: str, batch: Mapping[str, Tensor], want: frozenset[str], scale: float) -> dict[str, Any]:
    """The outputs of a task by name."""
    hidden = "vision.hidden_states" in want
    seen = model.vision_model(pixel_values=batch["pixel_values"], output_hidden_states=hidden)
    result: dict[str, Any] = {}
    if hidden:
        result["vision.hidden_states"] = tuple(seen.hidden_states[1:])
    if not want - {"vision.hidden_states"}:
        return result
    if task in ("caption", "vqa"):
        result.update(_written(model, task, batch, seen.last_hidden_state))
    elif task == "match":
        result["fusion.logits"] = match_logits(
            model, seen.last_hidden_state, batch["input_ids"], batch["attention_mask"]
        )
    else:
        if "fusion.logits" in want:
            result["fusion.logits"] = pairs_match_logits(model, seen.last_hidden_state, batch)
        result["vision.embeds"] = image_embeds(model, seen.last_hidden_state)
        result["text.embeds"] = text_embeds(model, batch["input_ids"], batch["attention_mask"])
        result["fusion.logit_scale"] = result["vision.embeds"].new_full((), scale)
    return result


def _written(model: Any, task: str, batch: Mapping[str, Tensor], seen: Tensor) -> dict[str, Any]:
    from mmcompress.families._targets import IGNORED

    states, mask = seen, None
    if task == "vqa":
        mask = batch["attention_mask"]
        states = question_states(model, seen, batch["input_ids"], mask)
    logits = model.text_decoder(
        input_ids=batch["decoder_input_ids"],
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        use_cache=False,
    ).logits
    return {"decoder.logits": logits, "decoder.mask": (batch["labels"] != IGNORED).long()}


def question_states(model: Any, seen: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    """What a text [b, s] means with a picture's states [b, t, d]: [b, s, d]."""
    states: Tensor = model.text_encoder(
        input_ids=input_ids, attention_mask=mask, encoder_hidden_states=seen
    ).last_hidden_state
    return states


def match_logits(model: Any, seen: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Whether a text fits a picture: [b, 2], the second is yes."""
    logits: Tensor = model.itm_head(question_states(model, seen, input_ids, mask)[:, 0])
    return logits


def pairs_match_logits(model: Any, seen: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Whether texts fit pictures with states [b, t, d]: [2 b, 2], each with its own text, then with the next example's."""
    import torch

    texts = [torch.cat([batch[name], batch[name].roll(-1, 0)]) for name in ("input_ids", "attention_mask")]
    return match_logits(model, torch.cat([seen, seen]), *texts)


def fits(batch: Mapping[str, Tensor]) -> Tensor:
    """Which of the pairs of :func:`pairs_match_logits` fit, [2 b]: one's own text, and a next one that reads the same."""
    import torch

    ids = batch["input_ids"]
    same = (ids == ids.roll(-1, 0)).all(dim=1)
    return torch.cat([torch.ones_like(same), same]).long()


def image_embeds(model: Any, seen: Tensor) -> Tensor:
    """L2-normalised embeddings of pictures by their states [b, t, d], in FP32."""
    from torch.nn.functional import normalize

    return normalize(model.vision_proj(seen[:, 0]).float(), dim=-1)


def text_embeds(model: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """L2-normalised embeddings of texts [b, s] without a picture, in FP32."""
    from torch.nn.functional import normalize

    states = model.text_encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
    return normalize(model.text_proj(states[:, 0]).float(), dim=-1)


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any, task: str) -> list[Prunable]:
    """By layer: feed-forward units everywhere, heads where query, key and value are layers of their own.

    The cross-attention of a model for retrieval is in no graph of it, and stays.
    """
    found = [
        Prunable(f"vision.layers.{index}.feed_forward", "vision", f"vision_model.encoder.layers.{index}.mlp.fc1", None)
        for index in range(len(model.vision_model.encoder.layers))
    ]
    for stack in _TEXT_STACKS[task]:
        tower = stack.partition(".")[0]
        for index, layer in enumerate(model.get_submodule(stack)):
            for name in ("attention",) if task == "retrieval" else ("attention", "crossattention"):
                inner = f"{stack}.{index}.{name}.self"
                found.append(
                    Prunable(
                        block=f"{tower}.layers.{index}.{name}",
                        tower=tower,
                        root=f"{inner}.query",
                        heads=int(getattr(layer, name).self.num_attention_heads),
                        together=(f"{inner}.key", f"{inner}.value"),
                        head_attributes={inner: ("num_attention_heads", "all_head_size")},
                    )
                )
            root = f"{stack}.{index}.intermediate.dense"
            found.append(Prunable(f"{tower}.layers.{index}.feed_forward", tower, root, None))
    return found
