"""Families of every kind of block: what may be cut of it is cut, written, and read again to the same outputs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))
from contract import cases  # noqa: E402

from mmcompress.errors import StageError  # noqa: E402
from mmcompress.recipe import load_recipe  # noqa: E402
from mmcompress.stages._cutting import Budget, prune_model  # noqa: E402
from mmcompress.stages._importance import uniform  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
PARTS = {
    "width": ("width",),
    "everything": ("heads", "head_width", "feed_forward", "width", "layers"),
}
IMPOSSIBLE = dict.fromkeys(
    [("blip-caption", "width"), ("captioner", "width"), ("fusion-class", "width")], "no tower's width can be cut"
)
"""What an architecture does not allow, and how the error begins to say so."""
NAMES = ("blip-caption", "captioner", "clap", "clip", "fusion-class", "perceiver-text")
CASES = {case.name: case for case in cases() if case.name in NAMES}


ALWAYS = ("captioner", "clip")
"""The others run with the slow tests."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow]) for name in CASES],
)
def written(request, tmp_path_factory):
    """A family with a model folder of random weights."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = load_recipe(CASES[request.param].recipe(folder))
    family = recipe.stages[0].student
    family.write(folder / "model", 0)
    return request.param, family, folder / "model"


def outputs(family, model) -> dict[str, np.ndarray]:
    found = {}
    with torch.no_grad():
        for graph in family.graphs(model):
            found.update({f"{graph.name}.{name}": v.numpy() for name, v in graph.module(**graph.inputs).items()})
    return found


@pytest.mark.parametrize("what", list(PARTS))
def test_what_is_cut_is_read_again(written, what, tmp_path):
    name, family, folder = written
    model = family.load(folder)
    before = sum(parameter.numel() for parameter in model.parameters())
    budget = Budget("parameters", 0.9)
    try:
        facts = prune_model(
            family, model, budget, lambda blocks: uniform(blocks, 0), parts=PARTS[what], relative=True, round_to=4
        )
    except StageError as error:
        assert (name, what) in IMPOSSIBLE, error
        assert IMPOSSIBLE[name, what] in str(error)
        return
    assert (name, what) not in IMPOSSIBLE
    assert sum(parameter.numel() for parameter in model.parameters()) < before == facts["parameters"][0]
    family.save(model, folder, tmp_path / "cut")
    again = family.load(tmp_path / "cut")
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    read, kept = outputs(family, again), outputs(family, model.eval())
    assert read.keys() == kept.keys()
    assert all(np.array_equal(read[n], kept[n]) and np.isfinite(read[n]).all() for n in read)
