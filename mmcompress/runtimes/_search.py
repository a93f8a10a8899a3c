"""Which calibrator, which smoothing and which operators in float keep a drop within bounds: decided by measurement.

Nothing here knows what is measured. A :class:`Judge` gives the drops of a set of INT8 graphs, and how near one graph's
outputs are to FP32's; both are kept in a file, so that a search that was killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mmcompress.component import digest_json
from mmcompress.errors import StageError
from mmcompress.families import Feeds
from mmcompress.runtimes import Scheme
from mmcompress.runtimes._histogram import Calibrator
from mmcompress.runtimes._quantize import Calibrated, Choice, calibrate, write_int8
from mmcompress.store import read_json, write_json

CALIBRATORS: tuple[Calibrator, ...] = ("minmax", "percentile", "mse", "entropy")
SMOOTHINGS: tuple[float | None, ...] = (None, 0.5)
"""SmoothQuant's alpha; None leaves activations as they are."""
JUDGED = 3
"""Candidates per graph, best outputs first, that the metric chooses among."""
Proof = Literal["interval", "point"]
Choices = dict[str, Choice]
Listen = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Drop:
    """What is lost of a metric on validation data."""

    value: float
    upper: float
    """The upper end of its one-sided 95 % paired interval."""

    def at(self, proof: Proof) -> float:
        """The end that a promise is held to."""
        return self.upper if proof == "interval" else self.value


Drops = Mapping[str, Drop]


class Judge(Protocol):
    """Measures INT8 graphs against FP32 on validation data."""

    def drops(self, graphs: Mapping[str, Path]) -> Drops:
        """What is lost by metric, with these graphs in INT8 and the others in FP32."""
        ...

    def nearness(self, graph: str, path: Path) -> float:
        """How near a graph's outputs are to FP32's: their signal to quantization noise in decibels."""
        ...


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    choices: Choices
    drops: Drops
    tried: int
    """Sets of graphs whose drops were measured."""


