"""What an installation can do: the package with the ``cpu`` extra alone, in an environment that pip made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmcompress import runs
from mmcompress.data.scenes import Scenes
from tests.small_recipe import write_project

pytestmark = pytest.mark.slow

ANSWER = """
import importlib.util, json, sys
import numpy as np
import mmcompress
folder, data = sys.argv[1:]
for name in ("torch", "transformers", "onnx", "accelerate", "torch_pruning"):
    assert importlib.util.find_spec(name) is None, name
pictures = np.load(f"{data}/pictures.npy", allow_pickle=False)
texts = json.load(open(f"{data}/texts.json"))
with mmcompress.load_package(folder, threads=1) as package:
    assert all((check.lowest or 0.0) > 0.999 for check in package.check_probe().values())
    similar = package.embed_images(list(pictures)) @ package.embed_texts(texts).T
    first = package.classify(pictures[0], texts)
assert first.label == texts[int(similar[0].argmax())]
print(json.dumps(similar.argmax(1).tolist()))
"""


def test_the_cpu_extra_alone_answers_as_the_report_says(tmp_path: Path, root: Path) -> None:
    outcome = runs.run(write_project(tmp_path / "project"), store=tmp_path / "store", runs=tmp_path / "runs")
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", root / "constraints.txt", f"{root}[cpu]"]
    subprocess.run(install, check=True, cwd=tmp_path)

    examples = Scenes(split="test", size=20, image_size=24).read()
    pictures = np.stack([np.asarray(examples[i].values["image"]) for i in range(20)])
    np.save(tmp_path / "pictures.npy", pictures)
    (tmp_path / "texts.json").write_text(json.dumps([examples[i].values["texts"][0] for i in range(20)]))
    command = [python, "-c", ANSWER, outcome.folder / "packages" / "onnxruntime", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    found = json.loads(done.stdout)
    samples = outcome.folder / "samples" / "recall_at_1.onnxruntime-int8.jsonl"
    reported = [json.loads(line) for line in samples.read_text().splitlines()][:20]
    assert [examples.ids[index] for index in found] == [record["answer"] for record in reported]


def test_the_wheel_brings_the_recipes_and_their_teacher(tmp_path: Path, root: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, root], check=True)
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert "mmcompress/recipes/quickstart.yaml" in names
    assert "mmcompress/recipes/scenes_teacher/model.safetensors" in names
