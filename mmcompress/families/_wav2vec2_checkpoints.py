"""Model folders of the ``wav2vec2`` family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family, FromTeacher, _students, _transformers
from mmcompress.families._characters import BLANK, CHARACTER_FILES, read_characters, write_characters
from mmcompress.families._images import PREPROCESSOR_FILES, read_object
from mmcompress.families._students import Tower
from mmcompress.families._transformers import Architecture
from mmcompress.families._wav2vec2_processing import Task, read_wave_settings

FILES = (*PREPROCESSOR_FILES, *CHARACTER_FILES)
TOWERS = {
    prefix: Tower(
        "encoder",
        f"{prefix}.encoder.layers",
        ("num_hidden_layers",),
        ("intermediate_size",),
        up="feed_forward.intermediate_dense",
        down="feed_forward.output_dense",
    )
    for prefix in ("wav2vec2", "hubert")
}
_CHANGES = {
    # SpecAugment draws from numpy's own random state, which a resumed run cannot repeat, and layers that are left out
    # by chance have no hidden states to compare.
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
}
_UNUSED = tuple(f"{prefix}.masked_spec_embed" for prefix in TOWERS)
_PRETRAINING = ("quantizer.", "project_hid.", "project_q.")
_HEADS: dict[Task, tuple[str, ...]] = {
    "transcribe": ("lm_head.",),
    "classify": ("projector.", "classifier.", "layer_weights"),
}


def _check(folder: Path, model: Any) -> None:
    """Refuse what this family does not run, and files that do not fit the model."""
    config = model.config
    if getattr(config, "add_adapter", False) or getattr(config, "adapter_attn_dim", None) is not None:
        raise InputError(f"{folder}: models with adapters are not supported\n  expected add_adapter: false")
    read_wave_settings(folder)
    if not hasattr(model, "lm_head"):
        return
    characters = read_characters(folder)
    highest = max(characters.tokens, key=lambda token: characters.tokens[token])
    if characters.tokens[highest] >= config.vocab_size:
        raise InputError(
            f"{characters.origin}: the token {highest!r} has number {characters.tokens[highest]}, the model writes"
            f" {config.vocab_size}\n  expected the vocabulary that the model was trained with"
        )
    if characters.blank_id != config.pad_token_id:
        raise InputError(
            f"{characters.origin}: the padding token {characters.blank!r} has number {characters.blank_id}, and"
            f" config.json's pad_token_id is {config.pad_token_id}\n  expected the same: it is the model's blank"
        )


ARCHITECTURES: dict[Task, Architecture] = {
    "transcribe": Architecture(
        "wav2vec2",
        {"wav2vec2": "Wav2Vec2ForCTC", "hubert": "HubertForCTC"},
        FILES,
        _check,
        dropped=_UNUSED,
    ),
    "classify": Architecture(
        "wav2vec2",
        {"wav2vec2": "Wav2Vec2ForSequenceClassification", "hubert": "HubertForSequenceClassification"},
        PREPROCESSOR_FILES,
        _check,
        dropped=_UNUSED,
    ),
}


def write_checkpoint(family: Family, task: Task, new_head: Sequence[str] | None, folder: Path, seed: int) -> None:
    """Write the checkpoint that a component names; see :meth:`mmcompress.families.wav2vec2.Wav2vec2.write`."""
    architecture, changes = ARCHITECTURES[task], dict[str, Any](_CHANGES)
    if new_head is not None:
        other: Task = "classify" if task == "transcribe" else "transcribe"
        architecture = replace(
            architecture,
            files=PREPROCESSOR_FILES,
            new=_HEADS[task],
            dropped=(*_UNUSED, *_PRETRAINING, *_HEADS[other]),
        )
        if task == "transcribe":
            write_characters(new_head, folder)
            changes.update(vocab_size=len(new_head), pad_token_id=list(new_head).index(BLANK))
        else:
            changes.update(
                id2label={str(number): name for number, name in enumerate(new_head)},
                label2id={name: number for number, name in enumerate(new_head)},
                num_labels=len(new_head),
            )
    _transformers.write_model(family, architecture, folder, seed, changes)


def load_model(folder: Path, task: Task, attention: str) -> Any:
    """The model of a model folder; it knows how it is fed as ``sound_settings``."""
    model = _transformers.load_model(folder, ARCHITECTURES[task], attention)
    model.sound_settings = read_wave_settings(folder)
    return model


def write_student(teacher: Path, cut: FromTeacher, folder: Path, seed: int, task: Task) -> None:
    """Cut a student from the teacher's model folder.

    Raises:
        UsageError: a cut that the teacher does not allow.
    """
    config = read_object(teacher / "config.json")
    if cut.layers("encoder") is not None and task == "classify" and config.get("use_weighted_layer_sum"):
        raise UsageError(
            "encoder_layers: this teacher's classes are read from a weighted sum over all its layers\n"
            "  Cut encoder_feed_forward, or prune it."
        )
    tower = TOWERS[str(config["model_type"])]
    _students.write_student(teacher, cut, folder, seed, ARCHITECTURES[task], (tower,))
