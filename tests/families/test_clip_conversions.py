"""open_clip's and SigLIP 2's checkpoints against independent models: a plain torch one here, transformers' own there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcompress.errors import InputError
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.clip import Clip

pytestmark = pytest.mark.unit
torch.set_num_threads(1)


# --- open_clip -----------------------------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, hidden, activation) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, c: dict[str, Any], embed: int, activation: nn.Module) -> None:
        super().__init__()
        width = c["width"]
        self.conv1 = nn.Conv2d(3, width, c["patch_size"], c["patch_size"], bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((c["image_size"] // c["patch_size"]) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        heads, hidden = width // c["head_width"], int(width * c["mlp_ratio"])
        self.transformer = Transformer(width, c["layers"], heads, hidden, activation)
        self.proj = nn.Parameter(torch.randn(width, embed))

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x)[:, 0] @ self.proj


class Text(nn.Module):
    def __init__(self, c: dict[str, Any], embed: int, activation: nn.Module) -> None:
        super().__init__()
        width, self.config = c["width"], c
        self.token_embedding = nn.Embedding(c["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.randn(c["context_length"], width))
        self.transformer = Transformer(width, c["layers"], c["heads"], width * 4, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed))

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        eos = self.config.get("pool_type") == "eos"
        place = (ids == self.config["eos_id"]).int().argmax(-1) if eos else ids.argmax(-1)
        return x[torch.arange(len(x)), place] @ self.text_projection


class OpenClip(nn.Module):
    """open_clip's model in its own names; ``custom_text`` puts the text tower below ``text.``."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        activation = QuickGELU() if config.get("quick_gelu") else nn.GELU()
        self.visual = Visual(config["vision_cfg"], config["embed_dim"], activation)
        self.text = Text(config["text_cfg"], config["embed_dim"], activation)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def names(self, custom: bool) -> dict[str, Tensor]:
        state = {name if custom else name.removeprefix("text."): value for name, value in self.state_dict().items()}
        return {name: value.contiguous() for name, value in state.items()}


def open_clip_config(**changes: Any) -> dict[str, Any]:
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 3.0, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 16, "width": 24, "heads": 3, "layers": 2}
    config: dict[str, Any] = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        (config[f"{part}_cfg"] if key else config)[key or part] = value
    return config


def write_open_clip(folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None = None) -> OpenClip:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    model = OpenClip(config).eval()
    tiny_clip.shake(model)
    save_file(model.names(bool(config.get("custom_text"))), folder / "open_clip_model.safetensors")
    values = {"model_cfg": config, "preprocess_cfg": preprocess or {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    write_word_level_tokenizer(tiny_clip.WORDS, 12, folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True},
        {"custom_text": True},
        {"text__pool_type": "eos", "text__eos_id": 1},
        {"vision__patch_dropout": 0.5, "text__pool_type": "argmax", "text__proj_bias": False},
    ],
    ids=["gelu", "quick_gelu", "custom_text", "eos", "training_options"],
)
def test_open_clip_embeddings_are_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    config = open_clip_config(**changes)
    reference = write_open_clip(tmp_path / "source", config)
    (tmp_path / "source" / "config.json").write_text('{"architecture": "a name of timm"}')
    family = Clip(path=tmp_path / "source")
    family.write(tmp_path / "model", 0)
    model = family.load(tmp_path / "model")
    pixels, end = torch.randn(3, 3, 16, 16), 1 if config["text_cfg"].get("pool_type") == "eos" else 15
    ids = torch.tensor([[0, 3, 4, end, 0, 0], [0, 5, end, 0, 0, 0], [0, 6, 7, 8, 9, end]])
    batch = {"pixel_values": pixels, "input_ids": ids}
    with torch.inference_mode():
        ours = family.outputs(model, batch, family.task_needs())
        image, text = (nn.functional.normalize(x, dim=-1) for x in (reference.visual(pixels), reference.text(ids)))
    torch.testing.assert_close(ours["vision.embeds"], image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours["text.embeds"], text, atol=1e-5, rtol=0)
    assert ours["fusion.logit_scale"].item() == pytest.approx(reference.logit_scale.exp().item())


