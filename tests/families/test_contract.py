"""Every family goes the whole way: a small model that learned its task is distilled, pruned, quantized and packaged.

Nothing is listed here: a family's file is found, and its ``small_<family>.py`` says how to train it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from contract import Case, agreement, cases, made

from mmcompress import component, deploy
from mmcompress.data._splits import subset
from mmcompress.errors import InputError
from mmcompress.families import Family
from mmcompress.store import read_json

BETTER = 0.2
AGREES = 0.985
ANSWERS = 400

WITHOUT_TORCH = """
import json, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "accelerate", "torch_pruning", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Absent())
import mmcompress
with mmcompress.load_package(sys.argv[1], threads=1) as package:
    columns, _ = package.probe()
    request = next(item for item in package.requests if item.name == sys.argv[2])
    values = {name: columns[name] for name in request.inputs}
    one = package.predict({name: column[0] for name, column in values.items()}, request.name)
    many = package.predict({name: list(column[:3]) for name, column in values.items()}, request.name)
    checks = package.check_probe()
    print(json.dumps({"lowest": {name: check.lowest for name, check in checks.items()}, "kind": type(one).__name__, "many": len(many)}))
assert not {"torch", "transformers"} & set(sys.modules)
"""

every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=case.name) for case in cases()],
)


@every_case
def test_the_teacher_learned_its_task(case: Case) -> None:
    found = made(case)
    value = found.row("teacher", case.metric).value
    assert value is not None
    better = case.majority - value if case.lower_is_better else value - case.majority
    assert better >= BETTER, f"{case.metric} {value:.3f}, the majority answer has {case.majority:.3f}"


@every_case
def test_graphs_equal_torch(case: Case) -> None:
    found = made(case)
    graphs = read_json(found.float_graphs / "artifact.json")["facts"]["graphs"]
    assert set(graphs) == {name for request in found.family.requests for name in request.graphs}
    for facts in graphs.values():
        assert facts["max_difference"] <= deploy.TOLERANCE
        assert facts["checked_batches"] == [1, 3, 8]


@every_case
def test_int8_answers_as_fp32(case: Case) -> None:
    same = agreement(made(case))
    assert len(same) >= ANSWERS
    assert same.mean() >= AGREES


@every_case
def test_the_way_made_it_smaller(case: Case) -> None:
    found = made(case)
    parameters = {row.name: row.value for row in found.outcome.rows if row.metric == "parameters"}
    last = [row.name for row in found.outcome.rows if row.role == "student" and row.metric == "parameters"][-1]
    assert parameters[last] < parameters["teacher"]
    graphs = read_json(found.package / "manifest.json")["graphs"]
    exact = read_json(found.float_graphs / "artifact.json")["facts"]["graphs"]
    assert sum(g["bytes"] for g in graphs.values()) < sum(g["bytes"] for g in exact.values())


@every_case
def test_the_package_answers_without_torch(case: Case) -> None:
    found = made(case)
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(found.package), case.request],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout.splitlines()[-1])
    assert told["many"] == 3
    assert all(lowest is not None and lowest > 0.999 for lowest in told["lowest"].values())


@every_case
def test_symmetric_graphs_build_for_tensorrt_rtx(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from mmcompress.runtimes import Runtime

    found = made(case)
    train = subset(found.planner.splits.train, 32)
    (tmp_path / "graphs").mkdir()
    runtimes = [component.parse("runtimes", {"tensorrt_rtx": {"for": machine}}) for machine in ("sm86", "sm89")]
    for number, runtime in enumerate(runtimes):
        assert isinstance(runtime, Runtime)
        if number == 0:
            scheme = runtime.scheme()
            deploy.quantize(found.family, found.model, found.float_graphs, scheme, train, tmp_path / "graphs")
        engines = tmp_path / runtime.machine_class()
        engines.mkdir()
        graphs = {path.stem: path for path in (tmp_path / "graphs").glob("*.onnx")}
        files = runtime.compile(graphs, engines)["files"]
        assert all((engines / str(file)).stat().st_size > 10_000 for file in files.values())


@pytest.mark.parametrize("name", component.names("families"))
def test_a_checkpoint_of_another_family_is_named(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "something-else"}))
    (source / "model.safetensors").write_bytes(b"")
    family = component.parse("families", {name: {"path": str(source)}})
    assert isinstance(family, Family)
    with pytest.raises(InputError, match="something-else"):
        family.write(tmp_path / "model", 0)
