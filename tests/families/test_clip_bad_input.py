from __future__ import annotations

import json
import re
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


def refusal(source: Path) -> str:
    """What is said of a source that is refused; nothing was written of it."""
    output = source.parent / "model"
    shutil.rmtree(output, ignore_errors=True)
    with pytest.raises(InputError) as refused:
        Clip(path=source).write(output, 0)
    assert not (output / WEIGHTS).exists()
    return str(refused.value)


def change_config(source: Path, **values: Any) -> None:
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_no_folder_and_no_configuration(tmp_path: Path) -> None:
    assert re.search("no such checkpoint", refusal(tmp_path / "absent"))
    (tmp_path / "file").write_text("x")
    assert re.search("this is a file", refusal(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    assert re.search(r"no config\.json", refusal(tmp_path / "empty"))


def test_no_weights(source: Path) -> None:
    (source / WEIGHTS).unlink()
    assert re.search(r"no weights\n  expected model\.safetensors", refusal(source))


def test_pickled_weights_are_not_opened(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert re.search(r"pickled weights alone \(pytorch_model\.bin\)", refusal(source))


def test_weights_missing_and_unexpected(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    weights["text_model.extra"] = weights.pop("logit_scale")
    weights["visual_projection.weight"] = torch.zeros(2, 2)
    save_file(weights, source / WEIGHTS)
    assert re.search(
        r"1 missing: logit_scale\n  1 unexpected: text_model\.extra\n  1 of another shape: visual_proj", refusal(source)
    )


def test_weights_of_whole_numbers(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    weights["visual_projection.weight"] = weights["visual_projection.weight"].to(torch.int8)
    save_file(weights, source / WEIGHTS)
    assert re.search(r"not of a floating point type: visual_projection\.weight is torch\.int8", refusal(source))


def test_a_damaged_file(source: Path) -> None:
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-100])
    assert re.search("not a readable safetensors file", refusal(source))


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
    assert re.search(r"the shard b\.safetensors is listed and absent", refusal(source))
    (source / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    assert re.search("not a file of this folder", refusal(source))


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
    assert re.search(message, refusal(source))


def test_a_siglip_model_without_its_head(tmp_path: Path) -> None:
    config = tiny_clip.siglip_config()
    source = tiny_clip.write_checkpoint(tmp_path / "source", config)
    change_config(source, vision_config={**config["vision_config"], "vision_use_head": False})
    assert re.search("vision_use_head is false", refusal(source))


def test_processing_that_does_not_fit(source: Path) -> None:
    (source / "preprocessor_config.json").write_text(json.dumps(tiny_clip.preprocessor(24)))
    assert re.search(r"give \(24, 24\), the model takes \(16, 16\)", refusal(source))
    (source / "preprocessor_config.json").unlink()
    assert re.search("no settings for pictures", refusal(source))


def test_a_tokenizer_that_does_not_fit(source: Path) -> None:
    tiny_clip.write_word_level_tokenizer([f"word{index}" for index in range(30)], 12, source)
    assert re.search("token ids up to 32, the model knows 16", refusal(source))
    tiny_clip.write_word_level_tokenizer(["red"], 12, source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    assert re.search("ends no text with eos_token_id 1", refusal(source))
    (source / "tokenizer.json").unlink()
    (source / "spiece.model").write_bytes(b"")
    assert re.search(r"no tokenizer\.json \(it has spiece\.model alone\)", refusal(source))


def test_a_structure_that_does_not_fit(source: Path) -> None:
    structure = {"format": 1, "modules": {"vision_model.nothing": {"shapes": {"weight": [1]}}}, "tied": []}
    (source / "structure.json").write_text(json.dumps(structure))
    assert re.search(r"has no module 'vision_model\.nothing'", refusal(source))


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
