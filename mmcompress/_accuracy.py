"""Accuracy under control: INT8 graphs judged by the recipe's own metrics on validation data, against FP32."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._answers import Answers, Opened
from mmcompress.component import JSON
from mmcompress.data import Examples
from mmcompress.data._splits import subset
from mmcompress.errors import StageError
from mmcompress.families import Family, Feeds, Request
from mmcompress.metrics import Bench, Metric, Subject
from mmcompress.metrics._quality import Quality
from mmcompress.runtimes import Quantize, Runtime, Scheme, Session
from mmcompress.runtimes._search import Drop, Drops, Search

if TYPE_CHECKING:
    from mmcompress.pipeline import Planner
    from mmcompress.recipe import Recipe

NEARNESS_EXAMPLES = 64
"""Validation examples on which a graph's outputs are compared with FP32's."""
ALPHA = 0.05
KEPT_ANSWERS = 6
"""Answers of INT8 graphs over all validation examples that are held at once."""
_Key = tuple[str, tuple[tuple[str, str], ...]]


# --- when the recipe is read ---------------------------------------------------------------------------------------


def examples_needed(max_drop: float) -> int:
    """Examples with which even a graph that loses nothing can be shown to lose at most ``max_drop`` (0 to 1).

    Of n examples without a change the rate of changes is below ``1 - 0.05^(1/n)``, about 3/n, with 95 % confidence
    (Hanley and Lippman-Hand, JAMA 249, 1983).
    """
    return math.ceil(math.log(ALPHA) / math.log1p(-max_drop)) if 0 < max_drop < 1 else 1


def promise_problems(recipe: Recipe) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the ``max_drop`` of a recipe: location and message. Reads the validation data's length."""
    asked: list[tuple[tuple[str | int, ...], Quantize]] = [(("quantize",), recipe.quantize)]
    for index, target in enumerate(recipe.targets):
        if target.quantize is not None:
            asked.append((("targets", index, target.component_name(), "quantize"), target.quantize))
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for target in recipe.targets:
        settings = target.quantize or recipe.quantize
        if settings.precision == "auto" and not target.runs_here():
            where = asked[0][0] if target.quantize is None else ("targets", target.component_name(), "quantize")
            message = (
                f"auto times on this machine, and {target.component_name()} for {target.machine_class()} cannot run here; "
                "name int8 or fp32"
            )
            problems.append(((*where, "precision"), message))
    for where, settings in asked:
        for name, limit in settings.max_drop.items():
            problem = _problem(recipe, settings, name, limit)
            if problem is not None:
                problems.append(((*where, "max_drop", name), problem))
    return problems


