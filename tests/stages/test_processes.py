"""Several processes train one model: the same gradients as one process, one artifact, and disagreement is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import training_helpers
from safetensors.torch import load_file
from small_objective import BATCH, apart, batch, gradients, objective, whole_batch
from training_helpers import write_model

from mmcompress import _processes
from mmcompress.losses.contrastive_kl import ContrastiveKL
from mmcompress.losses.feature_mse import FeatureMSE
from mmcompress.losses.icl import ICL
from mmcompress.losses.logits_kl import LogitsKL
from mmcompress.losses.task import Task

LOSSES = [
    ContrastiveKL(),
    ICL(),
    FeatureMSE(weight=2.0),
    LogitsKL(output="decoder.logits", mask="decoder.mask"),
    Task(),
]

CHILD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from small_objective import BATCH, batch, gradients, objective, whole_batch
from test_processes import LOSSES
from mmcompress import _processes
from mmcompress.stages._whole_batch_modules import cut
with _processes.together():
    import torch.distributed.nn.functional  # as libraries do, late
    half = BATCH // 2
    given = cut(batch(), slice(half * _processes.rank(), half * (_processes.rank() + 1)), BATCH)
    # Each process cuts its texts to the longest of its own, as its own examples give it.
    longest = int((given["inputs"]["labels"] >= 0).sum(dim=1).max())
    for feeds in given.values():
        for name in ("labels", "frames", "decoder.logits", "decoder.mask"):
            if name in feeds:
                feeds[name] = feeds[name][:, :longest]
    found = {}
    for parts in (1, 3):
        made = objective(LOSSES)
        terms = whole_batch(made)(given, parts)
        found |= {f"{parts}.{name}": value for name, value in {**gradients(made), **terms}.items()}
    disagreed = "no"
    try:
        _processes.agree("the recipe", "a" * 64 if _processes.rank() else "b" * 64)
    except Exception as error:
        disagreed = str(error)
    assert _processes.told_by_first(f"from {_processes.rank()}") == "from 0"
    save_file(found, f"{sys.argv[1]}/{_processes.rank()}.safetensors", metadata={"disagreed": disagreed})
threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], "a thread that outlives the interpreter aborts the process"
"""


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(**given: Any) -> dict[str, str]:
    paths = [str(Path(training_helpers.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        **{k: str(v) for k, v in given.items()},
    }


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    children = [
        subprocess.Popen(command, env=environment(RANK=rank, LOCAL_RANK=rank, **shared), stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors.decode()

    made = objective(LOSSES)
    terms = whole_batch(made)(batch())
    expected = {**gradients(made), **terms}
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for parts in (1, 3):
            own = {name: found[f"{parts}.{name}"] for name in expected}
            assert apart(own, expected) < 1e-5, (rank, parts)
            torch.testing.assert_close(own["loss"], expected["loss"], rtol=1e-5, atol=0)
    assert BATCH % 2 == 0


@pytest.mark.unit
def test_without_torchrun_there_is_one_process() -> None:
    assert (_processes.count(), _processes.rank()) == (1, 0)
    tensor = torch.ones(2, 3)
    assert _processes.joined(tensor) is _processes.added_up(tensor) is tensor
    with _processes.together():
        _processes.agree("anything", "one")
        assert _processes.first(lambda: 3) == 3


@pytest.mark.unit
def test_what_fills_up_texts_is_found_where_the_shortest_text_is() -> None:
    tokens = torch.tensor([[5, 6, 9, 9], [5, 9, 9, 9], [5, 6, 7, 8]])
    assert _processes._longest_tail(tokens) == (3, 9)
    assert _processes._longest_tail(torch.tensor([[5, 6], [7, 8]])) == (1, 6)


# --- the command line ----------------------------------------------------------------------------------------------

RECIPE = """
version: 1
name: two
teacher: {{clip: {{path: {teacher}}}}}
data: {{train: {{scenes: {{split: train, size: 64, image_size: 24}}}}}}
stages:
  - distill:
      student: {{from_teacher: {{vision_layers: 1}}}}
      steps: {steps}
      batch_size: 16
      precision: fp32
      checkpoint_minutes: 0.002
"""


def distill(root: Path, store: str, steps: int) -> subprocess.Popen[str]:
    recipe = root / f"recipe-{steps}.yaml"
    recipe.write_text(RECIPE.format(teacher=root / "teacher", steps=steps))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port()}"]
    command = [sys.executable, *torchrun, "-m", "mmcompress", "distill", str(recipe), "--store", str(root / store)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_torchrun_builds_one_artifact_and_one_process_tells_of_it(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher")
    child = distill(tmp_path, "store", 4)
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    (folder,) = (tmp_path / "store" / "artifacts" / "distill").iterdir()
    assert out == f"{folder}\n"
    assert errors.count("stages.0 distill: built in") == 1
    facts = json.loads((folder / "artifact.json").read_text())["facts"]
    assert (facts["processes"], facts["steps"]) == (2, 4)
    assert not list((tmp_path / "store" / "work").iterdir())


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_what_goes_on_ends_the_same(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", dropout=0.1)
    killed = distill(tmp_path, "killed", 150)
    deadline = time.monotonic() + 120
    while not (done := list((tmp_path / "killed" / "work").glob("*/training/checkpoint-*/complete.json"))):
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert done
    workers = {one.environ()["RANK"]: one for one in psutil.Process(killed.pid).children()}
    workers["1"].kill()
    killed.communicate(timeout=60)
    assert killed.returncode != 0
    assert not any(one.is_running() for one in workers.values())

    for store in ("killed", "whole"):
        child = distill(tmp_path, store, 150)
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    folders = [next((tmp_path / store / "artifacts" / "distill").iterdir()) for store in ("killed", "whole")]
    facts = [json.loads((folder / "artifact.json").read_text())["facts"] for folder in folders]
    assert facts[0]["resumed_from"] > 0 == facts[1]["resumed_from"]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
