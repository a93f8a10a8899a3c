"""Students of the ``clip`` family, cut from their teacher: fewer layers, narrower towers, its weights.

A transformer's layers read from and write to one residual stream, so a channel of the stream is kept or dropped in
all of them at once; heads and feed-forward units are inner channels of one layer and chosen there. Kept is what has
the largest norm; the order of the channels stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import UsageError
from mmcompress.families import FromTeacher, _students
from mmcompress.families._checkpoints import copy_files, load_strictly, write_weights
from mmcompress.families._clip_checkpoints import architecture_of, build_from_config, load_model, start_sigmoid
from mmcompress.families._clip_towers import LAYOUTS, TEXTS_OF_BERT, TOWERS
from mmcompress.families._images import PREPROCESSOR_FILES, read_object
from mmcompress.families._structure import STRUCTURE
from mmcompress.families._students import choose_layers
from mmcompress.families._texts import TOKENIZER_FILES
from mmcompress.store import write_json

if TYPE_CHECKING:
    from torch import Tensor

_PROJECTIONS = {"vision": "visual_projection.", "text": "text_projection."}

_STREAM, _HEADS, _PACKED, _UNITS, _EMBEDS, _ALL = "stream", "heads", "packed", "units", "embeds", "all"
_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"embeddings\.(class_embedding|patch_embedding\.bias)", (_STREAM,)),
    (r"embeddings\.patch_embedding\.weight", (_STREAM, _ALL, _ALL, _ALL)),
    (r"embeddings\.(position|token)_embedding\.weight", (_ALL, _STREAM)),
    (r"(pre_layrnorm|post_layernorm|final_layer_norm)\.\w+", (_STREAM,)),
    (r"encoder\.layers\.\d+\.layer_norm[12]\.\w+", (_STREAM,)),
    (r"encoder\.layers\.\d+\.self_attn\.[qkv]_proj\.weight", (_HEADS, _STREAM)),
    (r"encoder\.layers\.\d+\.self_attn\.[qkv]_proj\.bias", (_HEADS,)),
    (r"encoder\.layers\.\d+\.self_attn\.out_proj\.weight", (_STREAM, _HEADS)),
    (r"encoder\.layers\.\d+\.self_attn\.out_proj\.bias", (_STREAM,)),
    (r"encoder\.layers\.\d+\.mlp\.fc1\.weight", (_UNITS, _STREAM)),
    (r"(encoder\.layers\.\d+|head)\.mlp\.fc1\.bias", (_UNITS,)),
    (r"encoder\.layers\.\d+\.mlp\.fc2\.weight", (_STREAM, _UNITS)),
    (r"encoder\.layers\.\d+\.mlp\.fc2\.bias", (_STREAM,)),
    # SigLIP's pooling head writes into the space of the embeddings, which the head of the texts shares.
    (r"head\.probe", (_ALL, _ALL, _STREAM)),
    (r"head\.attention\.in_proj_weight", (_PACKED, _STREAM)),
    (r"head\.attention\.in_proj_bias", (_PACKED,)),
    (r"head\.attention\.out_proj\.weight", (_EMBEDS, _HEADS)),
    (r"head\.mlp\.fc1\.weight", (_UNITS, _EMBEDS)),
    (r"head\.mlp\.fc2\.weight", (_EMBEDS, _UNITS)),
    (r"head\.(attention\.out_proj\.bias|layernorm\.\w+|mlp\.fc2\.bias|bias)", (_EMBEDS,)),
    (r"head\.weight", (_EMBEDS, _STREAM)),
)
"""What each axis of a tower's weights counts, by the name below the tower; packed are the heads of q, k and v in turn."""


@dataclass(frozen=True)
class TowerCut:
    """What is left of a tower, resolved."""

    layers: tuple[int, ...]
    width: int
    heads: int
    feed_forward: int
    named: bool
    """Whether the user asked for any change here."""


