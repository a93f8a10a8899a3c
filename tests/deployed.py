"""A small CLIP with structure in its weights, its data, and what deployment makes of it: built once per test process."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mmcompress import deploy
from mmcompress.data import Example
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.clip import Clip
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages import Model

WORDS = ("a", "red", "green", "blue", "big", "small", "star", "ring", "on", "of", *(f"w{i}" for i in range(502)))


class Pictures:
    """Noise of a colour, with texts of words."""

    notes: dict[str, int] = {}  # noqa: RUF012
    columns = frozenset({"image", "texts"})

    def __init__(self, count: int, start: int = 0) -> None:
        self.ids = [str(index) for index in range(start, start + count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(int(self.ids[index]))
        pixels = np.clip(rng.normal(rng.integers(0, 256, 3), 40, (20, 24, 3)), 0, 255).astype(np.uint8)
        text = " ".join(rng.choice(WORDS, rng.integers(1, 8)))
        return Example(self.ids[index], {"image": Image.fromarray(pixels), "texts": (text, "another")})

    def fingerprint(self, index: int) -> str:
        return self.ids[index]

    def classes(self) -> list[str]:
        return []


@cache
def root() -> Path:
    """A folder that lives as long as the process."""
    holder = tempfile.TemporaryDirectory(prefix="mmcompress-test-")
    _KEPT.append(holder)
    return Path(holder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def folder(name: str) -> Path:
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def checkpoint() -> Path:
    """A CLIP of two layers a tower, its weights larger than at initialisation so that answers differ."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tower = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": 1024,
            "max_position_embeddings": 12,
            "eos_token_id": 1,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=64,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("weight") and value.dim() > 1:
                value.mul_(4.0)
            elif name.endswith("bias"):
                value.normal_(std=0.1)
    path = folder("checkpoint")
    model.save_pretrained(path)
    write_word_level_tokenizer(WORDS, 12, path)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


@cache
def model() -> Model:
    family = Clip(path=checkpoint())
    family.write(folder("model"), seed=0)
    return Model(family, folder("model"))


@cache
def exported() -> tuple[Path, dict]:
    return folder("fp32"), deploy.export(model().family, model().folder, folder("fp32"))


@cache
def quantized() -> tuple[Path, dict]:
    made = deploy.quantize(
        model().family, model().folder, exported()[0], OnnxRuntime().scheme(), Pictures(48), folder("int8")
    )
    return folder("int8"), made


def package(precision: str = "int8") -> Path:
    return _package(precision)


@cache
def _package(precision: str) -> Path:
    graphs, facts = exported() if precision == "fp32" else quantized()
    path = folder(f"package-{precision}")
    deploy.compile(
        family=model().family,
        model=model().folder,
        graphs=graphs,
        runtime=OnnxRuntime(),
        precision=precision,
        teacher=model(),
        probe=Pictures(16, start=100),
        provenance={"recipe": "test"},
        output=path,
        asked=facts["graphs"],
    )
    return path
