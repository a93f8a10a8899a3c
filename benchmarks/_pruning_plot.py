"""Draw what ``benchmarks/pruning.py --only curve`` found: quality kept over measured time, by what chose the cut.

python benchmarks/_pruning_plot.py benchmarks/results/pruning.json --out benchmarks/results/pruning.svg

Time is the share that a cut takes of the teacher's, both measured side by side; lines join the cuts that one importance made towards goals in one term.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.page._html import Html, join, tag
from mmcompress.page._svg import WIDTH, covering, line, mark, path, text, whisker

SERIES = {
    "taylor_speedup_or_layers": "Taylor, time *",
    "taylor_macs_or_layers": "Taylor, MACs *",
    "taylor_parameters_or_layers": "Taylor, parameters *",
    "taylor_macs": "Taylor, MACs",
    "magnitude_macs": "magnitude, MACs",
    "random_macs": "random, MACs",
}
SHAPES = ("circle", "square", "triangle", "diamond", "square", "hollow")
QUALITY, SPEED = "recall@1 kept", "times as fast"
LEFT, TOP, BOTTOM, HEIGHT = 52.0, 92.0, 330.0, 378.0
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif } text { fill: #222 } .s { font-size: 11px; fill: #555 }
.e { text-anchor: end } .m { text-anchor: middle } .grid { stroke: #e3e3e3 } .axis { stroke: #888 }
.m0 { --c: #0b7a53 } .m1 { --c: #1f6fb4 } .m2 { --c: #7d4fb0 } .m3 { --c: #c4561a } .m4 { --c: #b0235f } .m5 { --c: #777 }
.f { fill: var(--c) } .hollow { fill: #fff; stroke: var(--c); stroke-width: 1.3 }
.i { stroke: var(--c); stroke-width: 1.3 } .curve { stroke: var(--c); stroke-width: 1.6; fill: none }
"""


@dataclass(frozen=True)
class Cut:
    """A pruned model: the share of the teacher's time that it takes and of its recall@1 that it keeps, with 95 % intervals."""

    series: str
    goal: float
    """The share that is left, or how many times as fast it was to be."""
    time: float
    time_ci95: tuple[float, float]
    kept: float
    kept_ci95: tuple[float, float]


def cuts_of(claims: Sequence[Mapping[str, Any]]) -> list[Cut]:
    """The cuts by rising time, series after series.

    Raises:
        LookupError: a series has no cuts, or a cut lacks one of its two numbers or its interval.
    """
    named = {claim["name"]: claim for claim in claims}
    found = []
    for series in SERIES:
        names = [name for name in named if name.endswith(f": {QUALITY}") and name.rpartition("_")[0] == series]
        if not names:
            raise LookupError(f"no cuts of {series}; run benchmarks/pruning.py --only curve")
        found += [_cut(named, series, name.removesuffix(f": {QUALITY}")) for name in names]
    return sorted(found, key=lambda cut: (list(SERIES).index(cut.series), cut.time))


def _cut(named: Mapping[str, Mapping[str, Any]], series: str, name: str) -> Cut:
    quality, speed = named[f"{name}: {QUALITY}"], named.get(f"{name}: {SPEED}")
    if speed is None or not quality["ci95"] or not speed["ci95"]:
        raise LookupError(f"{name}: its recall@1, its time or an interval of these is missing")
    slow, fast = speed["ci95"]
    low, high = quality["ci95"]
    goal = int(name.removeprefix(f"{series}_")) / 100
    return Cut(series, goal, 1 / speed["value"], (1 / fast, 1 / slow), quality["value"], (low, high))


def plot(cuts: Sequence[Cut]) -> str:
    """The drawing, a whole SVG file: a line per series, and both intervals of each cut."""
    x = covering([end for cut in cuts for end in cut.time_ci95], LEFT + 6, WIDTH - 12)
    y = covering([end for cut in cuts for end in cut.kept_ci95], BOTTOM, TOP)
    parts: list[Html] = [
        text(2, 14, "recall@1 kept, share of the teacher's", "s"),
        text(WIDTH - 4, 14, "* whole layers may go, too", "s e"),
        text(WIDTH - 4, HEIGHT - 8, "time per picture, share of the teacher's", "s e"),
        line(LEFT, BOTTOM, WIDTH, BOTTOM, "axis"),
    ]
    for value in y.ticks(5):
        parts += [line(LEFT, y(value), WIDTH, y(value), "grid"), text(LEFT - 6, y(value) + 4, f"{value:.3g}", "s e")]
    for value in x.ticks(5):
        parts += [line(x(value), BOTTOM, x(value), BOTTOM + 5, "axis")]
        parts += [text(x(value), BOTTOM + 18, f"{value:.3g}", "s m")]
    for index, (series, shown) in enumerate(SERIES.items()):
        own = [cut for cut in cuts if cut.series == series]
        parts.append(tag("g", path([(x(c.time), y(c.kept)) for c in own], "curve"), class_=f"m{index}"))
        for c in own:
            parts.append(whisker(x(c.time_ci95[0]), y(c.kept), x(c.time_ci95[1]), y(c.kept), index))
            parts.append(whisker(x(c.time), y(c.kept_ci95[0]), x(c.time), y(c.kept_ci95[1]), index))
            told = f"{shown}, {c.goal:g}: {c.time:.3f} of the time, {c.kept:.4f} kept"
            parts.append(mark(SHAPES[index], x(c.time), y(c.kept), index, told, 4))
        column, row = index % 2, index // 2
        parts += [mark(SHAPES[index], LEFT + 6 + column * 160, 30 + row * 20, index, "", 4)]
        parts += [text(LEFT + 15 + column * 160, 34 + row * 20, shown)]
    about = "Quality kept over measured time, for " + "; ".join(SERIES.values())
    body = tag("style", Html(STYLE)) + join(parts)
    return tag(
        "svg",
        Html(body),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=about,
    )


def main() -> None:
    """Read a result, write its drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    claims = json.loads(asked.result.read_text(encoding="utf-8"))["claims"]
    asked.out.write_text(plot(cuts_of(claims)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
