from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file

from mmcompress.component import dump, find, parse
from mmcompress.errors import InputError, UsageError
from mmcompress.families.clip import Clip

pytestmark = pytest.mark.unit
torch.set_num_threads(1)

CONFIGS = {
    "clip": tiny_clip.clip_config(),
    "legacy_end": tiny_clip.clip_config(eos_token_id=2),
    "siglip": tiny_clip.siglip_config(),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write_checkpoint(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write_checkpoint(tmp_path_factory.mktemp("clip"), CONFIGS["clip"])


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write_checkpoint(tmp_path_factory.mktemp("siglip"), CONFIGS["siglip"])


def theirs(folder: Path) -> Any:
    from transformers import CLIPModel, SiglipModel

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return {"clip": CLIPModel, "siglip": SiglipModel}[kind].from_pretrained(folder).eval()


def batch_of(family: Clip, model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for graph in family.graphs(model) for name, tensor in graph.inputs.items()}


def torch_run(family: Clip, model: Any) -> Any:
    graphs = {graph.name: graph for graph in family.graphs(model)}

    def run(name: str, feeds: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            given = graphs[name].module(**{key: torch.from_numpy(value) for key, value in feeds.items()})
        return {key: value.numpy() for key, value in given.items()}

    return run


def test_the_component_is_found_and_dumps_what_it_reads() -> None:
    assert find("families", "clip") is Clip
    family = parse("families", {"clip": {"hub": "a/b", "revision": "c"}})
    assert parse("families", dump(family)) == family


def test_outputs_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    family = Clip(path=checkpoint)
    family.write(tmp_path / "model", 0)
    model = family.load(tmp_path / "model", attention="eager")
    batch = batch_of(family, model)
    with torch.inference_mode():
        ours = family.outputs(model, batch, family.provides())
        expected = theirs(checkpoint)(**batch)
    torch.testing.assert_close(ours["vision.embeds"], expected.image_embeds)
    torch.testing.assert_close(ours["text.embeds"], expected.text_embeds)
    logits = ours["fusion.logit_scale"] * ours["vision.embeds"] @ ours["text.embeds"].T
    logits = logits + ours.get("fusion.logit_bias", 0.0)
    torch.testing.assert_close(logits, expected.logits_per_image)
    assert [tuple(state.shape) for state in ours["vision.hidden_states"]] == [
        (3, 4 + hasattr(model, "visual_projection"), 32)
    ] * 3
    assert len(ours["text.hidden_states"]) == 2
    assert ours["fusion.logit_scale"].shape == ()


def test_a_tower_that_is_not_wanted_is_not_run(clip: Path) -> None:
    family = Clip(path=clip)
    model = family.load(clip)
    batch = batch_of(family, model)
    assert "text.embeds" not in family.outputs(
        model, {"pixel_values": batch["pixel_values"]}, frozenset({"vision.embeds"})
    )
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert "vision.embeds" not in family.outputs(model, text, frozenset({"text.embeds"}))
    with pytest.raises(UsageError, match=r"no vision\.logits"):
        family.outputs(model, batch, frozenset({"vision.logits"}))
    with pytest.raises(UsageError, match="logit_bias is SigLIP's"):
        family.outputs(model, batch, frozenset({"fusion.logit_bias"}))


def test_both_kinds_of_attention_agree(checkpoint: Path) -> None:
    family = Clip(path=checkpoint)
    results = []
    for attention in ("sdpa", "eager"):
        model = family.load(checkpoint, attention=attention)
        with torch.inference_mode():
            results.append(family.outputs(model, batch_of(family, model), frozenset({"vision.embeds", "text.embeds"})))
    for name in ("vision.embeds", "text.embeds"):
        torch.testing.assert_close(results[0][name], results[1][name])
    with pytest.raises(UsageError, match="unknown attention 'flash'"):
        family.load(checkpoint, attention="flash")


# --- losses --------------------------------------------------------------------------------------------------------


def test_contrastive_loss_by_hand() -> None:
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    outputs = {"vision.embeds": image, "text.embeds": text, "fusion.logit_scale": torch.tensor(2.0)}
    # similarities times 2: rows [2, 1.2] and [0, 1.6]
    rows = math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(-1.6))
    columns = math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(-0.4))
    loss = Clip(hub="a/b", revision="c").task_loss(outputs, {"input_ids": torch.tensor([[0, 3], [0, 4]])})
    assert loss.item() == pytest.approx((rows / 2 + columns / 2) / 2)


def test_sigmoid_loss_by_hand() -> None:
    outputs = {
        "vision.embeds": torch.eye(2),
        "text.embeds": torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        "fusion.logit_scale": torch.tensor(2.0),
        "fusion.logit_bias": torch.tensor(-1.0),
    }
    # logits: [1, 0.2], [-1, 0.6]; the diagonal is positive
    expected = sum(math.log(1 + math.exp(-value)) for value in (1.0, -0.2, 1.0, 0.6)) / 2
    loss = Clip(hub="a/b", revision="c").task_loss(outputs, {"input_ids": torch.tensor([[0, 3], [0, 4]])})
    assert loss.item() == pytest.approx(expected)


def test_equal_texts_are_positives() -> None:
    family = Clip(hub="a/b", revision="c")
    outputs = {
        "vision.embeds": torch.eye(2),
        "text.embeds": torch.ones(2, 2) / 2**0.5,
        "fusion.logit_scale": torch.tensor(9.0),
    }
    same = {"input_ids": torch.tensor([[0, 3], [0, 3]])}
    assert family.task_loss(outputs, same).item() == pytest.approx(math.log(2))
    outputs["fusion.logit_bias"] = torch.tensor(0.0)
    assert family.task_loss(outputs, same).item() == pytest.approx(2 * math.log(1 + math.exp(-9 / 2**0.5)), rel=1e-5)


def test_losses_are_those_of_transformers(checkpoint: Path) -> None:
    family = Clip(path=checkpoint)
    model = family.load(checkpoint)
    batch = batch_of(family, model)
    loss = family.task_loss(family.outputs(model, batch, family.task_needs()), batch)
    expected = theirs(checkpoint)(**batch, return_loss=True).loss
    torch.testing.assert_close(loss, expected)


# --- graphs and answers --------------------------------------------------------------------------------------------


def test_sample_inputs_have_different_answers(checkpoint: Path) -> None:
    family = Clip(path=checkpoint)
    graphs = family.graphs(family.load(checkpoint))
    assert [graph.name for graph in graphs] == ["vision_model", "text_model"]
    for graph in graphs:
        with torch.inference_mode():
            given = graph.module(**graph.inputs)
        assert tuple(given) == graph.outputs
        rows = given[graph.outputs[0]]
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(3))
        assert torch.pdist(rows).min() > 1e-3
        assert graph.dynamic.keys() == graph.inputs.keys()


