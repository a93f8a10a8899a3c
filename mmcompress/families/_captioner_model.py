"""What the ``captioner`` family does with a ``VisionEncoderDecoderModel`` in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError
from mmcompress.families import Graph, Prunable
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._students import Tower
from mmcompress.families._texts import TOKENIZER_FILES
from mmcompress.families._transformers import Architecture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mmcompress.families._decoder_modules import Pair

DECODERS = ("gpt2", "bert")
ENCODERS = ("vit", "deit")


def _check(folder: Path, model: Any) -> None:
    from mmcompress.families._images import read_image_settings

    kinds = (model.config.encoder.model_type, model.config.decoder.model_type)
    if kinds[0] not in ENCODERS or kinds[1] not in DECODERS:
        raise InputError(
            f"{folder}: a captioner of {kinds[0]} and {kinds[1]}\n"
            f"  known: encoders {', '.join(ENCODERS)} and decoders {', '.join(DECODERS)}"
        )
    size = model.config.encoder.image_size
    expected = (size, size) if isinstance(size, int) else tuple(size)
    given = read_image_settings(folder).output_size
    if given != expected:
        raise InputError(f"{folder}: the picture settings give {given}, the model takes {expected}")


ARCHITECTURE = Architecture(
    "captioner",
    {"vision-encoder-decoder": "VisionEncoderDecoderModel"},
    (*PREPROCESSOR_FILES, *TOKENIZER_FILES, "generation_config.json"),
    check=_check,
)


TOWERS = (
    Tower(
        "encoder",
        "encoder.layers",
        ("encoder", "num_hidden_layers"),
        ("encoder", "intermediate_size"),
        "mlp.fc1",
        "mlp.fc2",
    ),
    Tower("decoder", "decoder.transformer.h", ("decoder", "n_layer")),
    Tower("decoder", "decoder.bert.encoder.layer", ("decoder", "num_hidden_layers")),
)
"""The stacks of layers that a student may have fewer of; a model has one of both decoders."""


def _layers(model: Any) -> Any:
    decoder = model.decoder
    return decoder.transformer.h if model.config.decoder.model_type == "gpt2" else decoder.bert.encoder.layer


# --- training ------------------------------------------------------------------------------------------------------


def outputs(model: Any, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """The wanted outputs, teacher-forced; ``hidden_states`` are those after each layer."""
    from mmcompress.families._targets import IGNORED

    hidden = bool(want & {"encoder.hidden_states", "decoder.hidden_states"})
    encoded = model.encoder(pixel_values=batch["pixel_values"], output_hidden_states=hidden)
    result: dict[str, Any] = {}
    if any(name.startswith("decoder.") for name in want):
        decoded = model.decoder(
            input_ids=batch["decoder_input_ids"],
            # Places after the end are fed the end token, which may be the padding token too: nothing before them sees them.
            attention_mask=batch["decoder_input_ids"].new_ones(batch["decoder_input_ids"].shape),
            encoder_hidden_states=projected(model, encoded.last_hidden_state),
            output_hidden_states=hidden,
            use_cache=False,
        )
        result["decoder.logits"] = decoded.logits
        result["decoder.mask"] = (batch["labels"] != IGNORED).long()
        if hidden:
            result["decoder.hidden_states"] = tuple(decoded.hidden_states[1:])
    if hidden:
        result["encoder.hidden_states"] = tuple(encoded.hidden_states[1:])
    return result


def projected(model: Any, states: Tensor) -> Tensor:
    """The encoder's states [b, t, d] at the decoder's width."""
    projection = getattr(model, "enc_to_dec_proj", None)
    result: Tensor = states if projection is None else projection(states)
    return result


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any) -> list[Prunable]:
    """Heads and feed-forward units, by layer."""
    found: list[Prunable] = []
    for index, layer in enumerate(model.encoder.layers):
        base = f"encoder.layers.{index}"
        found.append(
            Prunable(
                block=f"encoder.layers.{index}.attention",
                tower="encoder",
                root=f"{base}.attention.q_proj",
                heads=int(layer.attention.num_attention_heads),
                together=(f"{base}.attention.k_proj", f"{base}.attention.v_proj"),
                head_attributes={f"{base}.attention": ("num_attention_heads",)},
            )
        )
        found.append(Prunable(f"encoder.layers.{index}.feed_forward", "encoder", f"{base}.mlp.fc1", None))
    if model.config.decoder.model_type == "bert":
        found += _bert_decoder(model)
    return found


def _bert_decoder(model: Any) -> list[Prunable]:
    found = []
    for index, layer in enumerate(model.decoder.bert.encoder.layer):
        base, block = f"decoder.bert.encoder.layer.{index}", f"decoder.layers.{index}"
        for name in ("attention", "crossattention"):
            inner = getattr(layer, name).self
            found.append(
                Prunable(
                    block=f"{block}.{name}",
                    tower="decoder",
                    root=f"{base}.{name}.self.query",
                    heads=int(inner.num_attention_heads),
                    together=(f"{base}.{name}.self.key", f"{base}.{name}.self.value"),
                    head_attributes={f"{base}.{name}.self": ("num_attention_heads", "all_head_size")},
                )
            )
        found.append(Prunable(f"{block}.feed_forward", "decoder", f"{base}.intermediate.dense", None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any) -> list[Graph]:
    """The encoder with what the decoder starts from, and one step of the decoder."""
    import torch

    from mmcompress.families._captioner_modules import PictureEncoder
    from mmcompress.families._decoder_modules import DecoderStart, DecoderStep, after_tokens

    layers = _layers(model)
    start = DecoderStart(
        PictureEncoder(model), lambda states: _cross(model, states), _heads(model), list(layers)
    ).eval()
    step = DecoderStep(
        model.decoder,
        len(layers),
        lambda ids, cache, stand_in, mask: (
            model.decoder(input_ids=ids, past_key_values=cache, encoder_hidden_states=stand_in, use_cache=True).logits
        ),
    ).eval()
    pictures, ids = sample_pictures(model), sample_tokens(model)
    with torch.inference_mode():
        state = start(pixel_values=pictures)
        outputs = step(input_ids=ids[:, :3], **state)
    later = {**state, **{f"past.{k.partition('.')[2]}": v.clone() for k, v in outputs.items() if k != "logits"}}
    axes = {k: {0: "batch", 2: "past"} if k.startswith("past.") else {0: "batch"} for k in state}
    encoder = Graph("encoder_model", start, {"pixel_values": pictures}, {"pixel_values": {0: "batch"}}, tuple(state))
    decoder = Graph(
        "decoder_model",
        step,
        {"input_ids": ids[:, 3:5], **later},
        {"input_ids": {0: "batch", 1: "sequence"}, **axes},
        tuple(outputs),
        variants=(
            {"input_ids": ids[:, :1], **state},
            {"input_ids": ids[:, :5], **state},
            {"input_ids": ids[:, 3:4], **later},
            after_tokens({"input_ids": ids[:, 3:4], **later}, model.config.decoder.max_position_embeddings - 1),
        ),
    )
    return [encoder, decoder]


def traced(model: Any) -> list[Graph]:
    """The encoder, and the decoder over captions of eight tokens."""
    from mmcompress.families._captioner_modules import CaptionReader, PictureEncoder

    pictures, ids = sample_pictures(model), sample_tokens(model)
    encoder = PictureEncoder(model).eval()
    states = encoder(pixel_values=pictures).detach()
    found = [Graph("encoder_model", encoder, {"pixel_values": pictures}, {}, ())]
    if model.config.decoder.model_type == "bert":
        inputs = {"input_ids": ids, "states": states}
        found.append(Graph("decoder_model", CaptionReader(model).eval(), inputs, {}, ()))
    return found


def _heads(model: Any) -> list[tuple[int, int]]:
    """Number and width of the heads of each layer's self-attention."""
    if model.config.decoder.model_type == "gpt2":
        return [(layer.attn.num_heads, layer.attn.head_dim) for layer in _layers(model)]
    inner = [layer.attention.self for layer in _layers(model)]
    return [(one.num_attention_heads, one.attention_head_size) for one in inner]


def _cross(model: Any, states: Tensor) -> Sequence[Pair]:
    """Keys and values of each layer's cross-attention."""
    from mmcompress.families._decoder_modules import split_heads

    pairs = []
    for layer in _layers(model):
        if model.config.decoder.model_type == "gpt2":
            attention = layer.crossattention
            keys, values = attention.c_attn(states).split(attention.split_size, dim=2)
            width = attention.head_dim
        else:
            attention = layer.crossattention.self
            keys, values = attention.key(states), attention.value(states)
            width = attention.attention_head_size
        pairs.append((split_heads(keys, width), split_heads(values, width)))
    return pairs


def sample_pictures(model: Any, batch: int = 3) -> Tensor:
    """Noise of the model's picture size: float32 [b, c, h, w], the same at every call."""
    import torch

    config = model.config.encoder
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))


def sample_tokens(model: Any, batch: int = 3, length: int = 8) -> Tensor:
    """Random tokens, int64 [b, s]."""
    import torch

    return torch.randint(
        0, model.config.decoder.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)
    )
