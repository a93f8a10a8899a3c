"""From a table of measured times to what a block of any width costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcompress.stages._pruning import Block, Layer


def scales(
    table: Mapping[str, Any], blocks: Sequence[Block], widths: Mapping[str, Block]
) -> dict[str, list[tuple[float, float]]]:
    """Per tower, by growing width: its share of the whole width, and what the tower takes over the sum of its parts.

    Layers beside each other take more or less than the sum of what each takes in a shallow model, by a share that depends
    on the width: the caches and the threads see other sizes. The table's ``joint`` points, towers of all layers that are
    cut in half, say how much.
    """
    prices = TimePrices(table, blocks, widths)
    joint = [point for point in table["points"] if point.get("joint")]
    return {tower: sorted(prices.whole_over_parts(tower, point) for point in joint) for tower in prices.towers}


class TimePrices:
    """Milliseconds of blocks, layers and the rest, linear between the measured points (see :class:`._prices.Prices`).

    Everything is scaled by the table's ``scales``, which :func:`scales` makes: per tower, shares of its width, each with
    what the whole takes over the sum of its parts.
    """

    def __init__(self, table: Mapping[str, Any], blocks: Sequence[Block], widths: Mapping[str, Block]) -> None:
        self.towers: dict[str, float] = {name: facts["ms"] for name, facts in table["towers"].items()}
        self._graphs = {name: facts["graph"] for name, facts in table["towers"].items()}
        self._points: list[dict[str, Any]] = [point for point in table["points"] if not point.get("joint")]
        self._scales: Mapping[str, Sequence[tuple[float, float]]] = table.get("scales", {})
        self._blocks = list(blocks)
        self._channels = {tower: block.channels for tower, block in widths.items()}
        self._tower = {block.layer: block.prunable.tower for block in blocks if block.layer is not None}
        self._layers = {tower: sum(t == tower for t in self._tower.values()) for tower in self.towers}
        kinds: dict[tuple[str, str], set[int]] = {}
        for block in blocks:
            kinds.setdefault((block.prunable.tower, block.kind), set()).add(block.channels)
        self._uneven = {tower for (tower, _), channels in kinds.items() if len(channels) > 1}
        self._curves: dict[tuple[str, str], list[tuple[float, list[tuple[float, float]]]]] = {}

    def rest(self, tower: str, width: int | None) -> float:
        """What is in no layer, by the measured depths.

        Of a tower whose layers differ, the measured ones do not tell the others: what the whole takes besides is added.
        """
        return self._scale(tower, width) * self._rest(tower, width)

    def layer(self, layer: Layer, width: int | None) -> float:
        """A whole layer at a width, with all of its blocks."""
        tower = self._tower[layer]
        return self._scale(tower, width) * self._per_layer(tower, width)

    def block(self, block: Block, groups: int, size: int, width: int | None) -> float:
        """What a block takes less than the whole one: zero or negative, for its layer counts it in full."""
        return self._scale(block.prunable.tower, width) * self._saved(block, groups * size, width)

    def whole_over_parts(self, tower: str, point: Mapping[str, Any]) -> tuple[float, float]:
        """Of a measured model with all of its layers: its width as a share, and its time over the sum of its parts."""
        channels, layers = point["widths"].get(tower), point["layers"].get(tower, 0)
        expected = self._rest(tower, channels) + layers * self._per_layer(tower, channels)
        left = {kind: iter(counts) for kind, counts in point["channels"].items()}
        for block in self._blocks:
            count = next(left[block.kind])
            if block.prunable.tower == tower:
                expected += self._saved(block, count, channels)
        return self._share(tower, point), point["graphs"][self._graphs[tower]] / expected

    def _scale(self, tower: str, width: int | None) -> float:
        if tower not in self._scales:
            return 1.0
        shares, scales = zip(*self._scales[tower], strict=True)
        return float(np.interp(self._width(tower, width), shares, scales))

    def _rest(self, tower: str, width: int | None) -> float:
        found = self._base(tower, width)
        if tower in self._uneven:
            found += self.towers[tower] - self._layers[tower] * self._per_layer(tower, None) - self._base(tower, None)
        return found

    def _saved(self, block: Block, channels: int, width: int | None) -> float:
        whole, left = (self._at(block, count, width) for count in (block.channels, channels))
        return left - whole

    def _width(self, tower: str, width: int | None) -> float:
        full = self._channels.get(tower)
        return 1.0 if width is None or full is None else width / full

    def _share(self, tower: str, point: Mapping[str, Any]) -> float:
        """The width of a measured model, as a share of the tower's."""
        full, found = self._channels.get(tower), point["widths"].get(tower)
        return 1.0 if full is None or found is None else found / full

    def _pairs(self, tower: str) -> list[tuple[float, float, float]]:
        """Per width: its share, the time of a layer, and of all besides layers."""
        graph, found = self._graphs[tower], []
        for share in sorted({point["share"] for point in self._points}):
            uncut = [point for point in self._points if point["share"] == share and not point["cut"]]
            low, high = (f(uncut, key=lambda p: p["layers"].get(tower, 0)) for f in (min, max))
            layers = high["layers"].get(tower, 0) - low["layers"].get(tower, 0)
            per = (high["graphs"][graph] - low["graphs"][graph]) / layers if layers else 0.0
            found.append((self._share(tower, low), per, low["graphs"][graph] - per * low["layers"].get(tower, 0)))
        return found

    def _per_layer(self, tower: str, width: int | None) -> float:
        shares, layers, _ = zip(*self._pairs(tower), strict=True)
        return float(np.interp(self._width(tower, width), shares, layers))

    def _base(self, tower: str, width: int | None) -> float:
        shares, _, bases = zip(*self._pairs(tower), strict=True)
        return float(np.interp(self._width(tower, width), shares, bases))

    def _at(self, block: Block, channels: int, width: int | None) -> float:
        """The time of a block of so many channels, less that of a whole one, as the table has it."""
        tower = block.prunable.tower
        curves = self._curves_of(tower, block.kind)
        times = [float(np.interp(channels, [x for x, _ in curve], [y for _, y in curve])) for _, curve in curves]
        return float(np.interp(self._width(tower, width), [share for share, _ in curves], times))

    def _curves_of(self, tower: str, kind: str) -> list[tuple[float, list[tuple[float, float]]]]:
        if (tower, kind) not in self._curves:
            graph, curves = self._graphs[tower], []
            for share in sorted({point["share"] for point in self._points}):
                here = [point for point in self._points if point["share"] == share]
                whole = min((p for p in here if not p["cut"]), key=lambda p: p["layers"].get(tower, 0))
                curve = [(float(np.mean(whole["channels"][kind])), 0.0)]
                for point in here:
                    if kind in point["cut"]:
                        channels = point["channels"][kind]
                        saved = (point["graphs"][graph] - whole["graphs"][graph]) / len(channels)
                        curve.append((float(np.mean(channels)), saved))
                curves.append((self._share(tower, whole), sorted(curve)))
            self._curves[tower, kind] = curves
        return self._curves[tower, kind]