def _problem(recipe: Recipe, settings: Quantize, name: str, limit: float) -> str | None:
    metrics = metrics_of(recipe.measure.metrics, [name])
    if not metrics:
        qualities = [metric for metric in recipe.measure.metrics if isinstance(metric, Quality)]
        known = sorted(known for metric in qualities for known in metric.gives() if "." not in known)
        return f"no metric of measure.metrics gives {name!r}; they give {', '.join(known) or 'nothing of quality'}"
    if recipe.data.validation is None:
        return "a drop is measured on validation data; expected data.validation"
    if settings.proof == "point":
        return None
    if limit == 0:
        return "no number of examples shows that nothing at all is lost; allow more than 0, or write `proof: point`"
    from mmcompress.splits import open_splits

    _, validation, _ = open_splits(recipe)
    gallery = getattr(metrics[0], "gallery_size", None) or 1
    used = len(validation or ()) // gallery * gallery
    needed = -(-examples_needed(limit) // gallery) * gallery
    if used >= needed:
        return None
    return (
        f"{used} validation examples cannot show a drop of at most {limit:g}, even where nothing is lost: "
        f"expected {needed} or more. Give more, allow more, or write `proof: point`"
    )


def metrics_of(metrics: Sequence[Metric], names: Sequence[str]) -> list[Quality]:
    """The quality metrics that give these names."""
    return [metric for metric in metrics if isinstance(metric, Quality) and metric.gives() & set(names)]


# --- judging -------------------------------------------------------------------------------------------------------


class _Kept(Answers):
    """Answers of which some are known already."""

    def know(
        self, opened: Mapping[str, Opened], answers: Mapping[tuple[str, str], Any], columns: Mapping[str, Any]
    ) -> None:
        """Take models that are open, answers by subject and request, and columns of the data."""
        self._opened = dict(opened)
        self._answers = {(name, request, None): rows for (name, request), rows in answers.items()}
        self._columns = dict(columns)

    def known(self) -> tuple[dict[tuple[str, str], NDArray[Any]], dict[str, Any]]:
        """What :meth:`know` takes, for the next time."""
        answers = {(name, request): rows for (name, request, damage), rows in self._answers.items() if damage is None}
        return answers, dict(self._columns)


class GraphJudge:
    """Judges INT8 graphs with the graphs of FP32 beside them; answers that no changed graph has part in are kept."""

    def __init__(
        self,
        family: Family,
        model: Path,
        graphs: Mapping[str, Path],
        metrics: Sequence[Metric],
        names: Sequence[str],
        validation: Examples,
        seed: int,
        open_graph: Callable[[str, Path], Session],
    ) -> None:
        self.family, self.model, self.graphs, self.names = family, model, dict(graphs), tuple(names)
        offered = frozenset(request.name for request in family.requests)
        self.metrics = [metric.fitted(offered) for metric in metrics_of(metrics, names)]
        self.validation, self.seed, self.open_graph = validation, seed, open_graph
        self.processor = family.processor(model)
        self._float = {name: open_graph(name, path) for name, path in self.graphs.items()}
        self._answers: dict[_Key, NDArray[Any]] = {}
        self._columns: dict[str, Any] = {}
        self._beginning: dict[str, list[tuple[Feeds, Feeds]]] = {}

    def drops(self, graphs: Mapping[str, Path], open_graph: Callable[[str, Path], Session] | None = None) -> Drops:
        """What is lost of each metric, with its one-sided bound, over all validation examples.

        ``open_graph`` opens what is judged otherwise than the FP32 graphs that it is compared with.

        Raises:
            StageError: the validation data are too few for the metric, or the graphs give what is no number.
        """
        opened = {name: (open_graph or self.open_graph)(name, path) for name, path in graphs.items()}
        subjects = [self._subject("fp32", "torch"), self._subject("int8", "graphs")]
        runs = {"fp32": self._float, "int8": {**self._float, **opened}}
        requests = sorted({request for metric in self.metrics for request in metric.needs()})
        keys = {
            (subject.name, request.name): self._key(request, graphs if subject.name == "int8" else {})
            for subject in subjects
            for request in self.family.requests
        }
        answers = _Kept(subjects, self.validation, requests, 1)
        answers.know(
            {name: self._opened(sessions) for name, sessions in runs.items()},
            {place: self._answers[key] for place, key in keys.items() if key in self._answers},
            self._columns,
        )
        bench = Bench(self.validation, 1, self.seed, answers)
        rows = [row for metric in self.metrics for row in metric.judge(subjects, bench).rows if row.name == "int8"]
        known, self._columns = answers.known()
        self._answers.update({keys[place]: rows for place, rows in known.items()})
        changed = [key for key in self._answers if any(path != "fp32" for _, path in key[1])]
        for key in changed[:-KEPT_ANSWERS]:
            del self._answers[key]
        for session in opened.values():
            session.close()
        found = {}
        for name in self.names:
            of_name = [row for row in rows if row.metric == f"drop.{name}" and row.value is not None]
            if not of_name:
                raise StageError(
                    f"quantize.max_drop: {name} cannot be measured on {len(self.validation)} validation examples"
                )
            values, uppers = zip(
                *((float(row.value or 0), (row.one_sided95 or (0, 1))[1]) for row in of_name), strict=True
            )
            found[name] = Drop(max(values), float(max(uppers)))
        return found

    def nearness(self, graph: str, path: Path) -> float:
        """Signal to quantization noise of a graph's outputs in decibels; 200 where there is none."""
        if graph not in self._beginning:
            session = self._float[graph]
            fed = list(self._feeds(graph))
            self._beginning[graph] = [(feeds, session.run(graph, feeds)) for feeds in fed]
        session = self.open_graph(graph, path)
        signal = noise = 0.0
        for feeds, expected in self._beginning[graph]:
            found = session.run(graph, feeds)
            for name, value in expected.items():
                if value.dtype.kind == "f" and value.size:
                    signal += float(np.square(value, dtype=np.float64).sum())
                    noise += float(np.square(value - found[name], dtype=np.float64).sum())
        session.close()
        return min(200.0, 10 * math.log10(signal / noise)) if signal > 0 and noise > 0 else 200.0

    def _feeds(self, graph: str) -> Iterator[Feeds]:
        from mmcompress.deploy import calibration_feeds, graph_requests

        request = next(request for request in graph_requests(self.family) if graph in request.graphs)
        examples = subset(self.validation, min(NEARNESS_EXAMPLES, len(self.validation)), seed=self.seed)
        return calibration_feeds(self.family, self.model, self.graphs[graph].parent, request, graph, examples)

    def _subject(self, name: str, target: str) -> Subject:
        return Subject(
            name, name, "teacher" if name == "fp32" else "package", "package", target, self.family, self.model
        )

    def _opened(self, sessions: Mapping[str, Session]) -> Opened:
        return Opened(self.family, self.processor, lambda graph, feeds: sessions[graph].run(graph, feeds), lambda: None)

    def _key(self, request: Request, changed: Mapping[str, Path]) -> _Key:
        return request.name, tuple((name, str(changed.get(name, "fp32"))) for name in request.graphs)


# --- quantizing within bounds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """What INT8 may lose, and what that is measured with."""

    settings: Quantize
    metrics: Sequence[Metric]
    validation: Examples
    runtime: Runtime
    seed: int
    work: Path
    listen: Callable[[str, int, int], None]


def promise_of(planner: Planner, target: Runtime, where: str, work: Path) -> Promise:
    """What a recipe promises of a target; its reading has made sure that there are validation data."""
    recipe, validation = planner.recipe, planner.splits.validation
    assert validation is not None
    settings = target.quantize or recipe.quantize
    listen = partial(planner.listen, where)
    return Promise(settings, recipe.measure.metrics, validation, target, recipe.seed, work, listen)


def promise_identity(recipe: Recipe, target: Runtime) -> JSON:
    """What choices by measurement depend on, beside the validation data."""
    names = list((target.quantize or recipe.quantize).max_drop)
    return {
        "metrics": [metric.identity() for metric in metrics_of(recipe.measure.metrics, names)],
        "runtime": [target.identity(), target.machine_class(), dict(target.versions())],
        "seed": recipe.seed,
    }


def quantize_within(
    family: Family, model: Path, graphs: Path, scheme: Scheme, examples: Examples, output: Path, promise: Promise
) -> dict[str, JSON]:
    """Quantize as :func:`mmcompress.deploy.quantize` does, with choices that keep within ``max_drop``.

    Graphs are judged in the target's own runtime where it runs here, and in ONNX Runtime otherwise.

    Raises:
        StageError: the drop cannot be kept within ``max_drop``; names the nearest.
    """
    from mmcompress.deploy import Batches, describe_scheme, graph_bytes, graph_requests
    from mmcompress.runtimes._quantize import write_int8

    settings = promise.settings
    requests = {name: request for request in graph_requests(family)[::-1] for name in request.graphs}
    paths = {name: graphs / f"{name}.onnx" for name in requests}
    open_graph, judged_in = _opener(promise)
    judge = GraphJudge(
        family, model, paths, promise.metrics, list(settings.max_drop), promise.validation, promise.seed, open_graph
    )
    batches = {name: Batches(family, model, graphs, request, name, examples) for name, request in requests.items()}
    limits = dict(settings.max_drop)
    search = Search(paths, scheme, batches, judge, limits, settings.proof, promise.work, promise.listen)
    found = search.run()
    facts: dict[str, Any] = {}
    for name, choice in found.choices.items():
        calibrated = search.calibrated(name, choice.smoothing)
        facts[name] = write_int8(calibrated, output / f"{name}.onnx", scheme, choice)
        facts[name]["float_bytes"] = graph_bytes(paths[name])
    return {
        "calibration_examples": len(examples),
        "scheme": describe_scheme(scheme),
        "graphs": facts,
        "accuracy": {
            "max_drop": limits,
            "proof": settings.proof,
            "drop": {name: {"value": drop.value, "upper95": drop.upper} for name, drop in found.drops.items()},
            "validation_examples": len(promise.validation),
            "measured": found.tried,
            "judged_in": judged_in,
        },
    }


def drops_of_float(family: Family, model: Path, graphs: Path, promise: Promise, runtime: Runtime) -> Drops:
    """What is lost of the metrics of ``max_drop`` where a runtime computes the FP32 graphs in a smaller float."""
    names = list(dict.fromkeys(name for request in family.requests for name in request.graphs))
    paths = {name: graphs / f"{name}.onnx" for name in names}
    judge = GraphJudge(
        family,
        model,
        paths,
        promise.metrics,
        list(promise.settings.max_drop),
        promise.validation,
        promise.seed,
        _opener(promise)[0],
    )
    return judge.drops(paths, _opener(dataclasses.replace(promise, runtime=runtime))[0])


def _opener(promise: Promise) -> tuple[Callable[[str, Path], Session], str]:
    from mmcompress.component import digest_json, digest_path
    from mmcompress.runtimes.onnxruntime import OnnxRuntime

    runtime: Runtime = promise.runtime if promise.runtime.runs_here() else OnnxRuntime()

    def open_graph(name: str, path: Path) -> Session:
        folder = promise.work / "engines" / digest_json([runtime.identity(), digest_path(path)])[:16]
        if not (folder / "done").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            runtime.compile({name: path}, folder)
            (folder / "done").touch()
        return runtime.open(folder, [name], None)

    return open_graph, runtime.component_name()
