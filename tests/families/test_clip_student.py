from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file

from mmcompress.errors import UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._students import evenly_spaced
from mmcompress.families.clip import Clip

pytestmark = pytest.mark.unit
torch.set_num_threads(1)
CONFIGS = {"clip": tiny_clip.clip_config(), "siglip": tiny_clip.siglip_config()}


@pytest.fixture(scope="module", params=list(CONFIGS))
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write_checkpoint(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])


def cut(teacher: Path, folder: Path, seed: int = 0, **fields: Any) -> dict[str, torch.Tensor]:
    Clip(path=teacher).student(teacher, FromTeacher(**fields), folder, seed)
    return load_file(folder / "model.safetensors")


def outputs(folder: Path) -> Any:
    family = Clip(path=folder)
    model = family.load(folder, attention="eager")
    batch = {name: tensor for graph in family.graphs(model) for name, tensor in graph.inputs.items()}
    with torch.inference_mode():
        return family.outputs(model, batch, family.provides())


def test_layers_are_evenly_spaced_with_the_first_and_the_last() -> None:
    assert evenly_spaced(12, 6) == (0, 2, 4, 7, 9, 11)
    assert evenly_spaced(6, 2) == (0, 5)
    assert evenly_spaced(6, 6) == (0, 1, 2, 3, 4, 5)
    assert evenly_spaced(6, 1) == (0,)


def test_nothing_cut_is_a_copy(teacher: Path, tmp_path: Path) -> None:
    before, after = load_file(teacher / "model.safetensors"), cut(teacher, tmp_path)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_fewer_layers_keep_their_weights(teacher: Path, tmp_path: Path) -> None:
    before, after = load_file(teacher / "model.safetensors"), cut(teacher, tmp_path, vision_layers=2, text_layers=(1,))
    name = "{}_model.encoder.layers.{}.mlp.fc1.weight"
    assert torch.equal(after[name.format("vision", 1)], before[name.format("vision", 2)])
    assert torch.equal(after[name.format("text", 0)], before[name.format("text", 1)])
    assert name.format("vision", 2) not in after
    given = outputs(tmp_path)
    assert len(given["vision.hidden_states"]) == 2 and len(given["text.hidden_states"]) == 1


def test_narrower_towers_open_with_transformers(teacher: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    cut(teacher, tmp_path, vision_width=16, vision_feed_forward=20, text_width=16, text_feed_forward=8, vision_layers=2)
    theirs = AutoModel.from_pretrained(tmp_path)
    vision, text = theirs.config.vision_config, theirs.config.text_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.intermediate_size) == (16, 2, 20)
    assert (text.hidden_size, text.num_attention_heads, text.intermediate_size) == (16, 2, 8)
    given = outputs(tmp_path)
    assert given["vision.embeds"].shape == given["text.embeds"].shape
    assert given["vision.embeds"].shape[1] == (16 if vision.model_type.startswith("siglip") else 20)
    assert torch.pdist(given["text.embeds"]).min() > 1e-3


def test_channels_without_weight_are_the_ones_that_go(teacher: Path, tmp_path: Path) -> None:
    """Feed-forward units that nothing reads are dropped first: the answers stay the same."""
    family = Clip(path=teacher)
    model: Any = family.load(teacher)
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers:
            layer.mlp.fc2.weight[:, ::3] = 0
        if hasattr(model.vision_model, "head"):
            model.vision_model.head.mlp.fc2.weight[:, ::3] = 0
    family.save(model, teacher, tmp_path / "sparse")
    cut(tmp_path / "sparse", tmp_path / "student", vision_feed_forward=32)
    before, after = outputs(tmp_path / "sparse"), outputs(tmp_path / "student")
    torch.testing.assert_close(before["vision.embeds"], after["vision.embeds"])


def test_the_residual_stream_is_cut_at_one_set_of_channels(tmp_path: Path) -> None:
    teacher = tiny_clip.write_checkpoint(tmp_path / "teacher", CONFIGS["clip"])
    before = load_file(teacher / "model.safetensors")
    after = cut(teacher, tmp_path / "student", vision_width=24)
    scored = before["visual_projection.weight"]
    kept = [
        column
        for column in range(32)
        if any(torch.equal(scored[:, column], x) for x in after["visual_projection.weight"].T)
    ]
    assert len(kept) == 24
    for name in ("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.1.mlp.fc2.bias"):
        assert torch.equal(after[name], before[name][kept])
    fc1 = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(after[fc1], before[fc1][:, kept])


def test_random_weights_in_the_named_towers(teacher: Path, tmp_path: Path) -> None:
    before = load_file(teacher / "model.safetensors")
    one = cut(teacher, tmp_path / "a", vision_layers=2, init="random")
    two = cut(teacher, tmp_path / "b", seed=1, vision_layers=2, init="random")
    vision, text = (f"{tower}_model.encoder.layers.0.mlp.fc1.weight" for tower in ("vision", "text"))
    assert not torch.equal(one[vision], before[vision]) and not torch.equal(one[vision], two[vision])
    assert torch.equal(one[text], before[text]) and torch.equal(one["logit_scale"], before["logit_scale"])
    whole = cut(teacher, tmp_path / "c", vision_layers=2, text_layers=1, init="random")
    assert not torch.equal(whole[text], before[text]) and not torch.equal(whole["logit_scale"], before["logit_scale"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layers": 4}, "vision_layers: 4 is not possible: the teacher has 3\n  expected 1 to 3"),
        ({"text_layers": 0}, "text_layers: 0 is not possible"),
        ({"vision_layers": (0, 3)}, "expected indices from 0 to 2"),
        ({"vision_layers": (1, 0)}, "in rising order"),
        ({"vision_width": 20}, "expected a multiple of 8 from 8 to 32"),
        ({"vision_width": 40}, "expected a multiple of 8"),
        ({"text_feed_forward": 41}, "expected 1 to 40"),
        ({"init": "copy"}, "'copy' is unknown"),
    ],
)
def test_cuts_that_are_not_possible(fields: dict[str, Any], message: str, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        cut(teacher, tmp_path / "student", **fields)
    assert not (tmp_path / "student").exists()


def test_a_pruned_teacher_is_refused(teacher: Path, tmp_path: Path) -> None:
    for file in teacher.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "structure.json").write_text(json.dumps({"format": 1, "modules": {}, "tied": []}))
    with pytest.raises(UsageError, match="cannot be cut from a pruned model"):
        cut(tmp_path, tmp_path / "student", vision_layers=1)
