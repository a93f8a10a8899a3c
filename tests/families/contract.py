"""What every family is held to, and how its small model is made: built once per case and shared by the contract tests.

A family's own part is ``small_<family>.py`` beside this file, with ``CASES``: recipes that train a small model from
nothing, on data that is generated, and take it the whole way.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress import component, runs
from mmcompress._ask import find_request
from mmcompress._probe import raw_values
from mmcompress.families import PADDING, Family, Feeds, Request
from mmcompress.metrics import Row
from mmcompress.pipeline import Planner
from mmcompress.recipe import load_recipe
from mmcompress.runtimes import Session
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.store import Store

GALLERY = 20
"""Texts that each picture is compared with, where the answers are embeddings."""
BATCH = 16


@dataclass(frozen=True)
class Case:
    """One model of a family, trained and compressed by a recipe."""

    name: str
    recipe: Callable[[Path], Path]
    """Writes everything into a folder and gives the recipe's path. The recipe has no teacher: its first stage makes it."""
    metric: str
    """The row that the teacher is judged by."""
    request: str
    """The request whose answers are compared between FP32 and INT8."""
    majority: float
    """What a model scores that always gives the same, likeliest answer."""
    lower_is_better: bool = False
    slow: bool = False
    """Runs with the slow tests: a further task of a family, of which another case runs always."""


@dataclass(frozen=True)
class Made:
    """What came of a case."""

    case: Case
    folder: Path
    outcome: runs.Outcome
    family: Family
    model: Path
    float_graphs: Path
    int8_graphs: Path
    planner: Planner

    @property
    def request(self) -> Request:
        return find_request(self.family.requests, self.case.request)

    @property
    def package(self) -> Path:
        return self.outcome.folder / "packages" / "onnxruntime"

    def row(self, name: str, metric: str) -> Row:
        found = [row for row in self.outcome.rows if row.name == name and row.metric == metric]
        assert found, f"no row {metric} of {name}; there are {sorted({(r.name, r.metric) for r in self.outcome.rows})}"
        return found[0]


def cases() -> list[Case]:
    """The cases of all families; a family without any is an error."""
    found = []
    for name in component.names("families"):
        module = importlib.import_module(f"small_{name}")
        assert any(not case.slow for case in module.CASES), f"{name} has no case that runs always"
        found += module.CASES
    return found


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def made(case: Case) -> Made:
    """Run a case's recipe: once per process."""
    import torch

    torch.set_num_threads(1)
    holder = tempfile.TemporaryDirectory(prefix=f"mmcompress-{case.name}-")
    _KEPT.append(holder)
    folder = Path(holder.name)
    recipe, store = case.recipe(folder), folder / "store"
    outcome = runs.run(recipe, store=store, runs=folder / "runs")
    assert not outcome.failures
    planner = Planner(load_recipe(recipe), Store(store))
    plan = planner.plan()
    exports = [step for step in plan.deployment if step.kind == "export"]
    quantized = [step for step in plan.deployment if step.kind == "quantize"]
    last = plan.models[-1]
    return Made(
        case,
        folder,
        outcome,
        last.family,
        planner.get(last.step).folder,
        planner.get(exports[-1]).folder,
        planner.get(quantized[-1]).folder,
        planner,
    )


# --- INT8 against FP32 ---------------------------------------------------------------------------------------------


class Pair:
    """Runs FP32 and INT8 side by side: both get the inputs of FP32, and what they computed themselves before.

    A decoder so reads the same tokens in both (those that FP32 chose), and each its own encoder's states and cache.
    """

    def __init__(self, exact: Session, int8: Session) -> None:
        self.exact, self.int8 = exact, int8
        self.counterparts: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
        self.calls: list[tuple[str, Feeds, Feeds]] = []

    def __call__(self, graph: str, feeds: Feeds) -> Feeds:
        own = {name: self.counterparts.get(id(value), (value, value))[1] for name, value in feeds.items()}
        exact, int8 = self.exact.run(graph, feeds), self.int8.run(graph, own)
        self.counterparts.update({id(value): (value, int8[name]) for name, value in exact.items()})
        self.calls.append((graph, exact, int8))
        return exact


