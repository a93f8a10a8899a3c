"""Prune, distill, prune as a recipe: loaded in a new process bit for bit, exported, and shown by ``inspect``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from test_prune import REBUILD  # noqa: E402

from mmcompress import cli  # noqa: E402
from mmcompress.pipeline import Planner  # noqa: E402
from mmcompress.recipe import load_recipe  # noqa: E402
from mmcompress.runtimes.onnxruntime import OnnxRuntime  # noqa: E402
from mmcompress.store import Store  # noqa: E402
from tests.small_recipe import RECIPE, write_project  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = """\
stages:
  - prune: {goal: {parameters: 0.8}, parts: [heads, feed_forward, layers], importance: magnitude, round_to: 4}
  - distill: {losses: [feature_mse], steps: 4, batch_size: 16, precision: fp32}
  - prune: {goal: {macs: 0.8}, samples: 16, batch_size: 8, round_to: 4}
quantize: {precision: fp32}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Planner, list[Path], Path]:
    """The recipe's planner, its models in their order, and a run's folder with the package; nothing is measured."""
    torch.set_num_threads(1)
    head, rest = RECIPE.split("stages:")[0], RECIPE.split("targets:")[1]
    text = head + STAGES + "targets:" + rest.replace("demand: {size_ratio: 1.5}\n", "")
    recipe = write_project(tmp_path_factory.mktemp("project"), text)
    planner = Planner(load_recipe(recipe), Store(recipe.parent / "store"))
    plan = planner.plan()
    package = next(package for package in plan.packages if package.role == "package")
    run = recipe.parent / "run"
    shutil.copytree(planner.get(package.step).folder, run / "packages" / "onnxruntime")
    return planner, [planner.get(step.step).folder for step in plan.models], run


def outputs(family, model) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {g.name: next(iter(g.module(**g.inputs).values())).numpy() for g in family.graphs(model)}


def test_each_stage_goes_on_from_the_one_before(made):
    planner, (_, cut, trained, twice), _ = made
    family = planner.plan().models[-1].family
    counts = [sum(p.numel() for p in family.load(folder).parameters()) for folder in (cut, trained, twice)]
    assert counts[0] == counts[1] > counts[2]
    before, after = (family.load(folder).state_dict() for folder in (cut, trained))
    assert any(not torch.equal(before[name], after[name]) for name in before), "distill trained it"
    facts = [json.loads((folder / "artifact.json").read_text())["facts"] for folder in (cut, twice)]
    assert facts[1]["macs"][0] == facts[0]["macs"][1]
    assert all((folder / "README.md").is_file() for folder in (cut, trained, twice))


def test_the_result_is_loaded_in_a_new_process_bit_for_bit(made, tmp_path):
    planner, folders, _ = made
    family = planner.plan().models[-1].family
    expected = outputs(family, family.load(folders[-1]))
    command = [sys.executable, "-c", REBUILD, str(folders[-1]), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, timeout=120)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as got:
        assert set(got.files) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


def test_the_exported_graphs_answer_as_torch(made):
    planner, folders, run = made
    family = planner.plan().models[-1].family
    model = family.load(folders[-1])
    graphs = family.graphs(model)
    session = OnnxRuntime().open(run / "packages/onnxruntime", [graph.name for graph in graphs], threads=1)
    for graph in graphs:
        got = session.run(graph.name, {name: value.numpy() for name, value in graph.inputs.items()})
        with torch.no_grad():
            for name, value in graph.module(**graph.inputs).items():
                assert value.std() > 1e-3
                np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5)
    session.close()


@pytest.mark.parametrize("where", ["run", "package"])
def test_inspect_of_a_run_and_of_a_package_tells_teacher_and_student(made, where):
    planner, folders, run = made
    path = run if where == "run" else run / "packages/onnxruntime"
    found = CliRunner().invoke(cli.cli, ["inspect", str(path), "--store", str(planner.store.root)])
    assert found.exit_code == 0, found.output
    first = json.loads((folders[1] / "artifact.json").read_text())["facts"]["parameters"][0]
    last = json.loads((folders[-1] / "artifact.json").read_text())["facts"]["parameters"][1]
    assert f"model: {last:,} parameters ({last / first:.1%} of {first:,})" in found.output
    assert "vision.layers.0.attention" in found.output and " > " in found.output
