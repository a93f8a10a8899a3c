"""Times that pruning predicts against times that are measured, on the shapes of CLIP ViT-B/32 with random weights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.families._structure import drop_layers
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.clip import Clip
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages import Model
from mmcompress.stages._block_times import opened, table_of
from mmcompress.stages._choice import Plan, Tower, cumulated, price
from mmcompress.stages._cutting import Budget, find, prune_model
from mmcompress.stages._importance import uniform
from mmcompress.stages._pruning import Layer, Part
from mmcompress.stages._timing_rounds import time_in_turn

THREADS = 2
PARTS: tuple[Part, ...] = ("heads", "feed_forward", "width", "layers")
VIT_B_32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}


@dataclass(frozen=True)
class Prediction:
    """A random structure's time by the table and by the clock, both relative to the whole model's."""

    structure: dict[str, Any]
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of the measured time."""
        return abs(self.predicted_ms / self.measured_ms - 1)


def write_model(folder: Path, quick: bool) -> Clip:
    """A CLIP with ViT-B/32's picture tower (a smaller one for ``quick``), and a text tower of no account."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    ids = {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {
        "model_type": "clip",
        "projection_dim": 512,
        "vision_config": {**(SMALL if quick else VIT_B_32), "image_size": 224, "patch_size": 32},
        "text_config": {**text, **ids},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 3}
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings, **statistics})
    )
    write_word_level_tokenizer(("red", "green"), 16, folder)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_dict(config)).save_pretrained(folder)
    return Clip(path=folder)


def predictions(work: Path, quick: bool, count: int) -> list[Prediction]:
    """Random structures of the picture tower: predicted from the table, then built, exported and timed in turn."""
    folder = work / "model"
    shutil.rmtree(work / "whole", ignore_errors=True)
    family = write_model(folder, quick)
    runtime = OnnxRuntime()
    times = table_of(
        Model(family, folder),
        runtime,
        threads=THREADS,
        batch=1,
        parts=PARTS,
        cache=work / "cache",
        progress=lambda message, done, total: print(message, done, total, flush=True),
    )
    chance = np.random.default_rng(0)
    sides = opened(family, folder, "whole", runtime, THREADS, 1, work / "whole")
    expected: dict[str, tuple[dict[str, Any], float]] = {}
    for number in range(count):
        name, place = f"structure-{number}", work / f"structure-{number}"
        model = family.load(folder)
        found = find(family, model, PARTS)
        plan = _random_plan(found, chance)
        blocks = tuple(block for block in found.dependencies.blocks if block.prunable.tower == "vision")
        losses = {block.name: cumulated([0.0] * block.groups) for block in blocks}
        tower = Tower("vision", blocks, losses, {}, width=found.widths["vision"])
        expected[name] = (_shown(plan), price(tower, plan, times.prices(found)))
        _cut(found, plan)
        shutil.rmtree(place, ignore_errors=True)
        family.save(model, folder, place)
        sides += opened(family, place, name, runtime, THREADS, 1)
        print(name, expected[name], flush=True)
    measured = time_in_turn([side for side in sides if side.graph == "vision_model"])
    drift = measured["whole", "vision_model"] / times.table["graphs"]["vision_model"]
    return [Prediction(shown, ms, measured[name, "vision_model"] / drift) for name, (shown, ms) in expected.items()]


def _random_plan(found: Any, chance: np.random.Generator) -> Plan:
    blocks = [block for block in found.dependencies.blocks if block.prunable.tower == "vision"]
    layers = sorted({block.layer for block in blocks})
    gone = int(chance.integers(0, len(layers) // 3 + 1))
    dropped = frozenset(layers[int(index)] for index in chance.choice(range(1, len(layers)), gone, replace=False))
    groups = {}
    for block in blocks:
        if block.layer in dropped:
            continue
        step = 1 if block.prunable.heads is not None else 32
        groups[block.name] = step * int(chance.integers(1, block.groups // step + 1))
    channels = found.widths["vision"].channels
    width = 32 * int(chance.integers(channels // 64, channels // 32 + 1))
    return Plan(groups, {}, dropped, None if width == channels else width)


def _shown(plan: Plan) -> dict[str, Any]:
    return {"groups": dict(plan.groups), "dropped": len(plan.dropped), "width": plan.width}


def _cut(found: Any, plan: Plan) -> None:
    model = found.dependencies.model
    for block in found.dependencies.blocks:
        if block.name in plan.groups:
            found.dependencies.cut(block, range(block.groups - plan.groups[block.name]))
    if plan.width is not None:
        width = found.widths["vision"]
        found.dependencies.cut(width, range(width.channels - plan.width))
    stacks: dict[str, Sequence[Layer]] = {}
    for layer in plan.dropped:
        stacks[layer.stack] = [*stacks.get(layer.stack, ()), layer]
    for stack, layers in stacks.items():
        gone = {layer.index for layer in layers}
        drop_layers(model, stack, [i for i in range(len(model.get_submodule(stack))) if i not in gone])


def graph_and_cut_seconds(work: Path, quick: bool) -> float:
    """How long it takes to trace the model, to choose by random numbers and to cut."""
    family = write_model(work / "graph", quick)
    model = family.load(work / "graph")
    started = time.perf_counter()
    budget = Budget("macs", 0.5, {"text": 1.0})
    prune_model(family, model, budget, lambda blocks: uniform(blocks, 0), parts=PARTS, relative=True)
    return time.perf_counter() - started
