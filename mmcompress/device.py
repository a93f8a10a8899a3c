"""On the device: an engine from a package's graphs, checked, timed and told about. Needs the runtime, not torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mmcompress import component
from mmcompress._ask import agreement
from mmcompress._device_graphs import float_twins, saturates, stored_floats, stored_graphs
from mmcompress._power import device_name, power_facts
from mmcompress._probe import read_answers, read_expected, write_expected
from mmcompress.component import JSON, digest_path
from mmcompress.errors import InputError, MmcompressError, StageError, UsageError
from mmcompress.metrics import Row, Subject
from mmcompress.metrics._exact import exact_row
from mmcompress.package import (
    FORMAT,
    MANIFEST,
    ProbeCheck,
    check_digests,
    family_of,
    load_package,
    read_manifest,
    runtime_fields,
)
from mmcompress.runtimes import Runtime, facts_of
from mmcompress.runtimes._tensorrt import telling
from mmcompress.store import write_json

Listen = Callable[[str, int, int], None]
LOST_AGREEMENT = 0.01
"""Of the mean agreement with the teacher on the probe examples: an engine that loses more than this is not taken."""
P50 = "latency_ms_p50"
_TOLD = (P50, "latency_ms_p90", "latency_ms_p99", "throughput_per_s", "real_time_factor", "size_bytes", "package_bytes")


def silent(message: str, done: int, total: int) -> None:
    """Listens to nothing."""


@dataclass(frozen=True)
class Tried:
    """An engine in one precision: its package, or why there is none."""

    precision: str
    folder: Path | None
    reason: str = ""
    probe: Mapping[str, ProbeCheck] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What became of a package on this device."""

    package: Path
    report: Path
    precision: str
    notes: tuple[str, ...]
    """What was not taken, and why."""


@dataclass(frozen=True)
class _Work:
    """What a package is compiled from and for."""

    folder: Path
    manifest: Mapping[str, Any]
    runtime: Runtime
    parent: Path
    runs_here: bool


