"""What the ``wav2vec2`` family does with a model in torch: outputs, losses, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError, UsageError
from mmcompress.families import Graph, Prunable
from mmcompress.families._wav2vec2_processing import WaveSettings, frame_count, receptive_field

if TYPE_CHECKING:
    from torch import Tensor

GRAPH = "encoder_model"
PROVIDES = frozenset({f"encoder.{what}" for what in ("logits", "mask", "hidden_states", "attentions")})


def outputs(model: Any, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """``encoder.logits`` ([b, t, c] or [b, c]) and what else is wanted; ``hidden_states`` are those after each layer.

    Raises:
        UsageError: attention maps of a model that was loaded with another attention than eager.
    """
    import torch

    from mmcompress.families._wav2vec2_modules import frame_mask

    values, counts = batch["input_values"], batch.get("sample_counts")
    settings: WaveSettings = model.sound_settings
    mask = None
    if settings.masked and counts is not None:
        mask = (torch.arange(values.shape[1], device=values.device) < counts[:, None]).long()
    given = model(
        values,
        attention_mask=mask,
        output_hidden_states="encoder.hidden_states" in want,
        output_attentions="encoder.attentions" in want,
    )
    result: dict[str, Any] = {"encoder.logits": given.logits}
    if "encoder.mask" in want or given.logits.ndim == 3:
        frames = frame_count(values.shape[1], model.config.conv_kernel, model.config.conv_stride)
        everything = values.new_full((len(values),), values.shape[1], dtype=torch.int64)
        result["encoder.mask"] = frame_mask(model.config, everything if counts is None else counts, frames)
    if "encoder.hidden_states" in want:
        # transformers' first entry is what goes into the first layer.
        result["encoder.hidden_states"] = tuple(given.hidden_states[1:])
    if "encoder.attentions" in want:
        if not given.attentions or given.attentions[0] is None:
            raise UsageError(
                "encoder.attentions come from eager attention alone\n  Set `attention: eager` in the stage."
            )
        result["encoder.attentions"] = tuple(given.attentions)
    return result


# --- losses --------------------------------------------------------------------------------------------------------


def ctc_loss(logits: Tensor, mask: Tensor, labels: Tensor, blank: int) -> Tensor:
    """Connectionist temporal classification in FP32 (Graves et al. 2006, equation 7): a mean over examples.

    The negative log probability of each text is divided by its length, as ``torch.nn.CTCLoss`` does by default.

    Args:
        logits: [b, t, c].
        mask: which frames count, [b, t].
        labels: int64 [b, s], -1 after the last character.
        blank: number of the blank.

    Raises:
        InputError: a text that needs more frames than its sound has.
    """
    from torch.nn.functional import ctc_loss as torch_ctc_loss
    from torch.nn.functional import log_softmax

    frames, lengths = mask.sum(dim=1).long(), (labels >= 0).sum(dim=1)
    # Between equal characters there must be a blank.
    needed = lengths + ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)).sum(dim=1)
    if bool((needed > frames).any()):
        worst = int((needed - frames).argmax())
        raise InputError(
            f"a text of {int(lengths[worst])} characters needs {int(needed[worst])} frames, and its sound has"
            f" {int(frames[worst])}\n  Leave out examples whose text is not what is spoken, or is spoken too fast."
        )
    log_probabilities = log_softmax(logits.float(), dim=-1).transpose(0, 1)
    return torch_ctc_loss(log_probabilities, labels.clamp(min=0), frames, lengths, blank=blank)


def task_loss(given: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
    """CTC for logits of frames, cross entropy for logits of examples."""
    from torch.nn.functional import cross_entropy

    logits: Tensor = given["encoder.logits"]
    if logits.ndim == 2:
        return cross_entropy(logits.float(), batch["labels"])
    return ctc_loss(logits, given["encoder.mask"], batch["labels"], int(batch["blank"][0]))


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any) -> list[Prunable]:
    """Attention heads and feed-forward units of each layer."""
    found: list[Prunable] = []
    base = f"{model.base_model_prefix}.encoder.layers"
    for index, layer in enumerate(model.get_submodule(base)):
        attention = f"{base}.{index}.attention"
        found.append(
            Prunable(
                block=f"encoder.layers.{index}.attention",
                tower="encoder",
                root=f"{attention}.q_proj",
                heads=int(layer.attention.num_heads),
                together=(f"{attention}.k_proj", f"{attention}.v_proj"),
                # head_dim and scaling stay: whole heads are cut.
                head_attributes={attention: ("num_heads", "embed_dim")},
            )
        )
        root = f"{base}.{index}.feed_forward.intermediate_dense"
        found.append(Prunable(f"encoder.layers.{index}.feed_forward", "encoder", root, None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any, max_seconds: float) -> list[Graph]:
    """One graph for sounds of any length up to ``max_seconds``, with samples of three lengths."""
    from mmcompress.families._wav2vec2_modules import SpeechEncoder

    settings: WaveSettings = model.sound_settings
    transcribes = hasattr(model, "lm_head")
    counted = transcribes or settings.masked
    config = model.config
    least = receptive_field(config.conv_kernel, config.conv_stride)
    step = prod(config.conv_stride)
    longest = max(least, round(max_seconds * settings.rate))

    def sample(*counts: int) -> dict[str, Tensor]:
        return sample_sounds(counts, counted)

    dynamic: dict[str, dict[int, str]] = {"input_values": {0: "batch", 1: "samples"}}
    if counted:
        dynamic["sample_counts"] = {0: "batch"}
    frames = [least + step * count for count in (23, 15, 9)]
    graph = Graph(
        name=GRAPH,
        module=SpeechEncoder(model, settings.masked).eval(),
        inputs=sample(*frames),
        dynamic=dynamic,
        outputs=("logits", "frames") if transcribes else ("logits",),
        variants=(sample(least), sample(least + 6 * step + 1, least + 3 * step), sample(longest)),
    )
    return [graph]


def sample_sounds(counts: tuple[int, ...], counted: bool) -> dict[str, Tensor]:
    """Noise of so many samples each, filled up with zeros: the same at every call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(counts), max(counts), generator=generator)
    # Tones of different pitch, so that answers differ also where a model sees little of noise.
    time = torch.arange(max(counts)) / 16_000
    for row, count in enumerate(counts):
        values[row] = 0.5 * values[row] + torch.sin(2 * torch.pi * 300.0 * (row + 1) * time)
        values[row, count:] = 0.0
    inputs = {"input_values": values}
    if counted:
        inputs["sample_counts"] = torch.tensor(counts, dtype=torch.int64)
    return inputs
