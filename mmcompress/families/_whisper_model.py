"""What the ``whisper`` family does with a model in torch: outputs, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError, UsageError
from mmcompress.families import Graph, Prunable
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._sounds import read_log_mel_settings
from mmcompress.families._students import Tower
from mmcompress.families._texts import TOKENIZER_FILES, load_tokenizer
from mmcompress.families._transformers import Architecture
from mmcompress.families._whisper_text import GENERATION

if TYPE_CHECKING:
    from torch import Tensor

PROCESSING_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES, GENERATION, "normalizer.json")
PARTS = ("encoder", "decoder")
TOWERS = tuple(
    Tower(part, f"model.{part}.layers", (f"{part}_layers",), (f"{part}_ffn_dim",)) for part in ("encoder", "decoder")
)


def _check(folder: Path, model: Any) -> None:
    """Raise InputError where the sounds' settings or the tokenizer do not fit the model."""
    config, sounds = model.config, read_log_mel_settings(folder)
    frames = 2 * config.max_source_positions
    if (sounds.mels, sounds.frames) != (config.num_mel_bins, frames):
        raise InputError(
            f"{folder}: the settings for sounds give {sounds.mels} bands and {sounds.frames} frames"
            f"\n  expected {config.num_mel_bins} (num_mel_bins) and {frames} (twice max_source_positions)"
        )
    size = load_tokenizer(folder).get_vocab_size()
    if size > config.vocab_size:
        raise InputError(
            f"{folder / 'tokenizer.json'}: {size} tokens, and the model knows {config.vocab_size}"
            "\n  expected the tokenizer of this checkpoint"
        )


ARCHITECTURE = Architecture("whisper", {"whisper": "WhisperForConditionalGeneration"}, PROCESSING_FILES, check=_check)