def compile_package(
    folder: Path,
    target: str | None = None,
    out: Path | None = None,
    *,
    name: str | None = None,
    threads: int = 2,
    seconds: float = 4.0,
    listen: Listen = silent,
) -> Compiled:
    """Build the engine of a package for this device, check its answers, time it, and write a package and a report.

    An INT8 package is also built in float (FP16 for TensorRT), and the faster one whose answers hold is taken.

    Args:
        folder: The package.
        target: A runtime's name; the package's own where none is given.
        out: The new package's folder; beside the old one where none is given. The report goes to ``<out>-report``.
        name: What the report calls this device; what the system calls itself where none is given.
        threads: Of the runtime for one call.
        seconds: Timed seconds per precision.
        listen: Told of progress.

    Raises:
        InputError: the folder is no package, was changed, or has no graphs that the target reads.
        MissingExtra: the target is not installed.
        StageError: no precision builds, or none answers as the package did; says why for each.
    """
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    runtime = target_of(manifest, target)
    machine = runtime.machine_class()
    out = out or folder.with_name(f"{folder.resolve().name}-{runtime.component_name()}-{machine}")
    report = out.with_name(f"{out.name}-report")
    if out.exists() or report.exists():
        raise UsageError(
            f"{out if out.exists() else report}: is there already\n  Remove it, or name another with --out."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as parent:
        work = _Work(folder, manifest, runtime, Path(parent), runtime.runs_here())
        tried = list(_try_all(work, listen))
        sound = [item for item in tried if item.folder is not None]
        if not sound:
            raise StageError("\n".join(f"{item.precision}: {item.reason}" for item in tried))
        device = name or device_name()
        rows, samples, environment = _measure(work, sound, device, threads, seconds, listen)
        taken, slower = _fastest(work, sound, rows)
        notes = (*(f"{item.precision} not taken: {item.reason}" for item in tried if item.folder is None), *slower)
        if not work.runs_here:
            notes = (*notes, f"built for {machine}, which is not here: neither answered nor timed")
        assert taken.folder is not None
        shutil.move(str(taken.folder), str(out))
    _write(report, manifest, runtime, device, rows, samples, environment, notes)
    return Compiled(out, report, taken.precision, notes)


def target_of(manifest: Mapping[str, Any], name: str | None) -> Runtime:
    """The runtime that a package is compiled for, with the package's own settings where it is the same one.

    Raises:
        UsageError: no such runtime, or one that compiles nothing.
    """
    own = manifest["target"]
    if name is not None and name not in component.names("runtimes"):
        near = component.nearest(name, component.names("runtimes"))
        raise UsageError(f"unknown target {name!r}{near}; known: {', '.join(component.names('runtimes'))}")
    if name == "torch":
        raise UsageError("torch compiles nothing\n  Name onnxruntime, openvino, tensorrt or tensorrt_rtx.")
    fields = dict(own["fields"]) if name in (None, own["runtime"]) else {}
    runtime = cast("Runtime", component.parse("runtimes", {name or own["runtime"]: fields}))
    return runtime.model_copy(update={"machine": None}) if runtime.here() is not None else runtime


# --- building ------------------------------------------------------------------------------------------------------


def _try_all(work: _Work, listen: Listen) -> Iterator[Tried]:
    """One engine per precision that makes sense here, the package's own first."""
    graphs = stored_graphs(work.folder, work.manifest, work.runtime)
    floats = work.runtime.floats()
    float_name = "fp16" if "fp16" in floats else "fp32"
    precision = work.manifest["precision"]
    if precision != "int8":
        same = work.manifest["target"]["runtime"] == work.runtime.component_name()
        if same:
            yield _try(work, precision, work.runtime, graphs, listen)
        else:
            yield _try(work, float_name, floats[float_name], graphs, listen)
        return
    unsafe = saturates(work.manifest["target"]["machine"], work.runtime.here())
    first = Tried("int8", None, unsafe) if unsafe else _try(work, "int8", work.runtime, graphs, listen)
    yield first
    if first.folder is not None and not work.runs_here:
        return  # nothing to compare its time with
    try:
        stored = stored_floats(work.folder, graphs, float_name)
        runtime = work.runtime if stored else floats[float_name]
        twins = stored or float_twins(graphs, work.parent / "float")
    except MmcompressError as error:
        yield Tried(float_name, None, str(error))
        return
    yield _try(work, float_name, runtime, twins, listen)


def _try(work: _Work, precision: str, runtime: Runtime, graphs: Mapping[str, Path], listen: Listen) -> Tried:
    listen(f"building {runtime.component_name()} in {precision}", 0, 0)
    folder = work.parent / precision
    try:
        with telling(listen):
            _assemble(work, precision, runtime, graphs, folder)
    except (StageError, InputError) as error:
        return Tried(precision, None, f"does not build: {error}")
    if not work.runs_here:
        return Tried(precision, folder)
    listen(f"answering the probe examples in {precision}", 0, 0)
    try:
        with load_package(folder, verify=False) as package:
            checks = package.check_probe()
            columns, _ = package.probe()
            answers = {
                request.name: package.ask(request.name, {name: columns[name] for name in request.inputs})
                for request in package.requests
            }
    except (StageError, InputError) as error:
        return Tried(precision, None, f"does not answer: {error}")
    reason = _lost(work, {request["name"]: request["answers"] for request in work.manifest["requests"]}, checks)
    if reason:
        return Tried(precision, None, reason, checks)
    for request, rows in answers.items():
        write_expected(folder / "probe", request, rows)
    _seal(folder)
    return Tried(precision, folder, probe=checks)


def _lost(work: _Work, kinds: Mapping[str, str], checks: Mapping[str, ProbeCheck]) -> str:
    """Why answers are not those of the package; empty where they hold."""
    for request, check in checks.items():
        expected = read_expected(work.folder / "probe", request)
        if expected is None or check.teacher is None or check.lowest is None:
            continue
        own = float(agreement(kinds[request], expected, read_answers(work.folder / "probe", request)).mean())
        if not check.teacher >= own - LOST_AGREEMENT:
            return (
                f"{request} agrees with the teacher by {check.teacher:.3f} in the mean of the probe examples, and by"
                f" {own:.3f} where the package was built"
            )
    return ""


def _assemble(work: _Work, precision: str, runtime: Runtime, graphs: Mapping[str, Path], folder: Path) -> None:
    """A package of the same model with engines of ``runtime``."""
    folder.mkdir(parents=True)
    compiled = runtime.compile(graphs, folder)
    family = family_of(work.folder, work.manifest)
    for file in (*family.package_files(work.folder), *(f for f in work.manifest["files"] if f.startswith("probe/"))):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work.folder / file, folder / file)
    about = {key: value for key, value in work.manifest.items() if key not in ("format", "files")}
    about |= {
        "target": {**facts_of(runtime), "fields": runtime_fields(runtime)},
        "precision": precision,
        "graphs": {
            name: {**entry, "file": compiled["files"][name], "bytes": _bytes(folder / compiled["files"][name])}
            for name, entry in work.manifest["graphs"].items()
        },
        "provenance": {
            **work.manifest.get("provenance", {}),
            "compiled_from": {
                "manifest": digest_path(work.folder / MANIFEST),
                "target": work.manifest["target"],
                "precision": work.manifest["precision"],
            },
        },
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **about, "files": {}})
    _seal(folder)


