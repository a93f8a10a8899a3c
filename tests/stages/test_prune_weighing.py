"""What a cut is decided by and made up for: sensitivity and reconstruction, by numbers computed by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from mmcompress.families import Prunable
from mmcompress.families.clip import Clip
from mmcompress.stages import Model, StageInput
from mmcompress.stages._choice import Plan, Tower, cumulated
from mmcompress.stages._importance import encode
from mmcompress.stages._pruning import Block, Dependencies, Layer
from mmcompress.stages._reconstruction import RIDGE, reconstruct
from mmcompress.stages._removing import Found
from mmcompress.stages._sensitivity import Outputs, curve, measured, without
from mmcompress.stages.prune import Prune

torch = pytest.importorskip("torch")
from pruned_clip import write_small_clip  # noqa: E402
from test_prune import Pairs  # noqa: E402

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]
UNITS = Block(Prunable("units", "tower", "first", None), 0, ("first",), ("second",), 2, 2)
INPUTS = ({"x": torch.tensor([[1.0], [2.0], [3.0]])},)


class Two(torch.nn.Module):
    """y = 3 x - 2 x + 1 by two units, the second always twice the first; z does not depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(1, 2, bias=False)
        self.second = torch.nn.Linear(2, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [2.0]]))
            self.second.weight.copy_(torch.tensor([[3.0, -1.0]]))
            self.second.bias.fill_(1.0)


class Gives:
    """The family of :class:`Two`; remembers what was wanted of it."""

    def __init__(self) -> None:
        self.wanted: list[frozenset[str]] = []

    def task_needs(self) -> frozenset[str]:
        return frozenset({"y", "z", "scale"})

    def outputs(self, model, batch, want):
        self.wanted.append(want)
        every = {"y": model.second(model.first(batch["x"])), "z": batch["x"], "scale": torch.tensor(2.0)}
        return {name: every[name] for name in want}


# --- sensitivity ---------------------------------------------------------------------------------------------------


def test_how_far_outputs_move_by_hand():
    # Without unit 1 y moves by -3 x, without unit 2 by +2 x; the outputs' squared distances from their mean are 2.
    model, family = Two(), Gives()
    outputs = Outputs(family, model, INPUTS)
    assert outputs.moved([("second.weight", 1, [0])]) == pytest.approx(9 * 14 / 2)
    assert outputs.moved([("second.weight", 1, [1])]) == pytest.approx(4 * 14 / 2)
    assert outputs.moved([]) == 0.0
    assert model.second.weight.tolist() == [[3.0, -1.0]]


def test_what_a_tower_does_not_move_is_not_run():
    family = Gives()
    outputs = Outputs(family, Two(), INPUTS).reached_from([UNITS])
    assert outputs.moved([("second.weight", 1, [0])]) == pytest.approx(63)
    assert family.wanted[-1] == {"y"} and family.wanted[0] == {"y", "z", "scale"}


def test_a_masked_layer_gives_neither_products_nor_biases():
    block = dataclasses.replace(UNITS, layer=Layer("layers", 1))
    model = Two()
    # y = x + 1 becomes 0: by 4 + 9 + 16 of 2.
    assert Outputs(Gives(), model, INPUTS).moved(without(Layer("layers", 1), [block])) == pytest.approx(29 / 2)
    assert not list(without(Layer("layers", 0), [block]))
    assert model.second.bias.tolist() == [1.0]


def test_between_measured_counts_the_loss_grows_as_importance_does():
    importance = cumulated([0.0, 1.0, 3.0])
    assert curve(importance, {3: 8.0}).tolist() == pytest.approx([0.0, 0.0, 2.0, 8.0], abs=1e-6)
    assert curve(importance, {2: 5.0, 3: 4.0}).tolist() == pytest.approx([0.0, 0.0, 5.0, 5.0], abs=1e-6)
    assert curve(cumulated([0.0, 0.0]), {2: 1.0}).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_units_that_stand_in_for_each_other_are_missed_more_than_their_importances_say():
    """Either of the two alone is told as half as important as both together would say."""
    tower = Tower("tower", (UNITS,), {"units": cumulated([1.0, 1.0])}, {"units": (2, 1)})
    seen = []
    found = measured(tower, {"units": [2.0, 1.0]}, Outputs(Gives(), Two(), INPUTS), lambda *done: seen.append(done))
    assert found.losses["units"].tolist() == pytest.approx([0.0, 28.0, 28.0])  # one unit always stays
    assert found.layer_losses is None and seen == [(1, 1)]


