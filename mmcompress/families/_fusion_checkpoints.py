"""Model folders of the ``fusion`` family: written from a config.json, built, loaded, saved, cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.component import JSON, digest_path
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family, FromTeacher
from mmcompress.families._checkpoints import copy_files, load_strictly, read_weights, source_folder, write_weights
from mmcompress.families._fusion_config import FusionConfig, Input, parse_config, read_config
from mmcompress.families._fusion_parts import Bert, Conv1d, Intermediate, Mlp, Recurrent, ResNet, ViT
from mmcompress.families._images import PREPROCESSOR_FILES, read_image_settings, read_object
from mmcompress.families._structure import (
    STRUCTURE,
    apply_structure,
    describe_structure,
    read_structure,
    write_structure,
)
from mmcompress.families._students import Tower, choose_layers, cut_units, renumber
from mmcompress.families._texts import TOKENIZER_FILES, load_tokenizer, read_text_settings
from mmcompress.families._transformers import ATTENTION, offline
from mmcompress.store import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from mmcompress.families._fusion_encoder_modules import InputEncoder
    from mmcompress.families._fusion_modules import FusionModel

_CLASSES = {"resnet": "ResNetModel", "vit": "ViTModel", "bert": "BertModel"}
_LAYERS = {"vit": "layers", "bert": "encoder.layer"}
_UP = {"vit": "mlp.fc1", "bert": "intermediate.dense"}
_DOWN = {"vit": "mlp.fc2", "bert": "output.dense"}


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(family: Family, folder: Path, seed: int) -> None:
    """Write the checkpoint that a component names; see :meth:`mmcompress.families.fusion.Fusion.write`."""
    source = source_folder(family)
    base, file = (source.parent, source) if source.is_file() else (source, source / "config.json")
    if not file.is_file():
        raise InputError(f"{source}: no config.json\n  expected that of a fusion model")
    values, where = read_object(file), str(file)
    parse_config(values, where)
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(base, folder, TOKENIZER_FILES)
    if family.config is None:
        copy_files(base, folder, (STRUCTURE,))
        write_json(folder / "config.json", values)
        model = load_model(base, "sdpa")
    else:
        values, weights = _resolve(values, base, folder, where)
        write_json(folder / "config.json", values)
        model = build_folder(folder, seed=seed)
        for name, state in weights.items():
            load_strictly(model.encoder(name).encoder.model, state, f"{where}: the encoder of {name}")  # type: ignore[arg-type]
    check_tokenizer(folder, read_config(folder))
    write_weights(model.state_dict(), folder)


def _resolve(
    values: Mapping[str, Any], base: Path, folder: Path, where: str
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A configuration with everything that pretrained encoders know, and their weights by input."""
    resolved: dict[str, Any] = json.loads(json.dumps(values))
    weights: dict[str, dict[str, Tensor]] = {}
    for entry, item in zip(resolved["inputs"], parse_config(values, where).inputs, strict=True):
        encoder = item.encoder
        if not isinstance(encoder, (ResNet, ViT, Bert)) or encoder.pretrained is None:
            continue
        source = _pretrained_folder(encoder.pretrained, encoder.revision, base)
        config, weights[item.name] = _read_pretrained(source, encoder.kind, encoder.config or {})
        entry["encoder"]["config"] = config
        if entry["kind"] in ("picture", "film") and "size" not in entry and "picture" not in entry:
            entry["picture"] = read_image_settings(source).model_dump(mode="json")
        if entry["kind"] == "text":
            _adopt_tokenizer(source, folder, item.name)
    return resolved, weights


def _pretrained_folder(pretrained: str, revision: str | None, base: Path) -> Path:
    if revision is not None:
        return source_folder(Family(hub=pretrained, revision=revision))
    return source_folder(Family(path=base / pretrained))