def _seal(folder: Path) -> None:
    """Write the digest of every file into the manifest."""
    manifest = {**read_manifest(folder), "files": {}}
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"sha256": digest_path(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, manifest)


def _bytes(path: Path) -> int:
    beside = (path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in beside if file.is_file())


# --- measuring -----------------------------------------------------------------------------------------------------


def _measure(
    work: _Work, sound: Sequence[Tried], device: str, threads: int, seconds: float, listen: Listen
) -> tuple[list[Row], dict[str, Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """Rows that name the device, raw samples, and facts of the device; times only where it runs."""
    from mmcompress.measure import measure
    from mmcompress.metrics.latency import Latency
    from mmcompress.metrics.size import Size

    subjects = [_subject(work, item, device) for item in sound]
    before = power_facts()
    metrics = [Latency(processes=3, seconds=seconds), Size()] if work.runs_here else [Size()]
    rows, samples, environment = measure(subjects, metrics, None, threads=threads, seed=0, progress=listen)
    rows = [row for row in rows if row.metric in _TOLD]
    for subject, item in zip(subjects, sound, strict=True):
        for request, check in item.probe.items():
            for side, value in (("package", check.lowest), ("teacher", check.teacher)):
                if value is not None:
                    conditions = {"request": request, "compared_with": side}
                    row = exact_row(
                        subject, "probe_agreement", value, "ratio", conditions=conditions, higher_is_better=True
                    )
                    rows.append(row)
    rows = [replace(row, conditions={**row.conditions, "device": device}) for row in rows]
    return rows, samples, {"device": device, **environment, "power": before, "power_after": power_facts()}


def _subject(work: _Work, item: Tried, device: str) -> Subject:
    assert item.folder is not None
    runtime = work.runtime.component_name()
    family = family_of(item.folder, work.manifest)
    artifact = digest_path(item.folder / MANIFEST)
    name = f"{runtime} {item.precision} on {device}"
    return Subject(artifact, name, "package", "device", runtime, family, item.folder.resolve(), item.precision)


def _fastest(work: _Work, sound: Sequence[Tried], rows: Sequence[Row]) -> tuple[Tried, list[str]]:
    """The engine with the smallest sum of the requests' median times, and by how much the others lost to it."""
    times = {}
    for item in sound:
        mine = f"{work.runtime.component_name()} {item.precision} on "
        times[item.precision] = sum(
            row.value or 0.0
            for row in rows
            if row.metric == P50 and row.conditions["scope"] == "engine" and row.name.startswith(mine)
        )
    taken = min(sound, key=lambda item: times[item.precision])
    slower = [
        f"{item.precision} not taken: {times[item.precision]:.3g} ms for one of each request, and"
        f" {times[taken.precision]:.3g} ms in {taken.precision}"
        for item in sound
        if item is not taken and times[taken.precision] > 0
    ]
    return taken, slower


def _write(
    folder: Path,
    manifest: Mapping[str, Any],
    runtime: Runtime,
    device: str,
    rows: Sequence[Row],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    environment: Mapping[str, JSON],
    notes: Sequence[str],
) -> None:
    import yaml

    from mmcompress.report import write_report

    write_report(
        folder,
        title=f"{manifest['family']} on {device} by {runtime.component_name()}",
        rows=rows,
        samples=samples,
        environment=environment,
        recipe_text=yaml.safe_dump(manifest.get("provenance", {}), sort_keys=True, allow_unicode=True),
        verdicts=[],
        notes=notes,
    )
