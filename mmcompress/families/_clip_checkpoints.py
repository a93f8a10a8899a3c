"""Model folders of the ``clip`` family: read from any of its sources, load, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.component import nearest
from mmcompress.errors import InputError
from mmcompress.families import Family, _transformers
from mmcompress.families._checkpoints import copy_files, load_strictly, read_weights, source_folder, write_weights
from mmcompress.families._clip_towers import DUAL, TEXTS_OF_BERT
from mmcompress.families._images import PREPROCESSOR_FILES, ImageEncoder, read_image_settings, read_object
from mmcompress.families._structure import STRUCTURE
from mmcompress.families._texts import TOKENIZER_FILES, load_tokenizer
from mmcompress.store import write_json

if TYPE_CHECKING:
    from torch import Tensor

_CLASSES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "chinese_clip": "ChineseCLIPModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
ARCHITECTURE = _transformers.Architecture("clip", _CLASSES, (*PREPROCESSOR_FILES, *TOKENIZER_FILES))
_MODEL_TYPES = tuple(_CLASSES)
_CONVERTED = ("siglip2",)
RESNET_WIDTHS = (256, 512, 1024, 2048)
"""Of a ResNet whose configuration names none: ResNet-50's."""


def architecture_of(config: Mapping[str, Any]) -> _transformers.Architecture:
    """The classes that a configuration can be of; transformers refuses SDPA to a model that holds a ResNet."""
    resnet = (config.get("vision_config") or {}).get("model_type") == "resnet"
    return replace(ARCHITECTURE, sdpa=False) if resnet else ARCHITECTURE


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a ``CLIPModel`` or ``SiglipModel``: configuration, weights, and files still to be copied."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    files: Mapping[str, Mapping[str, Any]]
    """Files that take the place of the source's own, by name: JSON objects."""


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(family: Family, folder: Path, seed: int) -> None:
    """Write the checkpoint that a component names; see :meth:`mmcompress.families.clip.Clip.write`."""
    source = source_folder(family)
    base, file = (source.parent, source) if source.is_file() else (source, source / "config.json")
    if file.is_file() and read_object(file).get("model_type") in TEXTS_OF_BERT:
        write_dual(family, base, read_object(file), folder, seed)
        return
    if family.config is not None:
        _write_random(source, folder, seed)
        return
    checkpoint = _read(source)
    copy_files(source, folder, (STRUCTURE, *PREPROCESSOR_FILES, *TOKENIZER_FILES))
    for name, value in {**checkpoint.files, "config.json": checkpoint.config}.items():
        write_json(folder / name, value)
    _ensure_tokenizer(source, folder)
    model = build(folder)
    load_strictly(model, checkpoint.weights, str(source))
    check_processing(folder, model)
    write_weights(checkpoint.weights, folder)


def _read(source: Path) -> Checkpoint:
    config = read_object(source / "config.json") if (source / "config.json").is_file() else {}
    # Repositories of open_clip models may hold a config.json of timm's, which names no model_type.
    if (source / "open_clip_config.json").is_file() and "model_type" not in config:
        from mmcompress.families._clip_open_clip import read_open_clip

        return read_open_clip(source)
    if not config:
        raise InputError(f"{source}: no config.json\n  expected one, or an open_clip_config.json")
    check_model_type(config, str(source / "config.json"), (*_MODEL_TYPES, *_CONVERTED))
    if config["model_type"] == "siglip2":
        from mmcompress.families._clip_siglip2 import read_siglip2

        return read_siglip2(source, config)
    return Checkpoint(config=config, weights=read_weights(source), files={})


def check_model_type(config: Mapping[str, Any], where: str, known: tuple[str, ...] = _MODEL_TYPES) -> None:
    """Raise InputError when the family does not know the kind of model."""
    kind = str(config.get("model_type"))
    if kind not in known:
        raise InputError(
            f"{where}: the clip family knows no model_type {kind!r}{nearest(kind, known)}\n"
            f"  known: {', '.join((*_MODEL_TYPES, *_CONVERTED))}, and open_clip folders (open_clip_config.json)"
        )


def _write_random(source: Path, folder: Path, seed: int) -> None:
    import torch

    base, config = (source.parent, source) if source.is_file() else (source, source / "config.json")
    values = read_object(config)
    check_model_type(values, str(config))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", values)
    copy_files(base, folder, (*PREPROCESSOR_FILES, *TOKENIZER_FILES))
    _ensure_tokenizer(base, folder)
    model = build(folder, seed=seed)
    if values["model_type"] == "siglip":
        start_sigmoid(model)
    check_processing(folder, model)
    with torch.no_grad():
        write_weights(model.state_dict(), folder)


def start_sigmoid(model: Any) -> None:
    """SigLIP's initial scale 10 and bias -10 (arXiv:2303.15343, section 3.2); transformers starts at 1 and 0."""
    import math

    import torch

    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)