def _read_pretrained(source: Path, kind: str, changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the encoder's weights of a checkpoint of transformers; its heads are left where they are."""
    import transformers

    if not any(source.glob("*.safetensors")):
        read_weights(source)  # tells what is there instead
    config = {**read_object(source / "config.json"), **changes}
    if config.get("model_type") != kind:
        raise InputError(f"{source}: a checkpoint of {config.get('model_type')!r}; the encoder is to be {kind!r}")
    model_class: Any = getattr(transformers, _CLASSES[kind])
    pooling = {} if kind == "resnet" else {"add_pooling_layer": False}
    with offline():
        try:
            model, info = model_class.from_pretrained(
                source,
                config=model_class.config_class.from_dict(config),
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                **pooling,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{source}: transformers cannot load it: {str(error).strip().splitlines()[0]}") from None
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise InputError(f"{source}: {len(lost)} weights of the encoder are missing: {', '.join(lost[:4])}")
    return json.loads(model.config.to_json_string(use_diff=False)), dict(model.float().state_dict())


def _adopt_tokenizer(source: Path, folder: Path, name: str) -> None:
    """The tokenizer of a pretrained encoder, where none lies beside config.json."""
    if not (folder / "tokenizer.json").is_file():
        copy_files(source, folder, TOKENIZER_FILES)
    elif (source / "tokenizer.json").is_file() and digest_path(source / "tokenizer.json") != digest_path(
        folder / "tokenizer.json"
    ):
        raise InputError(
            f"{source}: the tokenizer of {name}'s encoder is another than the model's tokenizer.json\n"
            "  All texts of a model share one; remove it from beside config.json, or take encoders of one vocabulary."
        )


def check_tokenizer(folder: Path, config: FusionConfig) -> None:
    """Raise InputError where a text's tokenizer is missing, or knows more tokens or a longer text than its encoder."""
    texts = [item for item in config.inputs if item.kind == "text"]
    if not texts:
        return
    size = load_tokenizer(folder).get_vocab_size()
    for item in texts:
        read_text_settings(folder, item.max_length)
        if not isinstance(item.encoder, Bert):
            continue
        known = item.encoder.config or {}
        rows, positions = int(known.get("vocab_size", 30522)), int(known.get("max_position_embeddings", 512))
        if size > rows:
            raise InputError(
                f"{folder / 'tokenizer.json'}: {size} tokens, but the encoder of {item.name} knows {rows}\n"
                "  expected the tokenizer that the encoder was trained with"
            )
        if item.max_length > positions:
            raise InputError(f"{item.name}: max_length {item.max_length}, but its encoder has {positions} positions")


# --- building ------------------------------------------------------------------------------------------------------


def build(config: FusionConfig, where: str, attention: str = "sdpa", seed: int = 0, vocabulary: int = 0) -> FusionModel:
    """The untrained model of a configuration, in FP32 and evaluation mode; leaves torch's random state alone.

    Raises:
        InputError: a configuration of an encoder that transformers refuses.
        UsageError: an unknown kind of attention.
    """
    import torch

    from mmcompress.families._fusion_modules import FusionModel

    if attention not in ATTENTION:
        raise UsageError(f"unknown attention {attention!r}; known: {', '.join(ATTENTION)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {
            item.name: _build_encoder(item, f"{where}: {item.name}", attention, config.missing > 0, vocabulary)
            for item in config.inputs
        }
        return FusionModel(config, encoders).eval()


def _build_encoder(item: Input, where: str, attention: str, may_miss: bool, vocabulary: int) -> InputEncoder:
    from torch import nn

    from mmcompress.families import _fusion_encoder_modules as modules

    settings = item.encoder
    standardise, embedding, over_time, channels = None, None, None, 0
    if item.kind in ("sound", "series", "table", "features"):
        channels = item.channels_in
        standardise = modules.Standardise(channels, item.mean, item.std)
    if isinstance(settings, (Recurrent, Conv1d)) and item.kind == "text":
        first = settings.width if isinstance(settings, Recurrent) else settings.channels[0]
        channels = settings.embedding or first
        embedding = nn.Embedding(vocabulary, channels)
    encoder: nn.Module
    if isinstance(settings, (ResNet, ViT, Bert)):
        encoder = _build_transformers(settings, where, attention)
    elif isinstance(settings, Recurrent):
        encoder = modules.RecurrentEncoder(settings.kind, channels, settings.width, settings.layers, settings.dropout)
    elif isinstance(settings, Conv1d):
        encoder = modules.ConvEncoder(channels, settings.channels, settings.kernel, settings.stride)
    else:
        assert isinstance(settings, Mlp)
        encoder = modules.MlpEncoder(channels, settings.hidden, settings.width)
    if item.kind == "film" and item.over_time == "gru":
        width: Any = encoder.width
        over_time = modules.RecurrentEncoder("gru", width, width, 1, 0.0)
    return modules.InputEncoder(
        encoder,
        standardise=standardise,
        embedding=embedding,
        over_time=over_time,
        film=item.kind == "film",
        frozen=settings.frozen,
        may_miss=may_miss,
    )


def _build_transformers(settings: ResNet | ViT | Bert, where: str, attention: str) -> Any:
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    from mmcompress.families._fusion_encoder_modules import TransformersEncoder

    model_class: Any = getattr(transformers, _CLASSES[settings.kind])
    own = {} if settings.kind == "resnet" else {"add_pooling_layer": False, "attn_implementation": attention}
    try:
        parsed = model_class.config_class.from_dict(dict(settings.config or {}))
        model = model_class._from_config(parsed, dtype=torch.float32, **own)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: transformers refuses this configuration of {settings.kind}: {error}") from None
    width = parsed.hidden_sizes[-1] if settings.kind == "resnet" else parsed.hidden_size
    return TransformersEncoder(settings.kind, model, int(width))


def build_folder(folder: Path, attention: str = "sdpa", seed: int = 0) -> FusionModel:
    """The untrained model of a folder's config.json, tokenizer and structure.json."""
    config = read_config(folder)
    model = build(config, str(folder / "config.json"), attention, seed, vocabulary_of(folder, config))
    structure = read_structure(folder)
    if structure is not None:
        apply_structure(model, structure, folder / STRUCTURE)
    return model


def vocabulary_of(folder: Path, config: FusionConfig) -> int:
    """Tokens of a folder's tokenizer; 0 where no input is a text."""
    if not any(item.kind == "text" for item in config.inputs):
        return 0
    return int(load_tokenizer(folder).get_vocab_size())


def load_model(folder: Path, attention: str = "sdpa") -> FusionModel:
    """The model of a model folder, in FP32 and evaluation mode.

    Raises:
        InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
    """
    model = build_folder(folder, attention)
    load_strictly(model, read_weights(folder), str(folder))
    return model


def save_model(model: FusionModel, source: Path, folder: Path) -> None:
    """Write a model that came from the model folder ``source``: its files, the weights in FP32, what pruning changed."""
    import torch

    config = read_config(source)
    with torch.device("meta"):
        reference = build(config, str(source / "config.json"), vocabulary=vocabulary_of(source, config))
    copy_files(source, folder, TOKENIZER_FILES)
    shutil.copyfile(source / "config.json", folder / "config.json")
    write_structure(folder, describe_structure(model, reference))
    write_weights(model.state_dict(), folder)


# --- students ------------------------------------------------------------------------------------------------------


def towers(config: FusionConfig) -> list[Tower]:
    """The stacks of layers that a student may have fewer of, or with narrower feed-forward blocks."""
    found = [
        Tower(
            item.name,
            f"{item.name}_encoder.encoder.model.{_LAYERS[item.encoder.kind]}",
            ("num_hidden_layers",),
            ("intermediate_size",),
            _UP[item.encoder.kind],
            _DOWN[item.encoder.kind],
        )
        for item in config.inputs
        if item.encoder.kind in _LAYERS
    ]
    return found


def write_student(teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
    """See :meth:`mmcompress.families.fusion.Fusion.student`."""
    if cut.init not in ("inherit", "random"):
        raise UsageError(f"init: {cut.init!r} is unknown\n  expected inherit (the teacher's weights) or random")
    if (teacher / STRUCTURE).is_file():
        raise UsageError(
            f"{teacher}: a student cannot be cut from a pruned model, whose layers differ in width\n"
            "  cut it from the model before pruning, and prune the student"
        )
    values, where = read_object(teacher / "config.json"), str(teacher / "config.json")
    config = parse_config(values, where)
    model = load_model(teacher)
    state: dict[str, Tensor] = dict(model.state_dict())
    named = []
    for tower in towers(config):
        section = next(entry for entry in values["inputs"] if entry["name"] == tower.name)["encoder"]
        section["config"] = dict(section.get("config") or {})
        kept = choose_layers(tower.name, cut.layers(tower.name), len(model.get_submodule(tower.layers)))  # type: ignore[arg-type]
        units = cut.size(tower.name, "feed_forward")
        if units is not None:
            cut_units(state, tower, units, section["config"])
        if cut.layers(tower.name) is not None or units is not None:
            named.append(f"{tower.name}_encoder.")
        state = renumber(state, tower.layers, kept)
        section["config"]["num_hidden_layers"] = len(kept)
    if isinstance(config.fusion, Intermediate):
        kept = choose_layers("fusion", cut.layers("fusion"), config.fusion.layers)
        state = renumber(state, "fusion.layers", kept)
        values["fusion"]["layers"] = len(kept)
        named += ["fusion."] if cut.layers("fusion") is not None else []
    student = build(parse_config(values, where), where, seed=seed, vocabulary=vocabulary_of(teacher, config))
    if cut.init == "random":
        fresh = dict(student.state_dict())
        starts = tuple(named) or ("",)
        state = {name: fresh[name] if name.startswith(starts) else state[name] for name in fresh}
    own = student.state_dict()
    # A layer that becomes the last is read by what is tagged alone.
    state = {name: tensor for name, tensor in state.items() if name in own or not name.startswith("fusion.layers.")}
    load_strictly(student, state, f"student of {teacher}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", values)
    copy_files(teacher, folder, TOKENIZER_FILES)
    write_weights(student.state_dict(), folder)


def identity_beside(config: Path) -> JSON:
    """Digests of what a ``config`` file reads besides itself: the tokenizer, and pretrained encoders in folders."""
    found: dict[str, JSON] = {name: digest_path(config.parent / name) for name in TOKENIZER_FILES}
    for entry in read_object(config).get("inputs", []):
        encoder = entry.get("encoder", {}) if isinstance(entry, dict) else {}
        if isinstance(encoder, dict) and encoder.get("pretrained") and encoder.get("revision") is None:
            folder = config.parent / str(encoder["pretrained"])
            found[f"pretrained {entry.get('name')}"] = {
                file.name: digest_path(file)
                for file in sorted(folder.glob("*"))
                if file.suffix == ".safetensors" or file.name in ("config.json", *PREPROCESSOR_FILES, *TOKENIZER_FILES)
            }
    return found