def test_an_answer_does_not_depend_on_its_neighbours(checkpoint: Path) -> None:
    family = Clip(path=checkpoint)
    processor, run = family.processor(checkpoint), torch_run(family, family.load(checkpoint))
    texts = ["red", "a red circle above the blue star", "the green square"]
    together = family.answer(run, "embed_text", processor.encode({"text": texts}))
    for text, row in zip(texts, together, strict=True):
        alone = family.answer(run, "embed_text", processor.encode({"text": [text]}))
        np.testing.assert_allclose(alone[0], row, atol=1e-5)
    pictures = [np.full((9, 5, 3), value, np.uint8) for value in (0, 200)]
    rows = family.answer(run, "embed_image", processor.encode({"image": pictures}))
    assert rows.dtype == np.float32 and rows.shape[0] == 2
    with pytest.raises(UsageError, match="answers no 'caption'"):
        family.answer(run, "caption", {})


def test_the_processor_in_two_halves(checkpoint: Path) -> None:
    processor = Clip(path=checkpoint).processor(checkpoint)
    values = {"image": [np.zeros((9, 5, 3), np.uint8)] * 2, "text": ["red circle", "red"]}
    compact = processor.compact(values)
    assert compact["image"].dtype == np.uint8 and compact["text"].dtype == np.int32
    whole = processor.encode(values)
    for name, array in processor.expand(compact).items():
        np.testing.assert_array_equal(array, whole[name])
    assert ("attention_mask" in whole) == ("siglip" not in checkpoint.name)
    with pytest.raises(InputError, match="got audio"):
        processor.compact({"audio": []})


def test_a_package_answers_without_torch(checkpoint: Path, tmp_path: Path) -> None:
    family = Clip(path=checkpoint)
    names = family.package_files(checkpoint)
    assert names == ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "safetensors", "huggingface_hub")))
