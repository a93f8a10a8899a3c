"""A small package of one's own models, installed as pip would: a module, and metadata that declare entry points."""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = '''
import torch
from torch import nn


class Judge(nn.Module):
    """A picture and a table, or whichever of them the configuration has."""

    def __init__(self, config):
        super().__init__()
        width, task = config["model"]["width"], config["task"]
        self.see = nn.Sequential(nn.Linear(3 * 16 * 16, width), nn.ReLU(), nn.Linear(width, width))
        self.read = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.join = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.decide = nn.Linear(2 * width, len(task.get("classes", (0,))))
        self.output = "logits" if task["kind"] == "classify" else "number"

    def forward(self, image_values, table_values):
        return {self.output: self.decide(self.join(self.see(image_values.flatten(1)) + self.read(table_values)))}


class Pair(nn.Module):
    """Pictures by their patches, texts by their words, in one space."""

    def __init__(self, config):
        super().__init__()
        width = config["model"]["width"]
        self.patches = nn.Linear(3 * 8 * 8, width)
        self.see = nn.Sequential(nn.Linear(9 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 32))
        self.words = nn.Embedding(config["model"]["words"], width)
        self.read = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 32))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image_values=None, texts_values=None, texts_length=None):
        if texts_values is None:
            cut = image_values.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            return {"image_embeds": self.see(self.patches(cut).flatten(1)), "logit_scale": self.scale.exp()}
        counts = (torch.arange(texts_values.shape[1])[None] < texts_length[:, None]).float()[:, :, None]
        return {"texts_embeds": self.read((self.words(texts_values) * counts).sum(1)), "logit_scale": self.scale.exp()}


class Attending(nn.Module):
    """Attention between linear layers, whose sizes are written into the forward, beside a plain pair."""

    def __init__(self, config):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 8) for _ in range(3))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 2)
        self.last = nn.LSTM(8, 8, batch_first=True)

    def forward(self, series_values, series_length):
        b, t, _ = series_values.shape
        q, k, v = (layer(series_values).reshape(b, t, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        states, _ = self.last(mixed.transpose(1, 2).reshape(b, t, 8))
        return {"logits": self.down(torch.relu(self.up(states.mean(1))))}


class Untraceable(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, table_values):
        return {"logits": torch.from_numpy(self.layer(table_values).numpy())}


class Wordless(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, table_values):
        return {"scores": self.layer(table_values)}


def numbers(config):
    return [1, 2, 3]
'''
ENTRIES = """[mmcompress.models]
tiny_judge = tiny_custom_models:Judge
tiny_pair = tiny_custom_models:Pair
tiny_attending = tiny_custom_models:Attending
tiny_untraceable = tiny_custom_models:Untraceable
tiny_wordless = tiny_custom_models:Wordless
tiny_numbers = tiny_custom_models:numbers
tiny_broken = tiny_custom_models:Absent
"""
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def install() -> Path:
    """Install the package for this process."""
    holder = tempfile.TemporaryDirectory(prefix="tiny-custom-models-")
    _KEPT.append(holder)
    folder = Path(holder.name)
    (folder / "tiny_custom_models.py").write_text(SOURCE)
    metadata = folder / "tiny_custom_models-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-custom-models\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRIES)
    sys.path.insert(0, str(folder))
    return folder


def judge_config(**changes: Any) -> dict[str, Any]:
    """A picture and a table to ten classes."""
    return {
        "model_type": "mmcompress-custom",
        "mmcompress_model": "tiny_judge",
        "model": {"width": 64},
        "inputs": [
            {"name": "image", "kind": "picture", "size": 16},
            {"name": "table", "kind": "table", "columns": 3, "mean": [10.0, 0.0, 0.0], "std": [5.0, 1.0, 1.0]},
        ],
        "task": {"kind": "classify", "classes": [str(digit) for digit in range(10)]},
        **changes,
    }


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """config.json in a folder that may be new."""
    install()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"