def write_student(teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
    """See :meth:`mmcompress.families.clip.Clip.student`."""
    kinds = read_object(teacher / "config.json")
    if kinds.get("model_type") in TEXTS_OF_BERT:
        towers = [tower for name in TOWERS if (tower := _tower(name, kinds, cut)) is not None]
        _students.write_student(teacher, cut, folder, seed, architecture_of(kinds), towers)
        return
    if cut.init not in ("inherit", "random"):
        raise UsageError(f"init: {cut.init!r} is unknown\n  expected inherit (the teacher's weights) or random")
    if (teacher / STRUCTURE).is_file():
        raise UsageError(
            f"{teacher}: a student cannot be cut from a pruned model, whose layers differ in width\n"
            "  cut it from the model before pruning, and prune the student"
        )
    model = load_model(teacher, "sdpa")
    cuts = {tower: _resolve(model, tower, cut) for tower in TOWERS}
    config = _student_config(model, cuts)
    student = build_from_config(config, str(teacher / "config.json"), seed=seed)
    random = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    inherited = _cut_weights(model, cuts)
    load_strictly(student, _mix(student, inherited, random, cuts, cut.init), f"student of {teacher}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    copy_files(teacher, folder, (*PREPROCESSOR_FILES, *TOKENIZER_FILES))
    write_weights(student.state_dict(), folder)


def _tower(tower: str, config: Mapping[str, Any], cut: FromTeacher) -> _students.Tower | None:
    """A tower of a dual encoder, whose width stays; None for one that has no layers to choose from.

    Raises:
        UsageError: a cut that it does not allow.
    """
    section = config[f"{tower}_config"]
    default = f"{config['model_type']}_{tower}_model"
    kind = str(section.get("model_type") or default)
    layout = LAYOUTS[kind]
    asked = sorted(name for name in cut.named() if name.startswith(f"{tower}_"))
    if layout is None:
        if asked:
            raise UsageError(
                f"{', '.join(asked)}: the {tower} tower is a {kind}, whose stages differ in width and size: it is kept whole\n"
                f"  Leave {asked[0]} out, or train a smaller {kind} by its own config."
            )
        return None
    if f"{tower}_width" in asked:
        raise UsageError(
            f"{tower}_width: the width of a {kind} tower cannot be cut\n"
            f"  Expected {tower}_layers or {tower}_feed_forward; `prune` cuts heads and feed-forward units."
        )
    return _students.Tower(
        tower,
        f"{tower}_model.{layout.layers}",
        count=(f"{tower}_config", "num_hidden_layers"),
        units=(f"{tower}_config", "intermediate_size"),
        up=layout.up,
        down=layout.down,
    )


def _mix(
    student: Any, inherited: dict[str, Tensor], random: dict[str, Tensor], cuts: Mapping[str, TowerCut], init: str
) -> dict[str, Tensor]:
    """Inherited weights, with random ones in the named towers (or everywhere) where ``init`` says so."""
    if init == "inherit":
        return inherited
    named = [tower for tower in TOWERS if cuts[tower].named] or list(TOWERS)
    if len(named) == len(TOWERS):
        if student.config.model_type == "siglip":
            start_sigmoid(student)
            random.update({name: tensor.clone() for name, tensor in student.state_dict().items() if "logit" in name})
        return random
    prefixes = tuple(prefix for tower in named for prefix in (f"{tower}_model.", _PROJECTIONS[tower]))
    return {name: random[name] if name.startswith(prefixes) else tensor for name, tensor in inherited.items()}


# --- what is left --------------------------------------------------------------------------------------------------


def _resolve(model: Any, tower: str, cut: FromTeacher) -> TowerCut:
    config = getattr(model.config, f"{tower}_config")
    layers, width, units = cut.layers(tower), cut.size(tower, "width"), cut.size(tower, "feed_forward")
    head = config.hidden_size // config.num_attention_heads
    if width is not None and not (head <= width <= config.hidden_size and width % head == 0):
        raise UsageError(
            f"{tower}_width: {width} is not possible: the teacher's width is {config.hidden_size} in heads of {head}\n"
            f"  expected a multiple of {head} from {head} to {config.hidden_size}"
        )
    if units is not None and not 1 <= units <= config.intermediate_size:
        raise UsageError(f"{tower}_feed_forward: {units} is not possible\n  expected 1 to {config.intermediate_size}")
    width = config.hidden_size if width is None else width
    return TowerCut(
        layers=choose_layers(tower, layers, config.num_hidden_layers),
        width=width,
        heads=width // head,
        feed_forward=config.intermediate_size if units is None else units,
        named=any(name.startswith(f"{tower}_") for name in cut.named()),
    )


def _student_config(model: Any, cuts: Mapping[str, TowerCut]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    for tower, cut in cuts.items():
        config[f"{tower}_config"].update(
            num_hidden_layers=len(cut.layers),
            hidden_size=cut.width,
            num_attention_heads=cut.heads,
            intermediate_size=cut.feed_forward,
        )
    if config["model_type"] == "siglip":
        config["text_config"]["projection_size"] = cuts["vision"].width
    return config


# --- weights -------------------------------------------------------------------------------------------------------


def _cut_weights(model: Any, cuts: Mapping[str, TowerCut]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = model.state_dict()
    embeds = _embeds(state, cuts) if model.config.model_type == "siglip" else None
    result = {name: tensor for name, tensor in state.items() if name in ("logit_scale", "logit_bias")}
    for tower in TOWERS:
        prefix = f"{tower}_model."
        weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        cut, head = cuts[tower], _head_size(model, tower)
        stream = _largest(_stream_scores(weights), cut.width)
        for name, tensor in weights.items():
            place = re.match(r"encoder\.layers\.(\d+)\.", name)
            if place and int(place[1]) not in cut.layers:
                continue
            kept = {_STREAM: stream, _EMBEDS: embeds, **_inner(weights, name, cut, head)}
            for axis, kind in enumerate(_axes(name)):
                index = kept.get(kind)
                tensor = tensor if index is None else tensor.index_select(axis, index)
            new = f"encoder.layers.{cut.layers.index(int(place[1]))}.{name[place.end() :]}" if place else name
            result[prefix + new] = tensor.contiguous()
        projection = _PROJECTIONS[tower] + "weight"
        if projection in state:
            result[projection] = state[projection].index_select(1, stream)
    return result


def _axes(name: str) -> tuple[str, ...]:
    for pattern, axes in _AXES:
        if re.fullmatch(pattern, name):
            return axes
    raise ValueError(f"no axes are known for the weight {name}")


def _head_size(model: Any, tower: str) -> int:
    config = getattr(model.config, f"{tower}_config")
    return int(config.hidden_size // config.num_attention_heads)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest scores, in rising order."""
    return scores.topk(count).indices.sort().values


def _square_norms(tensor: Tensor, axis: int) -> Tensor:
    return tensor.double().square().movedim(axis, 0).flatten(1).sum(dim=1)


def _stream_scores(weights: Mapping[str, Tensor]) -> Tensor:
    """Per channel of the stream, its share of the squared norm of each matrix, summed over the matrices."""
    return _shares((name, tensor, _axes(name)) for name, tensor in weights.items())


def _shares(items: Any, kind: str = _STREAM) -> Tensor:
    total: Any = 0
    for _, tensor, axes in items:
        if kind in axes and tensor.ndim > 1:
            norms = _square_norms(tensor, axes.index(kind))
            total = total + norms / norms.sum().clamp_min(1e-30)
    result: Tensor = total
    return result


def _embeds(state: Mapping[str, Tensor], cuts: Mapping[str, TowerCut]) -> Tensor:
    """The channels of SigLIP's shared space that stay: as many as the picture tower is wide."""
    heads = [(name, tensor) for name, tensor in state.items() if re.match(r"(vision|text)_model\.head\.", name)]
    items = ((name, tensor, _axes(name.split(".", 1)[1])) for name, tensor in heads)
    return _largest(_shares(items, _EMBEDS), cuts["vision"].width)


def _inner(weights: Mapping[str, Tensor], name: str, cut: TowerCut, head: int) -> dict[str, Tensor]:
    """Kept head channels and feed-forward units of the layer (or pooling head) that a weight belongs to."""
    base = re.match(r"(encoder\.layers\.\d+|head)\.", name)
    if base is None or f"{base[1]}.mlp.fc1.weight" not in weights:
        return {}
    units = [_square_norms(weights[f"{base[1]}.mlp.{each}.weight"], axis) for axis, each in enumerate(("fc1", "fc2"))]
    heads, packed = _head_channels(weights, base[1], cut.heads, head)
    return {_HEADS: heads, _PACKED: packed, _UNITS: _largest(units[0] * units[1], cut.feed_forward)}


def _head_channels(weights: Mapping[str, Tensor], base: str, heads: int, head: int) -> tuple[Tensor, Tensor]:
    """Channels of the heads of the largest norm, in one projection and in query, key and value packed together."""
    import torch

    packed = weights.get(f"{base}.attention.in_proj_weight")
    if packed is None:
        inputs = [weights[f"{base}.self_attn.{which}_proj.weight"] for which in "qkv"]
        output = weights[f"{base}.self_attn.out_proj.weight"]
    else:
        inputs, output = list(packed.chunk(3)), weights[f"{base}.attention.out_proj.weight"]
    scores = _square_norms(output, 1) + sum(_square_norms(tensor, 0) for tensor in inputs)
    best = _largest(scores.view(-1, head).sum(dim=1), heads)
    channels = (best[:, None] * head + torch.arange(head)).flatten()
    return channels, torch.cat([channels + part * len(scores) for part in range(3)])
