"""What a cut is decided by and made up for: sensitivity and reconstruction, by numbers computed by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from mmcompress.errors import StageError
from mmcompress.families import Prunable
from mmcompress.families._structure import drop_layers
from mmcompress.families.clip import Clip
from mmcompress.stages import Model, StageInput
from mmcompress.stages._choice import Plan, Tower, cumulated
from mmcompress.stages._cutting import Choosing, find, scored
from mmcompress.stages._importance import encode, taylor, uniform
from mmcompress.stages._pruning import Block, Dependencies
from mmcompress.stages._reconstruction import RIDGE, reconstruct
from mmcompress.stages._removing import Found
from mmcompress.stages._sensitivity import (
    OVERFLOW,
    TaskOutputs,
    curve,
    group_mask,
    mask_parameters,
    measured,
    weighed,
)
from mmcompress.stages.prune import Prune

torch = pytest.importorskip("torch")
from pruned_clip import write_small_clip  # noqa: E402
from test_prune import Pairs  # noqa: E402

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]
UNITS = Block(Prunable("units", "tower", "first", None), 0, ("first",), ("second",), 2, 2)
Y = frozenset({"y"})
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

    def provides(self) -> frozenset[str]:
        return self.task_needs()

    def outputs(self, model, batch, want):
        self.wanted.append(want)
        every = {"y": model.second(model.first(batch["x"])), "z": batch["x"], "scale": torch.tensor(2.0)}
        return {name: every[name] for name in want}


# --- sensitivity ---------------------------------------------------------------------------------------------------


def test_how_far_outputs_move_by_hand():
    # Without unit 1 y moves by -3 x, without unit 2 by +2 x; the outputs' squared distances from their mean are 2.
    model, family = Two(), Gives()
    outputs = TaskOutputs(family, model, INPUTS)
    assert outputs.change([("second.weight", 1, [0])], Y) == pytest.approx(9 * 14 / 2)
    assert outputs.change([("second.weight", 1, [1])], Y) == pytest.approx(4 * 14 / 2)
    assert outputs.change([], Y) == 0.0
    assert model.second.weight.tolist() == [[3.0, -1.0]]


def test_what_a_tower_does_not_move_is_not_computed():
    family = Gives()
    outputs = TaskOutputs(family, Two(), INPUTS)
    assert outputs.reached_from([UNITS]) == Y
    assert outputs.change([("second.weight", 1, [0])], Y) == pytest.approx(63)
    assert family.wanted[-1] == Y and family.wanted[0] == {"y", "z", "scale"}


def test_a_tower_that_no_output_depends_on_is_refused():
    model = Two()
    with torch.no_grad():
        model.second.weight.zero_()
    with pytest.raises(StageError, match="no output of the task depends on tower"):
        TaskOutputs(Gives(), model, INPUTS).reached_from([UNITS])


def test_outputs_that_overflow_are_no_small_change():
    model = Two()
    with torch.no_grad():
        model.second.bias.fill_(1.0)
    outputs = TaskOutputs(Gives(), model, INPUTS)
    with torch.no_grad():
        model.second.bias.fill_(float("nan"))
    assert outputs.change([], Y) == OVERFLOW


def test_tied_weights_are_masked_once_and_given_back():
    model = Two()
    model.again = model.second
    model.other = torch.nn.Linear(2, 1)
    model.other.weight = model.second.weight
    outputs = TaskOutputs(Gives(), model, INPUTS)
    outputs.change([("second.weight", 1, [0]), ("other.weight", 1, [0])], Y)
    assert model.second.weight.tolist() == [[3.0, -1.0]]
    before = mask_parameters(model, [("second.weight", 1, [0]), ("other.weight", 1, [1])])
    assert model.second.weight.tolist() == [[0.0, 0.0]] and len(before) == 1


class Masked(Gives):
    """Two tokens of which the second is padding, and other each time."""

    def task_needs(self) -> frozenset[str]:
        return frozenset({"decoder.logits"})

    def provides(self) -> frozenset[str]:
        return frozenset({"decoder.logits", "decoder.mask"})

    def outputs(self, model, batch, want):
        told = model.second(model.first(batch["x"]))
        logits = torch.cat([told, torch.zeros_like(told)], dim=1)
        tokens = torch.stack([logits, torch.rand_like(logits)], dim=1)
        return {"decoder.logits": tokens, "decoder.mask": torch.tensor([[1, 0]] * len(told))}


def test_tokens_that_do_not_count_are_not_compared():
    outputs = TaskOutputs(Masked(), Two(), INPUTS)
    assert outputs.change([], frozenset({"decoder.logits"})) == 0.0
    # Of the other token, with the logits x + 1 and 0, or 1 - 2 x and 0 when unit 1 is masked, the mean divergence.
    whole, masked = [1 / (1 + math.exp(-x - 1)) for x in (1, 2, 3)], [1 / (1 + math.exp(2 * x - 1)) for x in (1, 2, 3)]
    parts = [p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p, q in zip(whole, masked, strict=True)]
    change = outputs.change([("second.weight", 1, [0])], frozenset({"decoder.logits"}))
    assert change == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_between_measured_counts_the_loss_grows_as_importance_does():
    importance = cumulated([0.0, 1.0, 3.0])
    assert curve(importance, {3: 8.0}).tolist() == pytest.approx([0.0, 0.0, 2.0, 8.0], abs=1e-6)
    assert curve(importance, {2: 5.0, 3: 4.0}).tolist() == pytest.approx([0.0, 0.0, 5.0, 5.0], abs=1e-6)
    assert curve(cumulated([0.0, 0.0]), {2: 1.0}).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_units_that_stand_in_for_each_other_are_missed_more_than_their_importances_say():
    """Either of the two alone is told as half as important as both together would say."""
    tower = Tower("tower", (UNITS,), {"units": cumulated([1.0, 1.0])}, {"units": (2, 1)})
    seen = []
    outputs = TaskOutputs(Gives(), Two(), INPUTS)
    found = measured(tower, {"units": [2.0, 1.0]}, outputs, lambda *done: seen.append(done))
    assert found == {"units": [(1, pytest.approx(28.0))]} and seen == [(1, 1)]
    by_sensitivity = weighed(tower, found)
    assert by_sensitivity.losses["units"].tolist() == pytest.approx([0.0, 28.0, 28.0])  # one unit always stays
    assert by_sensitivity.layer_losses is None


# --- reconstruction ------------------------------------------------------------------------------------------------


def test_what_stays_makes_up_for_what_goes_by_hand():
    """y = x + 1 of unit 1 = x alone: the weight 1, drawn to the 3 that it was by the ridge, and the bias that follows."""
    model, notes = Two(), []
    found = Found(Holding(model, [UNITS]), {}, notes)
    outputs = TaskOutputs(Gives(), model, INPUTS)
    reconstruct(found, {"tower": Plan({"units": 1})}, {"units": [2.0, 1.0]}, outputs, INPUTS)
    # Squares of x are 2 about their mean and 14 about zero, which is what the ridge is told in.
    weight = (2 + 14 * RIDGE * 3) / (2 + 14 * RIDGE)
    assert model.second.weight.tolist() == [pytest.approx([weight, 0.0])]
    assert model.second.bias.item() == pytest.approx(3 - weight * 2)  # the means of y and x
    assert model.first.weight.tolist() == [[1.0], [2.0]] and not notes


def test_inputs_that_hardly_change_are_not_made_large():
    """Unit 1 is a constant with a trace of what unit 2 is: fitted to that trace its weight would be a million."""
    model = Two()
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[1e-6], [2.0]]))
    model.first.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    found = Found(Holding(model, [UNITS]), {}, [])
    outputs = TaskOutputs(Gives(), model, INPUTS)
    reconstruct(found, {"tower": Plan({"units": 1})}, {"units": [2.0, 1.0]}, outputs, INPUTS)
    assert model.second.weight.tolist() == [pytest.approx([3.0, 0.0], rel=1e-3)]
    assert model.second.bias.item() == pytest.approx(-3.0, rel=1e-3)  # the mean of y, 0, takes it up


def test_what_is_not_cut_stays_as_it_is():
    model = Two()
    found = Found(Holding(model, [UNITS]), {}, [])
    reconstruct(
        found, {"tower": Plan({"units": 2})}, {"units": [2.0, 1.0]}, TaskOutputs(Gives(), model, INPUTS), INPUTS
    )
    assert model.second.weight.tolist() == [[3.0, -1.0]]


def test_a_layer_that_takes_more_than_a_block_keeps_the_rest():
    """y = 3 a - b + 5 c, where the block is a and b at the inputs 1 and 2, b = 2 a, and c stays beside them at 0."""

    class Three(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(1, 2, bias=False)
            self.second = torch.nn.Linear(3, 1, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([[1.0], [2.0]]))
                self.second.weight.copy_(torch.tensor([[5.0, 3.0, -1.0]]))

    class Beside(Gives):
        def outputs(self, model, batch, want):
            joined = torch.cat([batch["x"] ** 2, model.first(batch["x"])], dim=1)
            return {"y": model.second(joined)}

    model = Three()
    block = dataclasses.replace(UNITS, offsets=(1,))
    assert block.columns("second") == slice(1, 3)
    assert group_mask(block, [1]) == [("second.weight", 1, [2])]
    losses = (Beside().outputs(model, {"x": x}, Y)["y"].sum() for x in [torch.ones(1, 1)])
    assert taylor([block], model, losses) == {"units": [pytest.approx(3), pytest.approx(2)]}
    found = Found(Holding(model, [block]), {}, [])
    reconstruct(
        found, {"tower": Plan({"units": 1})}, {"units": [2.0, 1.0]}, TaskOutputs(Beside(), model, INPUTS), INPUTS
    )
    assert model.second.weight.tolist() == [[5.0, pytest.approx((1 + RIDGE * 3) / (1 + RIDGE)), 0.0]]


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
    told = stage.run(given)["sensitivity"]["vision"]
    attentions = {f"vision.layers.{index}.attention" for index in range(3)}
    layers = {f"vision_model.encoder.layers.{index}" for index in range(3)}
    assert set(told) == attentions | layers
    for name in attentions:
        left, changes = zip(*told[name], strict=True)
        assert left == tuple(range(7, 0, -1)) and 0 < changes[0] < changes[-1]
    family, model = Clip(path=folder), Clip(path=folder).load(folder)
    batches = [encode(family, family.processor(folder), [Pairs()[index].values for index in _drawn(8)])]
    outputs = TaskOutputs(family, model, batches)
    drop_layers(model, "vision_model.encoder.layers", [0, 2])
    (gone,) = told["vision_model.encoder.layers.1"]
    assert gone == (0, pytest.approx(outputs.change([], frozenset({"vision.embeds"})), rel=1e-4))
    by_weights = Prune(goal={"macs": 0.7}, importance="random").run(
        dataclasses.replace(given, output=tmp_path / "other")
    )
    assert "sensitivity" not in by_weights


def test_another_goal_asks_nothing_of_data_again(folder, tmp_path):
    heard: list[str] = []
    model, goals = Model(Clip(path=folder), folder), iter(range(9))

    def cut(share: float, seed: int = 0, identity: str | None = "pairs") -> dict[str, bytes]:
        output = tmp_path / f"output-{next(goals)}"
        given = StageInput(model, None, Pairs(), None, seed, output, tmp_path, tmp_path / "cache")
        given = dataclasses.replace(
            given, train_identity=identity, progress=lambda message, done, of: heard.append(message)
        )
        heard.clear()
        facts = Prune(goal={"macs": share}, reconstruct=False).run(given)
        assert set(facts["sensitivity"]) == {"text", "vision"}
        return {name: (output / name).read_bytes() for name in ("model.safetensors", "structure.json")}

    asked = {"ranking by taylor", "masking parts of vision", "masking parts of text"}
    cut(0.8)
    assert asked <= set(heard)
    again = cut(0.6)
    assert not asked & set(heard)
    assert again == cut(0.6, identity=None) and asked <= set(heard)  # data without a name is asked each time
    cut(0.6, seed=1)
    assert asked <= set(heard)


def _drawn(count):
    return np.random.default_rng(0).permutation(count)


def test_heads_of_full_width_stay_as_they_are(folder):
    """A plan names every attention that could be narrowed, those too that are not."""
    family = Clip(path=folder)
    model, whole = family.load(folder), family.load(folder)
    found = find(family, model, ("head_width", "feed_forward"))
    blocks = [block for block in found.dependencies.blocks if block.prunable.tower == "vision"]
    scores = uniform(scored(found, Choosing(("head_width", "feed_forward"))), 0)
    plan = Plan({b.name: b.groups for b in blocks}, {b.name: b.size for b in blocks if b.prunable.heads is not None})
    batches = [encode(family, family.processor(folder), [Pairs()[index].values for index in range(8)])]
    reconstruct(found, {"vision": plan}, scores, TaskOutputs(family, model, batches), batches)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


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
