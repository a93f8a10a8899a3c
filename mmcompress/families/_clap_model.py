"""What the ``clap`` family does with a model in torch: folders, outputs, losses, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError, UsageError
from mmcompress.families import FromTeacher, Graph, Prunable
from mmcompress.families._clap_processing import read_clap_settings
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._students import Tower, evenly_spaced
from mmcompress.families._texts import TOKENIZER_FILES
from mmcompress.families._transformers import Architecture

if TYPE_CHECKING:
    from torch import Tensor

PROVIDES = frozenset(
    {"audio.embeds", "text.embeds", "text.hidden_states", "text.mask", "fusion.logit_scale", "fusion.logit_scale_text"}
)
TEXT = Tower(
    "text",
    "text_model.encoder.layer",
    ("text_config", "num_hidden_layers"),
    ("text_config", "intermediate_size"),
    up="intermediate.dense",
    down="output.dense",
)


def _check(folder: Path, model: Any) -> None:
    """Refuse sound settings that the model was not made for."""
    settings, audio = read_clap_settings(folder), model.config.audio_config
    if settings.mels != audio.num_mel_bins:
        raise InputError(
            f"{folder}: spectrograms of {settings.mels} mel bands, and the model takes {audio.num_mel_bins}\n"
            "  expected the preprocessor_config.json of the checkpoint"
        )
    if settings.fused != bool(audio.enable_fusion):
        raise InputError(
            f"{folder}: truncation is {'fusion' if settings.fused else 'rand_trunc'}, and the model's enable_fusion is"
            f" {bool(audio.enable_fusion)}\n  expected the preprocessor_config.json of the checkpoint"
        )
    longest = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
    if settings.frames > longest:
        raise InputError(f"{folder}: spectrograms of {settings.frames} frames; the model takes at most {longest}")


ARCHITECTURE = Architecture("clap", {"clap": "ClapModel"}, (*PREPROCESSOR_FILES, *TOKENIZER_FILES), _check, sdpa=False)


def forget_resolutions(model: Any) -> None:
    """Set windows back to what the configuration says: a forward narrows those of the last stages to their pictures.

    It does so again at the next one; a structure would take it for something that was pruned.
    """
    config = model.config.audio_config
    for stage in model.audio_model.audio_encoder.layers:
        for index, block in enumerate(stage.blocks):
            block.window_size = config.window_size
            block.shift_size = 0 if index % 2 == 0 else config.window_size // 2


def deepest_stage(depths: list[int]) -> int:
    """The stage of the sound tower with the most layers: the one that is cut."""
    return depths.index(max(depths))


def audio_tower(config: Mapping[str, Any]) -> Tower:
    """The layers of the sound tower's deepest stage."""
    stage = deepest_stage(list(config["audio_config"]["depths"]))
    # The configuration counts the layers of all stages in one list.
    count: Any = ("audio_config", "depths", stage)
    return Tower("audio", f"audio_model.audio_encoder.layers.{stage}.blocks", count)


