from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file

from mmcompress.errors import InputError
from mmcompress.families.clip import Clip

pytestmark = pytest.mark.unit
WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_clip.write_checkpoint(tmp_path / "source", tiny_clip.clip_config())


def refused(source: Path, message: str) -> None:
    output = source.parent / "model"
    shutil.rmtree(output, ignore_errors=True)
    with pytest.raises(InputError, match=message):
        Clip(path=source).write(output, 0)
    assert not (output / WEIGHTS).exists()


def change_config(source: Path, **values: Any) -> None:
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_no_folder_and_no_configuration(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such checkpoint")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "this is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no config\.json")


def test_no_weights(source: Path) -> None:
    (source / WEIGHTS).unlink()
    refused(source, r"no weights\n  expected model\.safetensors")


def test_pickled_weights_are_not_opened(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(source, r"pickled weights alone \(pytorch_model\.bin\)")


def test_weights_missing_and_unexpected(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    weights["text_model.extra"] = weights.pop("logit_scale")
    weights["visual_projection.weight"] = torch.zeros(2, 2)
    save_file(weights, source / WEIGHTS)
    refused(source, r"1 missing: logit_scale\n  1 unexpected: text_model\.extra\n  1 of another shape: visual_proj")


def test_weights_of_whole_numbers(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    weights["visual_projection.weight"] = weights["visual_projection.weight"].to(torch.int8)
    save_file(weights, source / WEIGHTS)
    refused(source, r"not of a floating point type: visual_projection\.weight is torch\.int8")


def test_a_damaged_file(source: Path) -> None:
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-100])
    refused(source, "not a readable safetensors file")


def test_position_ids_of_old_checkpoints_are_harmless(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(12)[None]}, source / WEIGHTS)
    Clip(path=source).write(source.parent / "model", 0)
    assert load_file(source.parent / "model" / WEIGHTS).keys() == weights.keys()


def test_shards(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    names = sorted(weights)
    shards = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    (source / WEIGHTS).unlink()
    for shard, own in shards.items():
        save_file({name: weights[name] for name in own}, source / shard)
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (source / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    Clip(path=source).write(source.parent / "whole", 0)
    assert all(torch.equal(value, weights[key]) for key, value in load_file(source.parent / "whole" / WEIGHTS).items())
    (source / "b.safetensors").unlink()
    refused(source, r"the shard b\.safetensors is listed and absent")
    (source / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    refused(source, "not a file of this folder")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "clap"}, r"knows no model_type 'clap' \(did you mean 'clip'\?\)"),
        ({"vision_config": {"hidden_size": 30, "num_attention_heads": 4}}, "transformers refuses this configuration"),
        ({"vision_config": {"hidden_size": "wide"}}, "transformers refuses this configuration"),
    ],
)
def test_configurations_that_are_refused(values: dict[str, Any], message: str, source: Path) -> None:
    change_config(source, **values)
    refused(source, message)


def test_a_siglip_model_without_its_head(tmp_path: Path) -> None:
    config = tiny_clip.siglip_config()
    source = tiny_clip.write_checkpoint(tmp_path / "source", config)
    change_config(source, vision_config={**config["vision_config"], "vision_use_head": False})
    refused(source, "vision_use_head is false")


def test_processing_that_does_not_fit(source: Path) -> None:
    (source / "preprocessor_config.json").write_text(json.dumps(tiny_clip.preprocessor(24)))
    refused(source, r"give \(24, 24\), the model takes \(16, 16\)")
    (source / "preprocessor_config.json").unlink()
    refused(source, "no settings for pictures")


def test_a_tokenizer_that_does_not_fit(source: Path) -> None:
    tiny_clip.write_word_level_tokenizer([f"word{index}" for index in range(30)], 12, source)
    refused(source, "token ids up to 32, the model knows 16")
    tiny_clip.write_word_level_tokenizer(["red"], 12, source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    refused(source, "ends no text with eos_token_id 1")
    (source / "tokenizer.json").unlink()
    (source / "spiece.model").write_bytes(b"")
    refused(source, r"no tokenizer\.json \(it has spiece\.model alone\)")


def test_a_structure_that_does_not_fit(source: Path) -> None:
    structure = {"format": 1, "modules": {"vision_model.nothing": {"shapes": {"weight": [1]}}}, "tied": []}
    (source / "structure.json").write_text(json.dumps(structure))
    refused(source, r"has no module 'vision_model\.nothing'")


def test_a_repository_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(InputError, match="hub a/b at c: cannot be downloaded: no network"):
        Clip(hub="a/b", revision="c").write(tmp_path / "model", 0)
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(tmp_path / "snapshot"))
    with pytest.raises(InputError, match="no safetensors in this revision"):
        Clip(hub="a/b", revision="c").write(tmp_path / "model", 0)