def test_open_clip_preprocessing(tmp_path: Path) -> None:
    write_open_clip(tmp_path / "a", open_clip_config())
    write_open_clip(
        tmp_path / "b", open_clip_config(), {"interpolation": "bilinear", "resize_mode": "squash", "size": 16}
    )
    settings = []
    for name in "ab":
        family = Clip(path=tmp_path / name)
        family.write(tmp_path / f"model_{name}", 0)
        settings.append(family.processor(tmp_path / f"model_{name}").images.settings)
    assert (settings[0].resize, settings[0].crop, settings[0].resample) == (16, (16, 16), 3)
    assert settings[0].mean == (0.5, 0.5, 0.5)
    assert (settings[1].resize, settings[1].crop, settings[1].resample) == ((16, 16), None, 2)
    assert settings[1].mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    write_open_clip(tmp_path / "c", open_clip_config(), {"resize_mode": "longest"})
    with pytest.raises(InputError, match="resize_mode 'longest'"):
        Clip(path=tmp_path / "c").write(tmp_path / "model_c", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision__timm_model_name": "vit_base"}, "timm_model_name 'vit_base'"),
        ({"vision__layers": [3, 4, 6, 3]}, "a ResNet tower"),
        ({"vision__pool_type": "avg"}, "pool_type 'avg'"),
        ({"vision__attentional_pool": True}, "attentional_pool"),
        ({"text__hf_model_name": "roberta"}, "hf_model_name 'roberta'"),
        ({"text__pool_type": "last"}, "pool_type 'last'"),
        ({"text__pool_type": "eos"}, "eos_id 2"),
        ({"unheard_of": 1}, "model_cfg.unheard_of 1"),
    ],
)
def test_open_clip_options_that_a_clip_model_has_not(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_open_clip(tmp_path / "source", open_clip_config())
    values = {"model_cfg": open_clip_config(**changes)}
    (tmp_path / "source" / "open_clip_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        Clip(path=tmp_path / "source").write(tmp_path / "model", 0)


def test_open_clip_folders_that_are_not_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_open_clip(source, open_clip_config())
    weights = load_file(source / "open_clip_model.safetensors")
    save_file({**weights, "visual.trunk.x": torch.zeros(1)}, source / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"1 unexpected: visual\.trunk\.x"):
        Clip(path=source).write(tmp_path / "a", 0)
    weights.pop("visual.proj")
    save_file(weights, source / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"1 missing: visual_projection\.weight"):
        Clip(path=source).write(tmp_path / "b", 0)
    (source / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Clip(path=source).write(tmp_path / "c", 0)


def test_a_tokenizer_is_built_from_bpe_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_open_clip(source, open_clip_config(text__vocab_size=16))
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    vocabulary = ["r", "e", "d", "r</w>", "e</w>", "d</w>", "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (source / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (source / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    family = Clip(path=source)
    family.write(tmp_path / "model", 0)
    feeds = family.processor(tmp_path / "model").encode({"text": ["Red", "red red"]})
    assert feeds["input_ids"].tolist() == [[8, 7, 9, 9], [8, 7, 7, 9]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


# --- SigLIP 2 ------------------------------------------------------------------------------------------------------


def write_siglip2(folder: Path, max_num_patches: int) -> Any:
    from transformers import Siglip2Config, Siglip2Model

    config = tiny_clip.siglip_config()
    config["vision_config"].pop("image_size")
    config["vision_config"].update(num_patches=16, patch_size=4)
    config["text_config"].update(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    torch.manual_seed(0)
    model = Siglip2Model(Siglip2Config(**{**config, "model_type": "siglip2"})).eval()
    tiny_clip.shake(model)
    model.save_pretrained(folder)
    processor = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 4, "max_num_patches": max_num_patches}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    write_word_level_tokenizer(tiny_clip.WORDS, 8, folder)
    return model


@pytest.mark.parametrize(("max_num_patches", "grid"), [(16, 4), (10, 3)])
def test_siglip2_embeddings_are_equal(max_num_patches: int, grid: int, tmp_path: Path) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    reference = write_siglip2(tmp_path / "source", max_num_patches)
    family = Clip(path=tmp_path / "source")
    family.write(tmp_path / "model", 0)
    model, processor = family.load(tmp_path / "model"), family.processor(tmp_path / "model")
    values = np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    pictures = [Image.fromarray(value) for value in values]
    feeds = processor.encode({"image": pictures, "text": ["Red Circle", "the star", "a"]})
    assert feeds["pixel_values"].shape == (3, 3, 4 * grid, 4 * grid)
    assert feeds["input_ids"].shape == (3, 8) and "attention_mask" not in feeds
    theirs = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=max_num_patches)(pictures, return_tensors="pt")
    assert theirs["spatial_shapes"].tolist() == [[grid, grid]] * 3
    batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        ours = family.outputs(model, batch, family.task_needs())
        expected = reference(input_ids=batch["input_ids"], **theirs)
    torch.testing.assert_close(ours["vision.embeds"], expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours["text.embeds"], expected.text_embeds, atol=1e-5, rtol=0)
    logits = ours["fusion.logit_scale"] * ours["vision.embeds"] @ ours["text.embeds"].T + ours["fusion.logit_bias"]
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-4, rtol=1e-5)


def test_siglip2_of_shapes_that_do_not_fit(tmp_path: Path) -> None:
    write_siglip2(tmp_path, 16)
    weights = load_file(tmp_path / "model.safetensors")
    weights["vision_model.embeddings.position_embedding.weight"] = torch.zeros(15, 32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="square number of positions"):
        Clip(path=tmp_path).write(tmp_path / "model", 0)


@pytest.mark.parametrize(("name", "clean"), [("SiglipTokenizer", "canonical"), ("GemmaTokenizerFast", "lowercase")])
def test_siglip_texts_are_cleaned_as_in_training(name: str, clean: str, tmp_path: Path) -> None:
    folder = tiny_clip.write_config_folder(tmp_path, tiny_clip.siglip_config())
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": name}))
    assert Clip(config=folder).processor(folder).texts.settings.clean == clean