def paired_cut(cut: FromTeacher, have: int) -> FromTeacher:
    """A cut whose sound layers alternate as the teacher's do: every second one looks across its windows' borders.

    Raises:
        UsageError: an odd number of layers, or layers that do not alternate.
    """
    asked = cut.layers("audio")
    if asked is None:
        return cut
    if isinstance(asked, int):
        if asked % 2 or not 2 <= asked <= have:
            raise UsageError(
                f"audio_layers: {asked} is not possible\n  expected an even number from 2 to {have}: the layers of the"
                " deepest stage come in pairs"
            )
        asked = tuple(2 * pair + half for pair in evenly_spaced(have // 2, asked // 2) for half in (0, 1))
    elif any(layer % 2 != place % 2 for place, layer in enumerate(asked)):
        raise UsageError(f"audio_layers: {list(asked)} is not possible\n  expected even and odd ones in turn")
    return FromTeacher.model_validate({**cut.model_dump(), "audio_layers": asked})


# --- outputs and losses --------------------------------------------------------------------------------------------


def outputs(model: Any, batch: Mapping[str, Tensor], want: frozenset[str]) -> dict[str, Any]:
    """The wanted outputs by name; a tower of which nothing is wanted is not run. Embeddings are FP32 also under autocast."""
    from torch.nn.functional import normalize

    result: dict[str, Any] = {}
    if "audio.embeds" in want:
        given = model.audio_model(batch["input_features"], is_longer=batch.get("is_longer"))
        result["audio.embeds"] = normalize(model.audio_projection(given.pooler_output).float(), dim=-1)
    if any(name.startswith("text.") for name in want):
        mask = batch["attention_mask"]
        hidden = "text.hidden_states" in want
        given = model.text_model(batch["input_ids"], attention_mask=mask, output_hidden_states=hidden)
        result["text.embeds"] = normalize(model.text_projection(given.pooler_output).float(), dim=-1)
        result["text.mask"] = mask
        if hidden:
            result["text.hidden_states"] = tuple(given.hidden_states[1:])
    result["fusion.logit_scale"] = model.logit_scale_a.float().exp().reshape(())
    result["fusion.logit_scale_text"] = model.logit_scale_t.float().exp().reshape(())
    return result


def task_loss(given: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
    """Symmetric cross entropy, each direction at its own scale (CLAP, arXiv:2211.06687, equation 2).

    Texts that are equal token by token are positives of each other's sounds.
    """
    from torch.nn.functional import cross_entropy

    from mmcompress.families._clip_model import positives

    audio, text = given["audio.embeds"], given["text.embeds"]
    same = positives(batch["input_ids"]).to(audio.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    cosines = audio @ text.T
    of_sounds = cross_entropy(given["fusion.logit_scale"] * cosines, target)
    return (of_sounds + cross_entropy(given["fusion.logit_scale_text"] * cosines.T, target)) / 2


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any) -> list[Prunable]:
    """Feed-forward units of both towers, and heads of the text tower.

    Heads of the sound tower stay: each has a table of its own for the places within a window.
    """
    found: list[Prunable] = []
    for number, stage in enumerate(model.audio_model.audio_encoder.layers):
        for index in range(len(stage.blocks)):
            root = f"audio_model.audio_encoder.layers.{number}.blocks.{index}.intermediate.dense"
            found.append(Prunable(f"audio.stages.{number}.layers.{index}.feed_forward", "audio", root, None))
    for index, layer in enumerate(model.text_model.encoder.layer):
        base = f"text_model.encoder.layer.{index}"
        attention = f"{base}.attention.self"
        found.append(
            Prunable(
                block=f"text.layers.{index}.attention",
                tower="text",
                root=f"{attention}.query",
                heads=int(layer.attention.self.num_attention_heads),
                together=(f"{attention}.key", f"{attention}.value"),
                head_attributes={attention: ("num_attention_heads", "all_head_size")},
            )
        )
        found.append(Prunable(f"text.layers.{index}.feed_forward", "text", f"{base}.intermediate.dense", None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any) -> list[Graph]:
    """Both towers with sample inputs of three different examples."""
    from mmcompress.families._clap_modules import AudioEmbedder, ClapTextEmbedder

    sounds = sample_spectrograms(model)
    variants: tuple[dict[str, Tensor], ...] = ()
    if "is_longer" in sounds:
        variants = ({**sounds, "is_longer": ~sounds["is_longer"]},)
    audio = Graph(
        name="audio_model",
        module=AudioEmbedder(model).eval(),
        inputs=sounds,
        dynamic={key: {0: "batch"} for key in sounds},
        outputs=("audio_embeds",),
        variants=variants,
    )
    config = model.config.text_config
    longest = config.max_position_embeddings - config.pad_token_id - 1
    text = Graph(
        name="text_model",
        module=ClapTextEmbedder(model).eval(),
        inputs=sample_texts(model, 8),
        dynamic={key: {0: "batch", 1: "sequence"} for key in ("input_ids", "attention_mask")},
        outputs=("text_embeds",),
        variants=tuple(sample_texts(model, length) for length in (2, 7, longest)),
    )
    return [audio, text]


def sample_spectrograms(model: Any) -> dict[str, Tensor]:
    """Noise of different loudness and pitch as ``ClapSettings`` would make it; of fused models every second is longer."""
    import torch

    config, settings = model.config.audio_config, model.sound_settings
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4 if settings.fused else 1, settings.frames, config.num_mel_bins)
    slope = torch.linspace(-1.0, 1.0, config.num_mel_bins)
    tilt = torch.tensor([-20.0, 0.0, 20.0])[:, None, None, None] * slope
    inputs = {"input_features": 10.0 * torch.randn(shape, generator=generator) + tilt - 30.0}
    if settings.fused:
        inputs["is_longer"] = torch.tensor([[True], [False], [True]])
    return inputs


def sample_texts(model: Any, length: int) -> dict[str, Tensor]:
    """Random texts of different lengths, ended and padded."""
    import torch

    config = model.config.text_config
    generator = torch.Generator().manual_seed(0)
    special = 1 + max(config.pad_token_id, config.bos_token_id or 0, config.eos_token_id or 0)
    length = min(length, config.max_position_embeddings - config.pad_token_id - 1)
    ids = torch.randint(special, config.vocab_size, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(3):
        last = max(1, length - 1 - row)
        ids[row, 0], ids[row, last:] = config.bos_token_id or 0, config.pad_token_id
        mask[row, last:] = 0
    return {"input_ids": ids, "attention_mask": mask}