class Search:
    """One search over the graphs of a model."""

    def __init__(
        self,
        graphs: Mapping[str, Path],
        scheme: Scheme,
        batches: Mapping[str, Iterable[Feeds]],
        judge: Judge,
        limits: Mapping[str, float],
        proof: Proof,
        work: Path,
        listen: Listen,
    ) -> None:
        self.graphs, self.scheme, self.batches, self.judge = graphs, scheme, batches, judge
        self.limits, self.proof, self.work, self.listen = limits, proof, work, listen
        self._calibrated: dict[tuple[str, float | None], Calibrated] = {}
        self._kept = work / "search.json"
        self._measured: dict[str, Any] = read_json(self._kept) if self._kept.is_file() else {}
        self._tried: list[tuple[Choices, Drops]] = []

    def run(self) -> Found:
        """Choose per graph, then leave as few operators in float as the limits allow.

        Raises:
            StageError: no set of operators in float keeps within the limits; names the nearest that was found.
        """
        choices = {name: self._best_choice(name) for name in self.graphs}
        drops = self._drops(choices)
        if self._excess(drops) > 0:
            choices, drops = self._with_floats(choices)
        return Found(choices, drops, len(self._tried))

    def calibrated(self, graph: str, smoothing: float | None) -> Calibrated:
        """What a graph saw, with or without smoothing; seen once."""
        key = graph, smoothing
        if key not in self._calibrated:
            self.listen(f"{graph}: calibrating{'' if smoothing is None else f', smoothed by {smoothing:g}'}", 0, 0)
            self._calibrated[key] = calibrate(self.graphs[graph], self.scheme, self.batches[graph], (), smoothing)
        return self._calibrated[key]

    def write(self, graph: str, choice: Choice) -> Path:
        """The graph in INT8 by a choice, in the work folder."""
        folder = self.work / f"{graph}-{self._key(graph, choice)[:16]}"
        path = folder / f"{graph}.onnx"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / "part.onnx"
            write_int8(self.calibrated(graph, choice.smoothing), part, self.scheme, choice)
            part.replace(path)
        return path

    # --- calibrators and smoothing ---

    def _best_choice(self, graph: str) -> Choice:
        """Of the candidates whose outputs are nearest to FP32's, the one that loses least, this graph alone in INT8."""
        candidates = [
            Choice(calibrator, smoothing)
            for smoothing in SMOOTHINGS
            for calibrator in CALIBRATORS
            if smoothing is None or self.calibrated(graph, smoothing).smoothed
        ]
        ranked = sorted(candidates, key=lambda choice: -self._nearness(graph, choice))
        return min(ranked[:JUDGED], key=lambda choice: self._excess(self._drops({graph: choice})))

    # --- operators in float ---

    def _with_floats(self, choices: Choices) -> tuple[Choices, Drops]:
        """The fewest operators in float within the limits, by bisection over their ranking."""
        ranking = self._ranked(choices)
        kept = self._leaving(choices, ranking)
        drops = self._drops(kept)
        if self._excess(drops) > 0:
            raise StageError(self._unreachable())
        few, many = 0, len(ranking)
        while many - few > 1:
            middle = (few + many) // 2
            tried = self._leaving(choices, ranking[:middle])
            lost = self._drops(tried)
            if self._excess(lost) > 0:
                few = middle
            else:
                kept, drops, many = tried, lost, middle
        return kept, drops

    def _ranked(self, choices: Choices) -> list[tuple[str, str]]:
        """Graph and operator, those first whose rounding costs the outputs most; one of each graph is not among them."""
        gains = []
        for graph, choice in choices.items():
            names = self.calibrated(graph, choice.smoothing).candidates
            before = self._nearness(graph, choice)
            found = []
            for number, name in enumerate(names):
                self.listen(f"{graph}: what its operators cost in INT8", number, len(names))
                after = self._nearness(graph, dataclasses.replace(choice, float_nodes=(name,))) if len(names) > 1 else 0
                found.append((after - before, graph, name))
            gains += sorted(found, reverse=True)[: len(names) - 1]
        return [(graph, name) for _, graph, name in sorted(gains, reverse=True)]

    @staticmethod
    def _leaving(choices: Choices, floats: Sequence[tuple[str, str]]) -> Choices:
        return {
            graph: dataclasses.replace(choice, float_nodes=tuple(sorted(name for at, name in floats if at == graph)))
            for graph, choice in choices.items()
        }

    def _unreachable(self) -> str:
        choices, drops = min(self._tried, key=lambda tried: self._excess(tried[1]))
        bound = "at most with 95 % confidence" if self.proof == "interval" else "on validation data"
        lost = ", ".join(f"{name} {drops[name].at(self.proof):.4g}" for name in self.limits)
        wanted = ", ".join(f"{name} {limit:g}" for name, limit in self.limits.items())
        floats = sum(len(choice.float_nodes) for choice in choices.values())
        return (
            f"quantize.max_drop: no INT8 graph keeps within {wanted}\n"
            f"  The nearest loses {lost} ({bound}), with {floats} operators in float ({', '.join(choices)} in INT8).\n"
            "  Allow more, give more validation data, or choose `precision: fp32`."
        )

    # --- measuring ---

    def _excess(self, drops: Drops) -> float:
        """By how much the worst drop is over its limit, relative to the limit or absolute where nothing may be lost."""
        return max((drops[name].at(self.proof) - limit) / (limit or 1.0) for name, limit in self.limits.items())

    def _drops(self, choices: Choices) -> Drops:
        key = digest_json({graph: self._key(graph, choice) for graph, choice in choices.items()})
        if key not in self._measured:
            self.listen(f"measuring {', '.join(choices)} in INT8 on validation data", len(self._tried), 0)
            drops = self.judge.drops({graph: self.write(graph, choice) for graph, choice in choices.items()})
            self._keep(key, {name: [drop.value, drop.upper] for name, drop in drops.items()})
        found = {name: Drop(*ends) for name, ends in self._measured[key].items()}
        self._tried.append((choices, found))
        return found

    def _nearness(self, graph: str, choice: Choice) -> float:
        key = self._key(graph, choice)
        if key not in self._measured:
            self._keep(key, self.judge.nearness(graph, self.write(graph, choice)))
        return float(self._measured[key])

    def _keep(self, key: str, value: Any) -> None:
        self._measured[key] = value
        write_json(self._kept, self._measured)

    @staticmethod
    def _key(graph: str, choice: Choice) -> str:
        return digest_json([graph, dataclasses.asdict(choice)])
