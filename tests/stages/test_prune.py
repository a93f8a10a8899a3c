"""Pruning: what is cut, how much, and that the model that is left is the masked one, rebuilt bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcompress import component
from mmcompress.data import Example
from mmcompress.errors import InputError, StageError
from mmcompress.families import Prunable
from mmcompress.families.clip import Clip
from mmcompress.stages import Model, StageInput
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._importance import uniform
from mmcompress.stages._prices import count
from mmcompress.stages._pruning import Dependencies
from mmcompress.stages.prune import Prune

torch = pytest.importorskip("torch")
from pruned_clip import WORDS, write_small_clip  # noqa: E402

unit = pytest.mark.unit
pytestmark = pytest.mark.usefixtures("one_thread")


RECOVER = {"epochs": 2, "batch_size": 4, "precision": "fp32", "losses": [{"feature_mse": {}}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_clip(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder) -> Clip:
    return Clip(path=folder)


@dataclasses.dataclass
class Pairs:
    """Eight coloured pictures with their names."""

    ids: tuple[str, ...] = tuple(str(index) for index in range(8))
    columns: frozenset[str] = frozenset({"image", "texts"})
    notes: dict[str, int] = dataclasses.field(default_factory=dict)

    def fingerprint(self, index: int) -> str:
        return self.ids[index]

    def classes(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        pixels = np.random.default_rng(index).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        return Example(
            str(index), {"image": Image.fromarray(pixels), "texts": (f"{WORDS[index % len(WORDS)]} circle", "star")}
        )


def given(family, source: Path, tmp_path: Path, train=None) -> StageInput:
    tmp_path.mkdir(parents=True, exist_ok=True)
    return StageInput(
        model=Model(family, source),
        teacher=None,
        train=train or Pairs(),
        validation=None,
        seed=0,
        output=tmp_path / "output",
        work=tmp_path,
        cache=tmp_path / "cache",
    )


def outputs(family, model) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {g.name: next(iter(g.module(**g.inputs).values())).numpy() for g in family.graphs(model)}


def groups(blocks, seed=0):
    return uniform(blocks, seed)


# --- the cut -------------------------------------------------------------------------------------------------------


@unit
def test_every_block_of_both_towers_is_found(family, folder):
    model = family.load(folder)
    found = {block.name: block for block in Dependencies(model, family.graphs(model), family.prunable(model)).blocks}
    assert len(found) == 2 * (3 + 2)
    attention, feed_forward = found["vision.layers.1.attention"], found["text.layers.0.feed_forward"]
    base = "vision_model.encoder.layers.1.self_attn"
    assert set(attention.producers) == {f"{base}.{part}_proj" for part in "qkv"}
    assert attention.consumers == (f"{base}.out_proj",)
    assert (attention.channels, attention.groups, attention.size) == (64, 8, 8)
    assert feed_forward.producers == ("text_model.encoder.layers.0.mlp.fc1",)
    assert feed_forward.consumers == ("text_model.encoder.layers.0.mlp.fc2",)
    assert (feed_forward.channels, feed_forward.groups, feed_forward.size) == (96, 96, 1)


@unit
def test_a_cut_model_answers_as_the_whole_one_with_the_same_channels_masked(family, folder):
    model, masked = family.load(folder), family.load(folder)
    found = Dependencies(model, family.graphs(model), family.prunable(model))
    generator = np.random.default_rng(0)
    for block in found.blocks:
        removed = generator.choice(block.groups, block.groups // 2, replace=False).tolist()
        channels = [group * block.size + offset for group in removed for offset in range(block.size)]
        with torch.no_grad():
            for name in block.consumers:
                masked.get_submodule(name).weight[:, channels] = 0
        found.cut(block, removed)
    whole, expected, got = outputs(family, family.load(folder)), outputs(family, masked), outputs(family, model)
    for name in ("vision_model", "text_model"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-6)
        assert np.abs(whole[name] - got[name]).max() > 1e-2


@unit
def test_attributes_follow_the_heads(family, folder):
    model = family.load(folder)
    found = Dependencies(model, family.graphs(model), family.prunable(model))
    found.cut(found.blocks[0], [0, 1, 5])
    attention = model.vision_model.encoder.layers[0].self_attn
    assert (attention.num_heads, attention.head_dim, attention.scale) == (5, 8, 8**-0.5)
    assert attention.q_proj.out_features == attention.v_proj.weight.shape[0] == attention.out_proj.in_features == 40
    assert attention.out_proj.out_features == 64
    assert model.text_model.encoder.layers[0].self_attn.num_heads == 6


@unit
def test_a_block_is_never_emptied(family, folder):
    model = family.load(folder)
    found = Dependencies(model, family.graphs(model), family.prunable(model))
    with pytest.raises(ValueError, match="all 8 groups"):
        found.cut(found.blocks[0], range(8))


# --- goals ---------------------------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize("ranking", ["global", "local"])
@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_the_goal_is_reached_in_each_tower(family, folder, unit, ranking):
    model = family.load(folder)
    budget = Budget(unit, 0.6)
    facts = prune_model(family, model, budget, groups, relative=True, ranking=ranking, round_to=4)
    assert facts["ratio"] == pytest.approx(0.6, rel=0.04)
    for tower, counts in facts["towers"].items():
        before, after = counts[unit]
        missed = any(note.startswith(tower) for note in facts["notes"])
        assert missed == (abs(after / before - 0.6) > 0.02 * 0.6)
        if ranking == "global":
            assert not missed
    assert facts["parameters"][1] == sum(parameter.numel() for parameter in model.parameters())
    for name, block in facts["blocks"].items():
        if ranking == "local":
            (before, after), same = (
                next(iter(block.values())),
                [value for other, value in facts["blocks"].items() if other.split(".")[0::3] == name.split(".")[0::3]],
            )
            assert all(value == block for value in same) and after < before
        if "width" in block:
            assert block["width"][1] % 4 == 0


@unit
def test_towers_have_budgets_of_their_own_and_one_may_be_kept(family, folder):
    model = family.load(folder)
    facts = prune_model(
        family, model, Budget("macs", 0.5, {"text": 1.0, "vision": 0.7}), groups, relative=True, round_to=2
    )
    before, after = facts["towers"]["vision"]["macs"]
    assert after / before == pytest.approx(0.7, rel=0.02)
    assert facts["towers"]["text"]["macs"][0] == facts["towers"]["text"]["macs"][1]
    assert facts["blocks"]["text.layers.1.attention"] == {"heads": [6, 6]}


@unit
def test_a_tower_that_matters_nothing_is_not_emptied(family, folder):
    model = family.load(folder)

    def score(blocks):
        return {b.name: [0.0 if b.prunable.tower == "text" else 1.0] * b.groups for b in blocks}

    facts = prune_model(family, model, Budget("macs", 0.6), score)
    for counts in facts["towers"].values():
        assert counts["macs"][1] / counts["macs"][0] == pytest.approx(0.6, rel=0.05)
    for block in facts["blocks"].values():
        assert block.get("heads", [0, 1])[1] >= 1
        assert block.get("width", [0, 8])[1] >= 8
    assert outputs(family, model)["text_model"].shape == (3, 20)


@unit
def test_only_feed_forward_widths(family, folder):
    model = family.load(folder)
    facts = prune_model(family, model, Budget("macs", 0.8), groups, relative=True, parts=("feed_forward",), round_to=2)
    assert all("width" in block for block in facts["blocks"].values())
    assert facts["ratio"] == pytest.approx(0.8, rel=0.02)
    assert model.vision_model.encoder.layers[0].self_attn.num_heads == 8


@unit
def test_a_goal_below_the_smallest_blocks_is_refused_with_the_nearest(family, folder):
    with pytest.raises(StageError, match=r"vision: macs: 0\.050 of its cost cannot be reached: 0\.\d+ is left"):
        prune_model(family, family.load(folder), Budget("macs", 0.05), groups)


@unit
def test_a_goal_that_removes_nothing_is_refused(family, folder):
    with pytest.raises(StageError, match="nothing would go"):
        prune_model(family, family.load(folder), Budget("macs", 0.5, {"vision": 1.0, "text": 1.0}), groups)


@unit
def test_a_tower_that_is_not_there_is_refused(family, folder):
    with pytest.raises(InputError, match="no audio; its towers: vision, text"):
        prune_model(family, family.load(folder), Budget("macs", 0.5, {"audio": 0.5}), groups)


# --- what the dependency graph refuses -----------------------------------------------------------------------------


@unit
def test_nothing_prunable_is_an_error(family, folder):
    model = family.load(folder)
    with pytest.raises(StageError, match="nothing that can be pruned"):
        Dependencies(model, family.graphs(model), [])


@unit
@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("vision_model.encoder.layers.9.mlp.fc1", "no module"),
        ("vision_model.post_layernorm", "no linear layer"),
        ("vision_model.encoder.layers.0.mlp.fc2", "would also cut"),
        ("visual_projection", "matched nothing"),
    ],
)
def test_a_block_that_cannot_be_cut_is_named(family, folder, root, message):
    model = family.load(folder)
    with pytest.raises(StageError, match=f"some.block: .*{message}"):
        Dependencies(model, family.graphs(model), [Prunable("some.block", "vision", root, None)])


@unit
def test_a_block_that_no_graph_runs_through_is_named(family, folder):
    model = family.load(folder)
    texts = [item for item in family.prunable(model) if item.tower == "text"]
    with pytest.raises(StageError, match=r"text\.layers\.0\.attention: no graph of the model runs through"):
        Dependencies(model, family.graphs(model)[:1], texts)


@unit
def test_taylor_finds_the_unit_that_does_nothing(family, folder, tmp_path):
    model = family.load(folder)
    dead = [3, 40, 77]
    with torch.no_grad():
        model.vision_model.encoder.layers[2].mlp.fc2.weight[:, dead] = 0
    family.save(model, folder, tmp_path / "dead")
    stage = Prune(
        goal={"macs": 0.98}, towers={"text": 1.0}, parts=("feed_forward",), round_to=1, samples=8, batch_size=4
    )
    stage.run(given(family, tmp_path / "dead", tmp_path / "run"))
    kept = family.load(tmp_path / "run/output").vision_model.encoder.layers[2].mlp.fc2.weight
    assert kept.shape[1] <= 128 - len(dead)
    assert (kept.abs().sum(dim=0) > 0).all()


# --- the stage -----------------------------------------------------------------------------------------------------

REBUILD = """
import sys, numpy, torch
from pathlib import Path
from mmcompress.families.clip import Clip
torch.set_num_threads(1)
folder = Path(sys.argv[1])
family = Clip(path=folder)
model = family.load(folder)
with torch.no_grad():
    arrays = {g.name: next(iter(g.module(**g.inputs).values())).numpy() for g in family.graphs(model)}