def outputs(model: Any, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """The wanted outputs by name; the decoder reads the tokens of the transcript (teacher forcing).

    Raises:
        InputError: a sound that is longer than a chunk: nobody knows which part of the text belongs to which.
        UsageError: attention maps of a model that was loaded with another attention than eager.
    """
    features = batch["input_features"]
    if "decoder_input_ids" in batch and len(features) != len(batch["decoder_input_ids"]):
        raise InputError(
            "a sound is longer than what the model hears at a time, and cannot be trained on with one text"
            "\n  Split it, with its text, or leave it out."
        )
    result: dict[str, Any] = {}
    of_encoder, of_decoder = (
        {name.removeprefix(f"{part}.") for name in want if name.startswith(f"{part}.")} for part in PARTS
    )
    encoded = model.model.encoder(features, **_recorded(of_encoder))
    states = encoded.last_hidden_state
    result.update(_layers("encoder", encoded, of_encoder, len(model.model.encoder.layers)))
    if "mask" in of_encoder:  # the encoder hears silence too: all frames count
        result["encoder.mask"] = states.new_ones(states.shape[:2])
    if of_decoder:
        decoded = model.model.decoder(
            input_ids=batch["decoder_input_ids"],
            encoder_hidden_states=states,
            use_cache=False,
            **_recorded(of_decoder),
        )
        result.update(_layers("decoder", decoded, of_decoder, len(model.model.decoder.layers)))
        if "logits" in of_decoder:
            result["decoder.logits"] = model.proj_out(decoded.last_hidden_state)
        if "mask" in of_decoder:
            result["decoder.mask"] = (batch["labels"] >= 0).to(states.dtype)
    return result


def _recorded(want: set[str]) -> dict[str, bool]:
    return {f"output_{what}": what in want for what in ("hidden_states", "attentions")}


def _layers(part: str, given: Any, want: set[str], layers: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if "hidden_states" in want:
        # transformers' first entry is the embeddings, before any layer.
        result[f"{part}.hidden_states"] = tuple(given.hidden_states[1:])
    if "attentions" in want:
        if len(given.attentions) < layers or any(item is None for item in given.attentions):
            raise UsageError(
                f"{part}.attentions come from eager attention alone\n  Set `attention: eager` in the stage."
            )
        result[f"{part}.attentions"] = tuple(given.attentions)
    return result


def prunable(model: Any) -> list[Prunable]:
    """Heads of every attention, also those over the encoder's states, and feed-forward units."""
    found: list[Prunable] = []
    for part in PARTS:
        for index, layer in enumerate(model.get_submodule(f"model.{part}.layers")):
            base, block = f"model.{part}.layers.{index}", f"{part}.layers.{index}"
            for name in ("self_attn", "encoder_attn"):
                if not hasattr(layer, name):
                    continue
                attention = f"{base}.{name}"
                found.append(
                    Prunable(
                        block=f"{block}.{'attention' if name == 'self_attn' else 'cross_attention'}",
                        tower=part,
                        root=f"{attention}.q_proj",
                        heads=int(getattr(layer, name).num_heads),
                        together=(f"{attention}.k_proj", f"{attention}.v_proj"),
                        head_attributes={attention: ("num_heads", "embed_dim")},
                    )
                )
            found.append(Prunable(block=f"{block}.feed_forward", tower=part, root=f"{base}.fc1", heads=None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any) -> list[Graph]:
    """``encoder_model``, which also gives what the decoder starts from, and ``decoder_model``, a step with its cache."""
    import torch

    from mmcompress.families._decoder_modules import after_tokens
    from mmcompress.families._whisper_modules import decoder_start, decoder_step

    features = sample_features(model)
    start, one = decoder_start(model), decoder_step(model)
    with torch.no_grad():
        state = start(input_features=features)
    # Before a step the past holds what the steps before gave.
    steps = [_step_inputs(model, one, state, past) for past in (3, 0, 1)]
    steps.append(after_tokens(steps[0], model.config.max_target_positions - 1))
    prompt = _step_inputs(model, one, state, 0, tokens=4)
    axes = {name: {0: "batch"} for name in steps[0]}
    axes["input_ids"] = {0: "batch", 1: "sequence"}
    axes.update({name: {0: "batch", 2: "past"} for name in steps[0] if name.startswith("past.")})
    layers = range(len(model.model.decoder.layers))
    kinds = ("key", "value")
    present = tuple(f"present.{layer}.{kind}" for layer in layers for kind in kinds)
    begins = tuple(f"{part}.{layer}.{kind}" for part in ("cross", "past") for layer in layers for kind in kinds)
    return [
        Graph("encoder_model", start, {"input_features": features}, {"input_features": {0: "batch"}}, begins),
        Graph(
            "decoder_model",
            one,
            _step_inputs(model, one, state, 3, tokens=2),
            axes,
            ("logits", *present),
            variants=(*steps, prompt),
        ),
    ]


def _step_inputs(model: Any, one: Any, state: Mapping[str, Tensor], past: int, tokens: int = 1) -> dict[str, Tensor]:
    """Inputs of a step after ``past`` tokens."""
    import torch

    generator = torch.Generator().manual_seed(past)
    shape = (len(next(iter(state.values()))), past + tokens)
    ids = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    grown = dict(state)
    if past:
        with torch.no_grad():
            outputs = one(input_ids=ids[:, :past], **state)
        grown.update({f"past.{n.removeprefix('present.')}": v for n, v in outputs.items() if n != "logits"})
    return {"input_ids": ids[:, past:].contiguous(), **grown}


def sample_features(model: Any, batch: int = 3) -> Tensor:
    """Noise of the size of a chunk: float32 [b, mels, frames], the same at every call."""
    import torch

    config = model.config
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def traced(model: Any, tokens: int = 16) -> list[Graph]:
    """The encoder, and the decoder over a whole text at once, without a cache: what pruning traces and counts."""
    import torch

    from mmcompress.families._whisper_modules import ForcedDecoder, PlainEncoder

    features = sample_features(model)
    generator = torch.Generator().manual_seed(0)
    shape = (len(features), min(tokens, model.config.max_target_positions))
    ids = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    states = torch.randn(len(features), model.config.max_source_positions, model.config.d_model, generator=generator)
    return [
        Graph(
            "encoder_model",
            PlainEncoder(model).eval(),
            {"input_features": features},
            {"input_features": {0: "batch"}},
            ("states",),
        ),
        Graph(
            "decoder_model",
            ForcedDecoder(model).eval(),
            {"input_ids": ids, "states": states},
            {"input_ids": {0: "batch", 1: "sequence"}, "states": {0: "batch"}},
            ("logits",),
        ),
    ]
