"""What a model is made of, block by block, before and after it was cut: heads, widths, parameters, MACs, milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress import component
from mmcompress.errors import InputError
from mmcompress.families import Family
from mmcompress.page._html import Html, bullets, document, figure, join, section, table, tag
from mmcompress.page._svg import WIDTH, drawing, rect, shortened, text
from mmcompress.store import MANIFEST, Store, read_json

PACKAGE = "manifest.json"
TIMES = "block_times.json"
HEAD = ("block", "heads", "head width", "units", "parameters", "MACs", "ms")


@dataclass(frozen=True)
class Part:
    """A block of a model as it is."""

    name: str
    tower: str
    heads: int | None
    """None for plain channels."""
    channels: int
    """Per head, or in all."""
    parameters: float
    macs: float
    ms: float | None
    """By the table of measured times, None where there is none."""


@dataclass(frozen=True)
class Structure:
    """A model's blocks by name, with its towers' totals."""

    origin: str
    parts: Mapping[str, Part]
    towers: Mapping[str, Mapping[str, float]]
    """MACs and parameters of each tower."""
    parameters: int


@dataclass(frozen=True)
class Place:
    """A model folder, and the one that it was made from where that is known."""

    folder: Path
    family: Family | None
    before: Path | None = None


# --- finding -------------------------------------------------------------------------------------------------------


def locate(path: Path, store: Store, family: str | None = None) -> Place:
    """The model folder behind a model folder, an artifact, a package or a run.

    Raises:
        InputError: it is none of these, or the store no longer has the model that a package was made from.
    """
    if (path / "packages").is_dir():
        packages = sorted(p for p in (path / "packages").iterdir() if (p / PACKAGE).is_file())
        if not packages:
            raise InputError(f"{path}: the run has no packages\n  Name a model folder, or the package of another run.")
        path = packages[0]
    if (path / PACKAGE).is_file():
        from mmcompress.package import read_manifest

        manifest = read_manifest(path)
        origin = manifest["provenance"]
        model, teacher = (_artifact(store, origin[name]["key"], path) for name in ("model", "teacher"))
        return Place(model, _family(manifest["family"], model, manifest["family_fields"]), teacher)
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no model folder (config.json), package ({PACKAGE}) or run (packages/)")
    return Place(path, None if family is None else _family(family, path, {}))


def _artifact(store: Store, key: str, where: Path) -> Path:
    found = next(iter(sorted(store.root.glob(f"artifacts/*/{key}/{MANIFEST}"))), None)
    if found is None:
        raise InputError(
            f"{where}: the model that it was made from is not in the store {store.root} (key {key[:12]}...)\n"
            "  Name the store with --store, run the recipe again, or name the model's folder."
        )
    return found.parent


def _family(name: str, folder: Path, fields: Mapping[str, Any]) -> Family:
    found = component.find("families", name).model_validate({**fields, "path": folder})
    assert isinstance(found, Family)
    return found


def guess(folder: Path) -> Family:
    """The one family that loads a model folder.

    Raises:
        InputError: none does, or several do.
    """
    found: list[Family] = []
    for name in component.names("families"):
        family = _family(name, folder, {})
        try:
            family.load(folder)
        except InputError:
            continue
        found.append(family)
    if len(found) != 1:
        names = ", ".join(family.component_name() for family in found) or "none"
        raise InputError(f"{folder}: the families that load it: {names}\n  Name the one with --family.")
    return found[0]


# --- reading -------------------------------------------------------------------------------------------------------


def read(place: Place) -> Structure:
    """A model's structure.

    Raises:
        InputError: the folder cannot be loaded.
        StageError: its forward cannot be traced.
    """
    from mmcompress.stages._prices import COUNTED, count
    from mmcompress.stages._pruning import Dependencies

    family = place.family or guess(place.folder)
    model = family.load(place.folder)
    found = Dependencies(model, family.traced(model), family.prunable(model))
    counted = {unit: count(found, unit) for unit in COUNTED}
    times, cuts = _times(place.folder, found.blocks), _cuts(place.folder)
    parts = {}
    for block in found.blocks:
        macs, parameters = (counted[unit].block(block, block.groups, block.size, None) for unit in COUNTED)
        heads = block.groups if block.prunable.heads is not None else None
        size = block.size if heads is not None else block.groups
        name = _original(block.name, block.prunable.root, cuts)
        parts[name] = Part(name, block.prunable.tower, heads, size, parameters, macs, times.get(block.name))
    towers = {tower: {str(unit): counted[unit].towers[tower] for unit in COUNTED} for tower in counted["macs"].towers}
    return Structure(str(place.folder), parts, towers, sum(p.numel() for p in model.parameters()))


def _cuts(folder: Path) -> list[Mapping[str, Sequence[int]]]:
    """The layers that each stack kept, cut by cut, the last first, as the artifacts that a model came from tell."""
    found: list[Mapping[str, Sequence[int]]] = []
    manifest: Path | None = folder.resolve() / MANIFEST
    while manifest is not None and manifest.is_file():
        told = read_json(manifest)
        facts = told["facts"]
        steps = facts["steps"] if isinstance(facts.get("steps"), list) else [facts]
        found += [step.get("kept_layers", {}) for step in reversed(steps)]
        key = told.get("identity", {}).get("model")
        before = manifest.parents[2].glob(f"*/{key}/{MANIFEST}") if key else iter(())
        manifest = next(iter(before), None)
    return found


def _original(name: str, root: str, cuts: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """The name of the block of a module with the number that its layer had before layers went."""
    stack = next((stack for cut in cuts for stack in cut if root.startswith(f"{stack}.")), None)
    if stack is None:
        return name
    index = int(root.removeprefix(f"{stack}.").partition(".")[0])
    for cut in cuts:
        index = cut[stack][index] if stack in cut else index
    parts = name.split(".")
    number = max(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join([*parts[:number], str(index), *parts[number + 1 :]])


def _times(folder: Path, blocks: Sequence[Any]) -> dict[str, float]:
    """What each block takes by the table beside the model: what it takes more than the smallest that was measured."""
    from mmcompress.stages._time_prices import TimePrices

    if not (folder / TIMES).is_file():
        return {}
    prices = TimePrices(read_json(folder / TIMES), blocks, {})
    return {block.name: -prices.block(block, 0, block.size, None) for block in blocks}


# --- telling -------------------------------------------------------------------------------------------------------


def rows(after: Structure, before: Structure | None) -> list[list[str]]:
    """A line per block: :data:`HEAD`; ``12 > 8`` where a number changed."""
    names = list(before.parts) if before is not None else list(after.parts)
    names += [name for name in after.parts if name not in names]
    found = []
    for name in names:
        one = before.parts.get(name) if before is not None else None
        other = after.parts.get(name)
        present = other or one
        assert present is not None
        heads = present.heads is not None

        def told(what: str, one: Part | None = one, other: Part | None = other) -> str:
            was, now = (None if part is None else getattr(part, what) for part in (one, other))
            shown = [f"{value:,.0f}" if value is not None else "0" for value in (was, now)]
            return shown[1] if before is None or was == now else f"{shown[0]} > {shown[1]}"

        found.append(
            [
                name + (" (removed)" if other is None else ""),
                told("heads") if heads else "",
                told("channels") if heads else "",
                "" if heads else told("channels"),
                told("parameters"),
                told("macs"),
                "" if present.ms is None else f"{present.ms:.3g}",
            ]
        )
    return found


def totals(after: Structure, before: Structure | None) -> list[str]:
    """A line per tower, and one for the model."""
    lines = []
    for tower, costs in after.towers.items():
        was = before.towers.get(tower) if before is not None else None
        told = [
            f"{name} {costs[unit]:,.0f}" + (f" ({costs[unit] / was[unit]:.1%} of {was[unit]:,.0f})" if was else "")
            for name, unit in (("MACs", "macs"), ("parameters", "parameters"))
        ]
        lines.append(f"{tower}: {', '.join(told)}")
    share = f" ({after.parameters / before.parameters:.1%} of {before.parameters:,})" if before is not None else ""
    return [*lines, f"model: {after.parameters:,} parameters{share}"]


def lines(after: Structure, before: Structure | None) -> list[str]:
    """The table for a terminal."""
    cells = _filled(after, before)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shown = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [*shown, "", *totals(after, before)]


def _filled(after: Structure, before: Structure | None) -> list[list[str]]:
    """The head and the rows, without columns that say nothing."""
    cells = [list(HEAD), *rows(after, before)]
    kept = [column for column in range(len(HEAD)) if any(row[column] for row in cells[1:])]
    return [[row[column] for column in kept] for row in cells]


def page(after: Structure, before: Structure | None) -> str:
    """A page that draws what is left of each block, tower by tower."""
    figures = [_figure(tower, after, before) for tower in after.towers]
    body = section("structure", "What is left of each block", tag("div", join(figures), class_="figures"))
    cells = _filled(after, before)
    whole = section("totals", "Towers", bullets(totals(after, before)))
    every = section("blocks", "Blocks", table(cells[0], cells[1:]))
    head = tag("header", tag("h1", "Structure"), tag("p", after.origin, class_="soft"))
    return document("Structure", Html(head + tag("main", whole, body, every)))


def _figure(tower: str, after: Structure, before: Structure | None) -> Html:
    start = {name: part for name, part in (before or after).parts.items() if part.tower == tower}
    room, high, left = WIDTH - 190, 14.0, 132.0
    most = {
        heads: max((p.macs for p in start.values() if (p.heads is not None) == heads), default=1.0)
        for heads in (True, False)
    }
    parts: list[Html] = []
    for index, (name, was) in enumerate(start.items()):
        y = 4 + index * (high + 5)
        now = after.parts.get(name)
        heads = was.heads is not None
        scale = room / most[heads] if most[heads] else 0.0
        share = (now.macs if now else 0.0) / was.macs if was.macs else 1.0
        label = shortened(name.removeprefix(f"{tower}.").removeprefix("layers."), left - 6, 11)
        size = "removed" if now is None else f"{now.heads} x {now.channels}" if heads else f"{now.channels}"
        parts += [
            text(left - 6, y + 11, label, "s e"),
            rect(left, y, was.macs * scale, high, "track", f"{name}: {was.macs:,.0f} MACs before"),
            Html(f'<g class="m{1 if heads else 2}">')
            + rect(left, y, was.macs * scale * share, high, "f", f"{name}: {share:.0%} of its MACs")
            + Html("</g>"),
            text(left + was.macs * scale + 5, y + 11, size, "s"),
        ]
    height = 8 + len(start) * (high + 5)
    body = [
        [name, f"{was.macs:,.0f}", f"{after.parts[name].macs if name in after.parts else 0:,.0f}"]
        for name, was in start.items()
    ]
    return figure(
        f"{tower}: attention in blue, feed-forward in orange, both on scales of their own; grey is what went",
        drawing(height, f"MACs of each block of {tower} before and after", parts),
        ("block", "MACs before", "MACs after"),
        body,
    )


def inspect(
    path: Path, store: Store, before: Path | None = None, family: str | None = None
) -> tuple[Structure, Structure | None]:
    """A model's structure, and that of the model before it where one is named or known.

    Raises:
        InputError: nothing that can be read lies there.
        StageError: the forward cannot be traced.
    """
    place = locate(path, store, family)
    after = read(place)
    if before is not None:
        return after, read(locate(before, store, family or (place.family or guess(place.folder)).component_name()))
    if place.before is not None:
        return after, read(
            Place(place.before, place.family and _family(place.family.component_name(), place.before, {}))
        )
    return after, None
