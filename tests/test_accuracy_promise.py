from __future__ import annotations

import itertools

import deployed
import pytest

from mmcompress import deploy
from mmcompress._accuracy import GraphJudge, Promise, examples_needed
from mmcompress._fastest import Candidate, decide, interleaved
from mmcompress.errors import RecipeError
from mmcompress.metrics.recall_at_k import RecallAtK
from mmcompress.pipeline import Planner
from mmcompress.recipe import load_recipe
from mmcompress.runtimes import Quantize
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.store import Store
from tests.small_recipe import RECIPE, write_teacher

GRAPHS = ("vision_model", "text_model")
METRICS = (RecallAtK(k=(1, 5), gallery_size=20),)


def judge(count=60):
    folder, _ = deployed.exported()
    paths = {name: folder / f"{name}.onnx" for name in GRAPHS}
    made = deployed.model()

    def open_graph(name, path):
        return OnnxRuntime().open(path.parent, [name], 1)

    return GraphJudge(
        made.family, made.folder, paths, METRICS, ["recall_at_1", "mrr"], deployed.Pictures(count), 0, open_graph
    )


def test_how_many_examples_a_promise_needs():
    assert examples_needed(0.005) == 598, "0.05 ** (1 / 598) is 0.99500"
    assert examples_needed(0.001) == 2995 and examples_needed(0.5) == 5
    assert 1 - 0.05 ** (1 / 598) <= 0.005 < 1 - 0.05 ** (1 / 597)


def test_graphs_that_lose_nothing_have_the_bound_of_their_number():
    folder, _ = deployed.exported()
    drops = judge().drops({name: folder / f"{name}.onnx" for name in GRAPHS})
    assert drops["recall_at_1"].value == 0.0
    assert drops["recall_at_1"].upper == pytest.approx(1 - 0.05 ** (1 / 60))


def test_judging_one_tower_leaves_the_other_in_fp32():
    folder, _ = deployed.quantized()
    found = judge()
    one = found.drops({"vision_model": folder / "vision_model.onnx"})
    both = found.drops({name: folder / f"{name}.onnx" for name in GRAPHS})
    assert one != both and one["mrr"].value != 0.0
    assert found.drops({"vision_model": folder / "vision_model.onnx"}) == one, "answers that are kept change nothing"


def test_nearness_is_the_signal_to_noise_of_the_outputs():
    exact, int8 = deployed.exported()[0], deployed.quantized()[0]
    found = judge()
    assert found.nearness("vision_model", exact / "vision_model.onnx") == 200.0
    assert 15 < found.nearness("vision_model", int8 / "vision_model.onnx") < 60


def promise(tmp_path, limit, proof="point"):
    settings = Quantize(max_drop={"mrr": limit}, proof=proof, calibration_samples=48)
    return Promise(settings, METRICS, deployed.Pictures(60), OnnxRuntime(), 0, tmp_path, lambda *told: None)


def test_choices_within_a_bound_and_what_they_were_made_of(tmp_path):
    (tmp_path / "out").mkdir()
    made, scheme = deployed.model(), OnnxRuntime().scheme()
    graphs = deployed.exported()[0]
    facts = deploy.quantize(
        made.family,
        made.folder,
        graphs,
        scheme,
        deployed.Pictures(48),
        tmp_path / "out",
        promise=promise(tmp_path, 0.01),
    )
    assert facts["accuracy"]["drop"]["mrr"]["value"] <= 0.01
    assert facts["accuracy"]["judged_in"] == "onnxruntime" and facts["accuracy"]["measured"] > 2
    for name in GRAPHS:
        assert facts["graphs"][name]["calibrator"] in ("minmax", "percentile", "mse", "entropy")
        assert (tmp_path / "out" / f"{name}.onnx").is_file()
    again = judge().drops({name: tmp_path / "out" / f"{name}.onnx" for name in GRAPHS})
    assert again["mrr"].value == pytest.approx(facts["accuracy"]["drop"]["mrr"]["value"], abs=1e-9)


# --- auto ----------------------------------------------------------------------------------------------------------


def candidates(**refused):
    runtime, folder = OnnxRuntime(), deployed.root()
    return [Candidate(name, folder, runtime, refused.get(name)) for name in ("fp32", "int8")]


def test_the_fastest_wins_and_the_table_says_by_how_much():
    blocks = {"fp32": [[4.0, 4.0], [4.2, 4.2]], "int8": [[2.0, 2.0], [2.1, 2.1]]}
    found = decide(candidates(), blocks, 0)
    assert found["precision"] == "int8"
    assert found["candidates"]["fp32"]["times_the_winner"] == pytest.approx(2.0)
    assert found["candidates"]["int8"]["times_the_winner"] == 1.0
    refused = decide(candidates(int8="loses more"), blocks, 0)
    assert refused["precision"] == "fp32" and refused["candidates"]["int8"]["refused"] == "loses more"
    assert refused["candidates"]["int8"]["times_the_winner"] == pytest.approx(0.5)
    slower = decide(candidates(), {name: blocks[other] for name, other in (("fp32", "int8"), ("int8", "fp32"))}, 0)
    assert slower["precision"] == "fp32", "INT8 that is slower does not win"


