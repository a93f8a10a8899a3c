"""What else than heads and units is cut: channels of heads, the model's width, layers; and what opens the result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmcompress.errors import InputError, StageError
from mmcompress.families._structure import write_readme
from mmcompress.families.clip import Clip
from mmcompress.stages._cutting import Budget, find, prune_model, scored
from mmcompress.stages._importance import uniform
from mmcompress.stages._removing import cut_head_width

torch = pytest.importorskip("torch")
from pruned_clip import write_small_clip  # noqa: E402

unit = pytest.mark.unit
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_clip(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder) -> Clip:
    return Clip(path=folder)


def outputs(family, model) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {g.name: next(iter(g.module(**g.inputs).values())).numpy() for g in family.graphs(model)}


def groups(blocks, seed=0):
    return uniform(blocks, seed)


@unit
def test_the_width_of_a_tower_and_all_that_is_coupled_to_it(family, folder):
    found = find(family, family.load(folder), ("width",))
    vision = found.widths["vision"]
    assert (vision.channels, vision.groups) == (64, 64) and found.notes == []
    layer = "vision_model.encoder.layers.{}"
    made = {f"{layer.format(i)}.{name}" for i in range(3) for name in ("self_attn.out_proj", "mlp.fc2")}
    taken = {
        f"{layer.format(i)}.{name}" for i in range(3) for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.fc1")
    }
    assert set(vision.producers) == made
    assert set(vision.consumers) >= taken | {"visual_projection"}


@unit
def test_a_narrower_model_runs_and_its_costs_follow(family, folder):
    model = family.load(folder)
    facts = prune_model(family, model, Budget("macs", 0.5), groups, parts=("width",), relative=True, round_to=4)
    assert facts["ratio"] == pytest.approx(0.5, abs=0.07)  # four channels are 6 % of the width
    width = facts["widths"]["vision"][1]
    assert model.vision_model.embeddings.class_embedding.shape == (width,)
    assert model.vision_model.encoder.layers[0].self_attn.num_heads == 8
    assert model.visual_projection.in_features == width
    assert outputs(family, model)["vision_model"].shape == (3, 20)


@unit
def test_layers_go_whole_and_the_configuration_tells(family, folder, tmp_path):
    from transformers import CLIPModel

    model = family.load(folder)

    def second_matters_least(blocks):
        return {b.name: [0.01 if ".1." in b.name else 1.0] * b.groups for b in blocks}

    facts = prune_model(
        family, model, Budget("macs", 0.7, {"text": 1.0}), second_matters_least, parts=("layers",), relative=True
    )
    assert facts["kept_layers"] == {"vision_model.encoder.layers": [0, 2]}
    whole = family.load(folder)
    torch.testing.assert_close(
        model.vision_model.encoder.layers[1].mlp.fc1.weight, whole.vision_model.encoder.layers[2].mlp.fc1.weight
    )
    family.save(model, folder, tmp_path / "cut")
    assert json.loads((tmp_path / "cut/config.json").read_text())["vision_config"]["num_hidden_layers"] == 2
    assert not (tmp_path / "cut/structure.json").exists()
    expected = outputs(family, model)
    for opened in (family.load(tmp_path / "cut"), CLIPModel.from_pretrained(tmp_path / "cut").eval()):
        for name, array in outputs(family, opened).items():
            np.testing.assert_array_equal(array, expected[name])


@unit
def test_a_uniform_cut_of_everything_opens_with_transformers(family, folder, tmp_path):
    from transformers import CLIPModel

    model = family.load(folder)
    parts = ("heads", "feed_forward", "width")
    prune_model(family, model, Budget("macs", 0.4), groups, parts=parts, relative=True, ranking="local", round_to=4)
    family.save(model, folder, tmp_path / "cut")
    assert not (tmp_path / "cut/structure.json").exists()
    vision = json.loads((tmp_path / "cut/config.json").read_text())["vision_config"]
    assert vision["hidden_size"] == 8 * vision["num_attention_heads"] < 64
    expected = outputs(family, model)
    for opened in (family.load(tmp_path / "cut"), CLIPModel.from_pretrained(tmp_path / "cut").eval()):
        for name, array in outputs(family, opened).items():
            np.testing.assert_array_equal(array, expected[name])
    write_readme("clip", tmp_path / "cut")
    assert "opens it too" in (tmp_path / "cut/README.md").read_text()


def test_everything_at_once_is_rebuilt_and_cut_again(family, folder, tmp_path):
    parts = ("heads", "head_width", "feed_forward", "width", "layers")
    model = family.load(folder)
    first = prune_model(family, model, Budget("parameters", 0.5), groups, parts=parts, relative=True, round_to=4)
    family.save(model, folder, tmp_path / "first")
    write_readme("clip", tmp_path / "first")
    assert "does not open it" in (tmp_path / "first/README.md").read_text()
    again = family.load(tmp_path / "first")
    for name, array in outputs(family, model).items():
        np.testing.assert_array_equal(outputs(family, again)[name], array)
    second = prune_model(family, again, Budget("parameters", 0.7), groups, parts=parts, relative=True, round_to=2)
    assert second["macs"][0] == first["macs"][1]
    family.save(again, tmp_path / "first", tmp_path / "second")
    for name, array in outputs(family, again).items():
        np.testing.assert_array_equal(outputs(family, family.load(tmp_path / "second"))[name], array)


@unit
def test_narrowed_heads_answer_as_whole_ones_with_the_same_channels_masked(family, folder):
    model, masked = family.load(folder), family.load(folder)
    found = find(family, model, ("head_width",))
    block = found.dependencies.blocks[0]
    scores = uniform(scored(found, _choosing()), 3)
    cut_head_width(model, block, 5, scores)
    with torch.no_grad():
        for what, names in (("scores", ("q_proj", "k_proj")), ("values", ("v_proj",))):
            values = np.reshape(scores[f"{block.name}.{what}"], (8, 8))
            for head, row in enumerate(values):
                gone = [head * 8 + int(channel) for channel in np.argsort(row)[:3]]
                for name in names:
                    linear = masked.get_submodule(f"vision_model.encoder.layers.0.self_attn.{name}")
                    linear.weight[gone] = 0
                    linear.bias[gone] = 0
    got, expected = outputs(family, model), outputs(family, masked)
    np.testing.assert_allclose(got["vision_model"], expected["vision_model"], atol=1e-6)
    attention = model.vision_model.encoder.layers[0].self_attn
    assert (attention.head_dim, attention.num_heads, attention.embed_dim, attention.scale) == (5, 8, 40, 8**-0.5)


def _choosing():
    from mmcompress.stages._cutting import Choosing

    return Choosing(("head_width",))


@unit
def test_isomorphic_removes_the_same_share_of_each_shape(family, folder):
    model = family.load(folder)
    facts = prune_model(family, model, Budget("macs", 0.6), groups, relative=True, ranking="isomorphic", round_to=1)
    blocks = {name: next(iter(block.values())) for name, block in facts["blocks"].items() if name.startswith("vision")}
    units = [cut for name, cut in blocks.items() if "feed_forward" in name]
    heads = [cut for name, cut in blocks.items() if "attention" in name]
    shares = [sum(after for _, after in some) / sum(before for before, _ in some) for some in (units, heads)]
    assert shares[0] == pytest.approx(shares[1], abs=0.06)
    assert len({after for _, after in units}) > 1, "ranked over all layers, not layer by layer"


@unit
def test_a_structure_with_layers_that_are_not_there_is_refused(family, folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    for layers, message in (
        ({"vision_model.encoder.layers": [0, 7]}, "not rising indices of the 3 layers"),
        ({"vision_model.nothing": [0]}, "no stack of layers"),
        ([1], "layers"),
    ):
        structure = {"format": 1, "modules": {}, "tied": [], "layers": layers}
        (tmp_path / "model/structure.json").write_text(json.dumps(structure))
        with pytest.raises(InputError, match=message):
            family.load(tmp_path / "model")


@unit
def test_a_goal_of_width_alone_that_is_too_small_is_refused(family, folder):
    with pytest.raises(StageError, match="cannot be reached"):
        prune_model(family, family.load(folder), Budget("macs", 0.001), groups, parts=("width",))