def agreement(found: Made) -> NDArray[np.bool_]:
    """Whether INT8 answers as FP32 does, one by one; tokens under FP32's own tokens as input."""
    family, request = found.family, found.request
    processor = family.processor(found.model)
    graphs = list(request.graphs)
    exact, int8 = (OnnxRuntime().open(folder, graphs, threads=1) for folder in (found.float_graphs, found.int8_graphs))
    test = found.planner.splits.test
    assert test is not None
    if request.name == "match" and request.answers == "numbers":
        return _fitting_agreement(found, exact, int8)
    same: list[NDArray[np.bool_]] = []
    whole: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for start in range(0, len(test), BATCH):
        examples = [test[index] for index in range(start, min(start + BATCH, len(test)))]
        feeds = processor.encode(raw_values(examples, request.inputs))
        pair = Pair(exact, int8)
        answers = family.answer(pair, request.name, feeds)
        if request.answers == "tokens":
            same.append(_token_agreement(pair, answers))
        else:
            whole.append((answers, family.answer(int8.run, request.name, feeds)))
    if request.answers == "tokens":
        return np.concatenate(same)
    if request.answers == "embeds":
        return _nearest_agreement(found, exact, int8, *(np.concatenate(part) for part in zip(*whole, strict=True)))
    return np.concatenate([_answer_agreement(request, one, other) for one, other in whole])


def _fitting_agreement(found: Made, exact: Session, int8: Session) -> NDArray[np.bool_]:
    """Whether both find the same text of all that there are to fit a picture best."""
    test, processor = found.planner.splits.test, found.family.processor(found.model)
    assert test is not None
    texts = sorted({test[index].values["texts"][0] for index in range(len(test))})
    same = []
    for index in range(len(test)):
        feeds = processor.encode({"image": [test[index].values["image"]] * len(texts), "text": texts})
        one, other = (found.family.answer(session.run, "match", feeds) for session in (exact, int8))
        same.append(one.argmax() == other.argmax())
    return np.array(same)


def _token_agreement(pair: Pair, answers: NDArray[Any]) -> NDArray[np.bool_]:
    steps = [(exact["logits"], int8["logits"]) for graph, exact, int8 in pair.calls if graph.startswith("decoder")]
    if not steps:  # one graph gives all of them, a frame each
        ((_, exact, int8),) = [call for call in pair.calls if "logits" in call[1]]
        same: NDArray[np.bool_] = exact["logits"].argmax(-1) == int8["logits"].argmax(-1)
        return same.reshape(-1)
    lengths = (answers != PADDING).sum(axis=1)
    parts = []
    for position, (one, other) in enumerate(steps):
        counted = lengths >= position  # the token that ends a sequence counts too
        parts.append((one[:, -1].argmax(-1) == other[:, -1].argmax(-1))[counted])
    return np.concatenate(parts)


def _nearest_agreement(
    found: Made, exact: Session, int8: Session, one: NDArray[Any], other: NDArray[Any]
) -> NDArray[np.bool_]:
    """The nearest text among :data:`GALLERY`, by both models' own texts."""
    texts = find_request(found.family.requests, "embed_text")
    test = found.planner.splits.test
    assert test is not None
    processor = found.family.processor(found.model)
    sessions = [
        OnnxRuntime().open(folder, list(texts.graphs), threads=1) for folder in (found.float_graphs, found.int8_graphs)
    ]
    values = raw_values([test[index] for index in range(len(one))], texts.inputs)
    feeds = processor.encode(values)
    # Equal texts are one answer, whichever of them is nearest.
    _, told = np.unique(np.array(values["text"]), return_inverse=True)
    gallery = [found.family.answer(session.run, texts.name, feeds) for session in sessions]
    same = []
    for start in range(0, len(one) // GALLERY * GALLERY, GALLERY):
        rows = slice(start, start + GALLERY)
        nearest = [(mine[rows] @ its[rows].T).argmax(axis=1) for mine, its in zip((one, other), gallery, strict=True)]
        same.append(told[rows][nearest[0]] == told[rows][nearest[1]])
    return np.concatenate(same)


def _answer_agreement(request: Request, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    if request.answers == "scores":
        return np.asarray(one.argmax(axis=1) == other.argmax(axis=1))
    if request.answers == "tags":
        return np.asarray((one == other)[one != PADDING])
    spread = max(float(one.std()), 1e-6)
    return np.asarray((np.abs(one - other) <= 0.1 * spread).all(axis=1))


def rows_by(rows: Mapping[str, Any], **conditions: Any) -> bool:
    """Whether conditions hold in a row's conditions."""
    return all(rows.get(name) == value for name, value in conditions.items())