def _ensure_tokenizer(source: Path, folder: Path) -> None:
    """Build ``tokenizer.json`` from CLIP's BPE files, or BERT's list of pieces, where that is all there is."""
    if (folder / "tokenizer.json").is_file():
        return
    if (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        from transformers import CLIPTokenizer

        CLIPTokenizer.from_pretrained(source).save_pretrained(folder)
        return
    if (source / "vocab.txt").is_file():
        from transformers import BertTokenizer

        BertTokenizer.from_pretrained(source).save_pretrained(folder)
        return
    has = [name for name in ("spiece.model", "vocab.json", "merges.txt") if (source / name).is_file()]
    found = f" (it has {', '.join(has)} alone)" if has else ""
    raise InputError(
        f"{source}: no tokenizer.json{found}\n  expected tokenizer.json, vocab.json with merges.txt for CLIP, or vocab.txt"
        " for BERT; transformers writes one: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def check_processing(folder: Path, model: Any) -> None:
    """Raise InputError where the tokenizer or the pictures' settings do not fit the model."""
    vision, text = model.config.vision_config, model.config.text_config
    size = vision.image_size
    expected = (size, size) if isinstance(size, int) else tuple(size)
    given = read_image_settings(folder).output_size
    if given != expected:
        raise InputError(f"{folder}: the picture settings give {given}, the model takes {expected}")
    tokenizer = load_tokenizer(folder)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= text.vocab_size:
        raise InputError(
            f"{folder / 'tokenizer.json'}: does not fit the model: token ids up to {highest},"
            f" the model knows {text.vocab_size}"
        )
    if model.config.model_type == "clip" and text.eos_token_id != 2:
        ids = tokenizer.encode("a").ids
        if text.eos_token_id not in ids:
            raise InputError(
                f"{folder / 'tokenizer.json'}: ends no text with eos_token_id {text.eos_token_id}, where the model"
                f" reads its answer ('a' becomes {ids})"
            )


# --- dual encoders -------------------------------------------------------------------------------------------------


def write_dual(family: Family, source: Path, config: Mapping[str, Any], folder: Path, seed: int) -> None:
    """Write a Chinese-CLIP or dual encoder folder, read by transformers, which knows the names of older versions.

    Raises:
        InputError: towers that are not known here, or what :func:`mmcompress.families._transformers.write_model` raises.
    """
    changes: dict[str, Any] = {}
    if config["model_type"] == "vision-text-dual-encoder":
        changes = _dual_changes(config, source)
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(source, folder, (*PREPROCESSOR_FILES, *TOKENIZER_FILES))
    _ensure_tokenizer(source, folder)
    # Older checkpoints hold what follows from the shapes.
    dropped = ("text_model.embeddings.position_ids",)
    architecture = replace(architecture_of(config), check=check_processing, dropped=dropped)
    _transformers.write_model(family, architecture, folder, seed, changes)


def _dual_changes(config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """What transformers and our graphs read of a ResNet's configuration, and the ResNet's own lacks."""
    for tower, known in DUAL.items():
        kind = str((config.get(f"{tower}_config") or {}).get("model_type"))
        if kind not in known:
            raise InputError(
                f"{source}: a dual encoder whose {tower} model is of model_type {kind!r}{nearest(kind, known)}\n"
                f"  known: {', '.join(known)}"
            )
    vision = config["vision_config"]
    if vision["model_type"] != "resnet":
        return {}
    size = ImageEncoder(read_image_settings(source)).fixed_size
    widths = vision.get("hidden_sizes") or RESNET_WIDTHS
    return {"vision_config": {**vision, "hidden_size": widths[-1], "image_size": list(size)}}


# --- loading and saving --------------------------------------------------------------------------------------------


def build(folder: Path, attention: str = "sdpa", seed: int = 0) -> Any:
    """The untrained model of a folder's config.json and structure.json, in FP32; leaves torch's random state alone.

    Raises:
        InputError: a configuration that transformers refuses.
    """
    architecture = architecture_of(read_object(folder / "config.json"))
    return _with_head(_transformers.build(folder, architecture, attention, seed), str(folder / "config.json"))


def build_from_config(config: Mapping[str, Any], where: str, attention: str = "sdpa", seed: int = 0) -> Any:
    """The untrained model of a configuration, in FP32."""
    check_model_type(config, where)
    return _with_head(_transformers.build_from_config(config, where, architecture_of(config), attention, seed), where)


def _with_head(model: Any, where: str) -> Any:
    if model.config.model_type == "siglip" and not model.config.vision_config.vision_use_head:
        raise InputError(f"{where}: vision_use_head is false; without its pooling head the model gives no embeddings")
    return model


def load_model(folder: Path, attention: str) -> Any:
    """See :meth:`mmcompress.families.clip.Clip.load`."""
    model = build(folder, attention)
    load_strictly(model, read_weights(folder), str(folder))
    return model


def save_model(model: Any, source: Path, folder: Path) -> None:
    """See :meth:`mmcompress.families.clip.Clip.save`."""
    _transformers.save_model(model, source, folder, architecture_of(read_object(source / "config.json")))