def test_blocks_are_interleaved(monkeypatch):
    monkeypatch.setattr("mmcompress._fastest.BLOCK_SECONDS", 0.001)
    monkeypatch.setattr("mmcompress._fastest.PAUSE_SECONDS", 0.0)
    order = []
    blocks = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 0)
    assert {name: len(found) for name, found in blocks.items()} == {"a": 12, "b": 12}
    changes = sum(first != second for first, second in itertools.pairwise(order))
    assert changes >= 6


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ("{max_drop: {recall_at_1: 0.005}}", r"max_drop.recall_at_1: 40 validation examples cannot .*expected 600"),
        ("{max_drop: {recall_at_1: 0}}", "no number of examples shows that nothing at all is lost"),
        ("{max_drop: {wer: 0.1}}", "no metric of measure.metrics gives 'wer'; they give mrr, recall_at_1"),
        ("{max_drop: {recall_at_1: -1}}", "expected numbers from 0"),
        ("{max_drop: {recall_at_1: 0.1}, calibrator: mse}", "max_drop chooses by measurement, and calibrator is given"),
        ("{precision: auto}", "expected max_drop to say how much"),
        ("{precision: fp32, max_drop: {recall_at_1: 0.1}}", "fp32 loses nothing"),
        ("{proof: point}", "there is no max_drop"),
        ("{calibrator: best}", "'minmax', 'percentile', 'entropy' or 'mse'"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused_when_the_recipe_is_read(tmp_path, quantize, message):
    write_teacher(tmp_path / "teacher")
    text = RECIPE.replace("{precision: int8, calibration_samples: 16}", quantize)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_promise_by_point_needs_no_number_of_examples(tmp_path):
    write_teacher(tmp_path / "teacher")
    quantize = "{max_drop: {recall_at_1: 0.005}, proof: point}"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("{precision: int8, calibration_samples: 16}", quantize))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.quantize.proof == "point"
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("  validation:", "  # validation:")
    )
    with pytest.raises(RecipeError, match=r"expected data.validation"):
        load_recipe(tmp_path / "recipe.yaml")


def test_auto_is_refused_for_another_machine(tmp_path):
    write_teacher(tmp_path / "teacher")
    quantize = "{precision: auto, max_drop: {recall_at_1: 0.1}}"
    other = "x86-avx2" if OnnxRuntime().machine_class() != "x86-avx2" else "arm64"
    text = RECIPE.replace("{precision: int8, calibration_samples: 16}", quantize)
    (tmp_path / "recipe.yaml").write_text(text.replace("[onnxruntime]", f"[{{onnxruntime: {{for: {other}}}}}]"))
    with pytest.raises(RecipeError, match=f"auto times on this machine, and onnxruntime for {other} cannot run here"):
        load_recipe(tmp_path / "recipe.yaml")


def test_auto_ships_what_was_fastest_and_is_found_again(tmp_path):
    write_teacher(tmp_path / "teacher")
    quantize = "{precision: auto, max_drop: {recall_at_1: 0.9}, proof: point, calibration_samples: 16}"
    text = RECIPE.replace("{precision: int8, calibration_samples: 16}", quantize).replace(
        "demand: {size_ratio: 1.5}", ""
    )
    text = text[: text.index("stages:")] + text[text.index("quantize:") :]
    (tmp_path / "recipe.yaml").write_text(text)
    planner = Planner(load_recipe(tmp_path / "recipe.yaml"), Store(tmp_path / "store"))
    plan = planner.plan()
    package = next(made for made in plan.packages if made.role == "package")
    manifest = planner.get(package.step).manifest
    chosen = planner.get(next(step for step in plan.deployment if step.kind == "choose")).manifest["facts"]
    assert manifest["facts"]["precision"] == chosen["precision"] in ("fp32", "int8")
    assert set(chosen["candidates"]) == {"fp32", "int8"} and chosen["unbuilt"] == {}
    assert chosen["candidates"]["int8"]["drop"]["recall_at_1"]["value"] <= 0.9
    assert all(entry["p50_ms"] > 0 for entry in chosen["candidates"].values())
    assert chosen["candidates"][chosen["precision"]]["times_the_winner"] == 1.0
    again = Planner(load_recipe(tmp_path / "recipe.yaml"), Store(tmp_path / "store"))
    assert again.get(package.step).key == manifest["key"] and again.built == 0