# --- reconstruction ------------------------------------------------------------------------------------------------


def test_what_stays_makes_up_for_what_goes_by_hand():
    """y = x + 1 of unit 1 = x alone: the weight 1, drawn to the 3 that it was by the ridge, and the bias that follows."""
    model, notes = Two(), []
    found = Found(Holding(model, [UNITS]), {}, notes)
    outputs = Outputs(Gives(), model, INPUTS)
    reconstruct(found, {"tower": Plan({"units": 1})}, {"units": [2.0, 1.0]}, outputs, INPUTS)
    weight = (1 + RIDGE * 3) / (1 + RIDGE)
    assert model.second.weight.tolist() == [pytest.approx([weight, 0.0])]
    assert model.second.bias.item() == pytest.approx(3 - weight * 2)  # the means of y and x
    assert model.first.weight.tolist() == [[1.0], [2.0]] and not notes


def test_what_is_not_cut_stays_as_it_is():
    model = Two()
    found = Found(Holding(model, [UNITS]), {}, [])
    reconstruct(found, {"tower": Plan({"units": 2})}, {"units": [2.0, 1.0]}, Outputs(Gives(), model, INPUTS), INPUTS)
    assert model.second.weight.tolist() == [[3.0, -1.0]]


class Holding(Dependencies):
    """Blocks of a model that need no tracing."""

    def __init__(self, model, blocks) -> None:
        self.model, self.blocks = model, blocks


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_clip(tmp_path_factory.mktemp("model"))


def test_what_was_measured_is_told(folder, tmp_path):
    given = StageInput(
        Model(Clip(path=folder), folder), None, Pairs(), None, 0, tmp_path / "output", tmp_path, tmp_path
    )
    stage = Prune(goal={"macs": 0.7}, towers={"text": 1.0}, parts=("heads", "layers"))
    told = stage.run(given)["sensitivity"]
    assert set(told["blocks"]) == {f"vision.layers.{index}.attention" for index in range(3)}
    assert set(told["layers"]) == {f"vision_model.encoder.layers.{index}" for index in range(3)}
    for points in told["blocks"].values():
        left, moved = zip(*points, strict=True)
        assert left == tuple(range(8, 0, -1)) and moved[0] == 0.0 < moved[-1] and sorted(moved) == list(moved)
    by_weights = Prune(goal={"macs": 0.7}, importance="random").run(replace(given, output=tmp_path / "other"))
    assert "sensitivity" not in by_weights


@pytest.mark.parametrize(
    "fields",
    [
        {"goal": {"macs": 0.5}},
        {"goal": {"macs": 0.5}, "parts": ["heads", "feed_forward", "layers"]},
        {"goal": {"macs": 0.6}, "parts": ["head_width", "feed_forward"], "round_to": 2},
        {"goal": {"macs": 0.4}, "parts": ["heads", "feed_forward", "width"], "round_to": 4},
        {"goal": {"macs": 0.5}, "ranking": "local"},
        {"goal": {"macs": 0.5}, "importance": "activation"},
    ],
)
def test_a_reconstructed_model_stays_nearer_to_the_whole_one(fields, folder, tmp_path):
    family = Clip(path=folder)
    pairs = Pairs(ids=tuple(str(index) for index in range(256)))
    distances = []
    for reconstructed in (False, True):
        work = tmp_path / str(reconstructed)
        work.mkdir()
        output = work / "output"
        given = StageInput(Model(family, folder), None, pairs, None, 0, output, work, work / "cache")
        Prune.model_validate({**fields, "reconstruct": reconstructed, "samples": 256}).run(given)
        distances.append(_distance(family, folder, output))
    assert distances[1] < 0.9 * distances[0]


def _distance(family, whole, cut) -> float:
    """Mean squared distance of the embeddings of pictures of the same kind, which nothing was fitted on."""
    others = [Pairs()[index].values for index in range(1000, 1064)]
    batch = encode(family, family.processor(whole), others)
    want = frozenset({"vision.embeds"})
    with torch.no_grad():
        one, other = (family.outputs(family.load(place), batch, want)["vision.embeds"] for place in (whole, cut))
    return float((one - other).square().sum(dim=1).mean())