numpy.savez(sys.argv[2], **arrays)
"""


def test_pruned_twice_and_trained_it_is_rebuilt_bit_for_bit_in_a_new_process(family, folder, tmp_path):
    stage = Prune(goal={"macs": 0.7}, samples=8, batch_size=4, round_to=4)
    first = stage.run(given(family, folder, tmp_path / "first"))
    model = family.load(tmp_path / "first/output")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    family.save(model, tmp_path / "first/output", tmp_path / "trained")
    second = stage.run(given(family, tmp_path / "trained", tmp_path / "second"))
    assert second["macs"][0] == first["macs"][1]
    assert second["ratio"] == pytest.approx(0.7, rel=0.02)
    expected = outputs(family, family.load(tmp_path / "second/output"))
    subprocess.run(
        [sys.executable, "-c", REBUILD, str(tmp_path / "second/output"), str(tmp_path / "out.npz")],
        check=True,
        timeout=120,
    )
    with np.load(tmp_path / "out.npz", allow_pickle=False) as got:
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


@unit
def test_the_saved_model_is_the_one_that_was_cut(family, folder, tmp_path):
    model = family.load(folder)
    prune_model(family, model, Budget("macs", 0.5), groups, relative=True)
    family.save(model, folder, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    for name, array in outputs(family, model).items():
        np.testing.assert_array_equal(outputs(family, again)[name], array)
    attentions = zip(model.vision_model.encoder.layers, again.vision_model.encoder.layers, strict=True)
    assert all(ours.self_attn.num_heads == theirs.self_attn.num_heads for ours, theirs in attentions)


def test_the_same_seed_prunes_the_same(family, folder, tmp_path):
    stage = Prune(goal={"macs": 0.5}, samples=6, batch_size=3)
    stage.run(given(family, folder, tmp_path / "a"))
    stage.run(given(family, folder, tmp_path / "b"))
    assert component.digest_path(tmp_path / "a/output") == component.digest_path(tmp_path / "b/output")


@unit
def test_taylor_without_examples_is_refused(family, folder, tmp_path):
    one = given(family, folder, tmp_path, train=Pairs(ids=("0",)))
    by_weights = Prune(goal={"macs": 0.5}, importance="magnitude")
    by_weights.run(one)
    for field, value in (("importance", "taylor"), ("ranking", "measured"), ("reconstruct", True)):
        with pytest.raises(StageError, match=f"{field}: .* needs training examples"):
            by_weights.model_copy(update={field: value}).run(one)


@unit
def test_eager_attention_traces_the_same(family, folder):
    costs = []
    for attention in ("sdpa", "eager"):
        model = family.load(folder, attention=attention)
        found = Dependencies(model, family.graphs(model), family.prunable(model))
        costs.append((found.blocks, count(found, "macs").towers, count(found, "macs").parts))
    assert costs[0] == costs[1]


@unit
def test_tied_layers_stay_tied_or_are_refused(family, folder):
    def tied():
        model = family.load(folder)
        layers = model.text_model.encoder.layers
        layers[1].mlp = copy.deepcopy(layers[0].mlp)
        layers[1].mlp.fc1.weight, layers[1].mlp.fc2.weight = layers[0].mlp.fc1.weight, layers[0].mlp.fc2.weight
        return model

    def alike(blocks):
        return {b.name: [float(group) for group in range(b.groups)] for b in blocks}

    model = tied()
    prune_model(family, model, Budget("macs", 0.7), alike, relative=True, ranking="local")
    layers = model.text_model.encoder.layers
    assert layers[0].mlp.fc1.weight is layers[1].mlp.fc1.weight
    assert layers[0].mlp.fc1.out_features < 96
    with pytest.raises(StageError, match="are tied and would be cut differently"):
        prune_model(family, tied(), Budget("macs", 0.7), groups, relative=True)


# --- stages after a cut -------------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize(
    ("cut", "opens"), [({"parts": ["feed_forward"], "ranking": "local"}, "opens it too"), ({}, "does not open it")]
)
def test_what_opens_a_pruned_model_is_said_again_when_a_later_stage_saves_it(family, folder, tmp_path, cut, opens):
    Prune.model_validate({"goal": {"macs": 0.8}, "importance": "magnitude", "round_to": 4, **cut}).run(
        given(family, folder, tmp_path / "cut")
    )
    distill = component.find("stages", "distill").model_validate({**RECOVER, "epochs": 1})
    for source, name in ((tmp_path / "cut/output", "after"), (folder, "uncut")):
        asked = given(family, source, tmp_path / name)
        distill.run(dataclasses.replace(asked, teacher=Model(family, folder), teacher_key="whole"))
    told = (tmp_path / "after/output/README.md").read_text()
    assert told == (tmp_path / "cut/output/README.md").read_text() and opens in told
    assert not (tmp_path / "uncut/output/README.md").exists(), "nothing was pruned"
