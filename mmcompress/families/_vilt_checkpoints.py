"""Model folders of the ``vilt`` family: read, with a new head where one is wanted, load, save, cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError
from mmcompress.families import FromTeacher, _students, _transformers
from mmcompress.families._checkpoints import read_weights, write_weights
from mmcompress.families._images import PREPROCESSOR_FILES, read_object
from mmcompress.families._texts import TOKENIZER_FILES, load_tokenizer
from mmcompress.families._vilt_processing import read_patch_settings
from mmcompress.store import read_json, write_json

if TYPE_CHECKING:
    import torch

    from mmcompress.families.vilt import Vilt

CLASSES = {
    "vqa": "ViltForQuestionAnswering",
    "retrieval": "ViltForImageAndTextRetrieval",
    "nlvr": "ViltForImagesAndTextClassification",
    "mlm": "ViltForMaskedLM",
}
HEADS = {"vqa": "classifier.", "retrieval": "rank_output.", "nlvr": "classifier.", "mlm": "mlm_score."}
TOWERS = (
    _students.Tower(
        "encoder",
        "vilt.encoder.layer",
        count=("num_hidden_layers",),
        units=("intermediate_size",),
        up="intermediate.dense",
        down="output.dense",
    ),
)
_KINDS = "vilt.embeddings.token_type_embeddings.weight"
_OLD_NAMES = {r"^mlm_score\.bias$": "mlm_score.decoder.bias"}
"""Older versions of transformers held the words' bias beside their layer too."""


def architecture(family: Vilt) -> _transformers.Architecture:
    """The class of the family's task; its head may be missing where a new one is wanted."""
    new = family.head == "new"
    return _transformers.Architecture(
        "vilt",
        {"vilt": CLASSES[family.task]},
        (*PREPROCESSOR_FILES, *TOKENIZER_FILES),
        check=lambda folder, model: check(family, folder, model),
        new=(HEADS[family.task],) if new else (),
        dropped=tuple(HEADS.values()) if new else (),
        renamed=_OLD_NAMES,
        sdpa=False,
    )


def write_checkpoint(family: Vilt, folder: Path, seed: int) -> None:
    """Write the checkpoint that a component names; see :meth:`mmcompress.families.vilt.Vilt.write`."""
    changes: dict[str, Any] = {}
    if family.labels is not None:
        names = read_labels(family.labels)
        changes["id2label"] = {str(number): name for number, name in enumerate(names)}
        changes["label2id"] = {name: number for number, name in enumerate(names)}
    if family.head == "new" and family.task == "nlvr":
        changes["num_images"] = family.images
    _transformers.write_model(family, architecture(family), folder, seed, changes)
    if family.head == "new":
        _renew_head(family, folder, seed)
        _add_picture_kinds(folder, len(family.pictures))


def read_labels(file: Path) -> list[str]:
    """Names of classes, from a JSON list.

    Raises:
        InputError: no list of two or more different texts.
    """
    names = read_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < 2:
        raise InputError(f"{file}: expected a JSON list of the names of two or more classes")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file}: {twice!r} stands twice")
    return names


def _renew_head(family: Vilt, folder: Path, seed: int) -> None:
    """Start the head at random, also where the checkpoint's own has its shape: that one is of other classes."""
    fresh = _transformers.build(folder, architecture(family), seed=seed).state_dict()
    head = {name: tensor for name, tensor in fresh.items() if name.startswith(HEADS[family.task])}
    write_weights({**read_weights(folder), **head}, folder)


def _add_picture_kinds(folder: Path, pictures: int) -> None:
    """Give further pictures of a text a kind of their own, which begins as that of the first."""
    import torch

    weights = read_weights(folder)
    missing = 1 + pictures - len(weights[_KINDS])
    if missing > 0:
        weights[_KINDS] = torch.cat([weights[_KINDS], weights[_KINDS][1:2].repeat(missing, 1)])
        config = read_object(folder / "config.json")
        write_json(folder / "config.json", {**config, "modality_type_vocab_size": len(weights[_KINDS])})
        write_weights(weights, folder)


def check(family: Vilt, folder: Path, model: Any) -> None:
    """Raise InputError where the configuration is not supported, or processing files do not fit the model."""
    config, where = model.config, folder / "config.json"
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise InputError(f"{where}: expected one number as image_size and patch_size: square pictures and patches")
    settings = read_patch_settings(folder, config.patch_size)
    short, long = (side // config.patch_size for side in settings.canvas)
    if 0 <= config.max_image_length < short * long:
        raise InputError(
            f"{where}: max_image_length {config.max_image_length} draws patches at random from pictures of up to"
            f" {short * long}\n  expected -1, all of them"
        )
    highest = max(load_tokenizer(folder).get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= config.vocab_size:
        raise InputError(
            f"{folder / 'tokenizer.json'}: does not fit the model: token ids up to {highest},"
            f" the model knows {config.vocab_size}"
        )
    if family.task == "nlvr" and config.num_images != family.images:
        raise InputError(f"{where}: a model of {config.num_images} pictures\n  Set `images: {config.num_images}`.")
    family.processor(folder)


# --- loading, saving, cutting --------------------------------------------------------------------------------------


def load_model(family: Vilt, folder: Path) -> torch.nn.Module:
    """See :meth:`mmcompress.families.vilt.Vilt.load`."""
    model: torch.nn.Module = _transformers.load_model(folder, architecture(family))
    return model


def save_model(family: Vilt, model: torch.nn.Module, source: Path, folder: Path) -> None:
    """See :meth:`mmcompress.families.vilt.Vilt.save`."""
    _transformers.save_model(model, source, folder, architecture(family))


def write_student(family: Vilt, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
    """See :meth:`mmcompress.families.vilt.Vilt.student`."""
    _students.write_student(teacher, cut, folder, seed, architecture(family), TOWERS)