import numpy as np
from pathlib import Path
from mmcompress.families.clip import Clip
family = Clip(path=Path(sys.argv[1]))
feeds = family.processor(Path(sys.argv[1])).encode({"text": ["red star"], "image": [np.zeros((3, 4, 3), np.uint8)]})
answer = family.answer(lambda graph, given: {"text_embeds": given["input_ids"]}, "embed_text", feeds)
print(answer.astype(int).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = family.processor(checkpoint).encode({"text": ["red star"]})["input_ids"]
    assert json.loads(done.stdout) == ids.tolist()


# --- pruning -------------------------------------------------------------------------------------------------------


def test_prunable_names_modules_that_exist(checkpoint: Path) -> None:
    family = Clip(path=checkpoint)
    model = family.load(checkpoint)
    found = family.prunable(model)
    assert len(found) == 2 * (3 + 2) + ("siglip" in checkpoint.name)
    assert {item.tower for item in found} == {"vision", "text"}
    for item in found:
        for name in (item.root, *item.together):
            assert isinstance(model.get_submodule(name), torch.nn.Linear)
        for name, attributes in (item.head_attributes or {}).items():
            assert all(isinstance(getattr(model.get_submodule(name), attribute), int) for attribute in attributes)


def prune_first_layer(model: Any) -> None:
    """Drop one of four heads and a third of the feed-forward units of the first picture layer."""
    layer = model.vision_model.encoder.layers[0]
    attention = layer.self_attn
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj, layer.mlp.fc1):
        keep = 24 if linear is not layer.mlp.fc1 else 32
        linear.weight = torch.nn.Parameter(linear.weight[:keep].detach().clone())
        linear.bias = torch.nn.Parameter(linear.bias[:keep].detach().clone())
        linear.out_features = keep
    for linear, keep in ((attention.out_proj, 24), (layer.mlp.fc2, 32)):
        linear.weight = torch.nn.Parameter(linear.weight[:, :keep].detach().clone())
        linear.in_features = keep
    attention.num_heads, attention.embed_dim = 3, 24


def test_a_pruned_model_is_rebuilt_bit_for_bit(checkpoint: Path, tmp_path: Path) -> None:
    family = Clip(path=checkpoint)
    model = family.load(checkpoint)
    prune_first_layer(model)
    family.save(model, checkpoint, tmp_path / "pruned")
    again = Clip(path=tmp_path / "pruned")
    again.write(tmp_path / "copy", 0)
    loaded = again.load(tmp_path / "copy")
    batch = batch_of(family, model)
    with torch.inference_mode():
        before, after = (family.outputs(each, batch, family.task_needs()) for each in (model, loaded))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.vision_model.encoder.layers[0].self_attn.num_heads == 3
    assert family.prunable(loaded)[0].heads == 3


def test_an_unpruned_model_is_saved_without_a_structure(checkpoint: Path, tmp_path: Path) -> None:
    family = Clip(path=checkpoint)
    family.save(family.load(checkpoint), checkpoint, tmp_path)
    assert not (tmp_path / "structure.json").exists()
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()


# --- precision, seeds ----------------------------------------------------------------------------------------------


def test_half_precision_is_kept_in_the_folder_and_loaded_as_fp32(clip: Path, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(clip / "model.safetensors").items()}
    for name in Clip(path=clip).package_files(clip):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    family = Clip(path=tmp_path)
    family.write(tmp_path / "model", 0)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float16}
    model = family.load(tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} and not model.training


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_random_weights_follow_the_seed_alone(name: str, tmp_path: Path) -> None:
    family = Clip(config=tiny_clip.write_config_folder(tmp_path / "config", CONFIGS[name]))
    state = torch.random.get_rng_state()
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)
        family.write(tmp_path / folder, seed)
    torch.random.set_rng_state(state)
    models = [load_file(tmp_path / folder / "model.safetensors") for folder in "abc"]
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert not torch.equal(models[0][weight], models[2][weight])
    if name == "siglip":
        assert models[0]["logit_bias"].item() == -10.0
    family.load(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_config_file_counts_with_the_files_beside_it(tmp_path: Path) -> None:
    folder = tiny_clip.write_config_folder(tmp_path / "config", CONFIGS["clip"])
    family = Clip(config=folder / "config.json")
    family.write(tmp_path / "model", 0)
    before = family.identity()
    (folder / "preprocessor_config.json").write_text(json.dumps({**tiny_clip.preprocessor(16), "resample": 2}))
    assert family.identity() != before
