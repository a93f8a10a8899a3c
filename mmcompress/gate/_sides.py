"""The two sides of a gate: packages, reports, bare graphs; what they are and whether they can be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcompress.component import digest_path
from mmcompress.errors import InputError, UsageError
from mmcompress.gate._graphs import graph_inputs
from mmcompress.metrics import Subject
from mmcompress.package import MANIFEST, check_digests, family_of, read_manifest
from mmcompress.report import FILE, Report, load_report
from mmcompress.store import write_json


@dataclass(frozen=True)
class Side:
    """A package, a bare graph or a report."""

    kind: Literal["package", "graph", "report"]
    path: Path
    """As the user named it; of a lock file, what it points to."""
    graphs: Mapping[str, Path]
    """ONNX files by name; empty for reports and for engines of other formats."""
    subject: Subject | None = None
    """Of packages."""
    manifest: Mapping[str, Any] | None = None
    report: Report | None = None

    @property
    def digest(self) -> str:
        """Of the manifest, which seals a package's files; of the graph; of a report's JSON."""
        return digest_path(self.path / MANIFEST if self.kind == "package" else self.path)


def open_side(path: Path, name: str, *, like: Path | None = None, work: Path | None = None) -> Side:
    """Read what a path is; nothing is loaded into a runtime yet.

    Args:
        path: A package's folder, a run's folder or ``report.json``, or an ``.onnx`` file.
        name: ``baseline`` or ``candidate``.
        like: A package that lends a bare graph its task: the graph is measured in its place.
        work: Where such a package is made.

    Raises:
        InputError: it is none of these, or it is broken.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        return _package(path, name)
    if path.name == FILE or (path.is_dir() and (path / FILE).is_file()):
        return Side("report", path if path.name == FILE else path / FILE, {}, report=load_report(path))
    if path.suffix == ".onnx":
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if like is None:
            return Side("graph", path, {"graph": path})
        assert work is not None
        return _package(lend(path, like, work / name), name)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(
        f"{path}: neither a package (a folder with {MANIFEST}), nor a report (a run's folder), nor an .onnx file"
    )


def _package(path: Path, name: str) -> Side:
    manifest = read_manifest(path)
    check_digests(path, manifest)
    graphs = {
        graph: path / entry["file"] for graph, entry in manifest["graphs"].items() if entry["file"].endswith(".onnx")
    }
    subject = Subject(
        digest_path(path / MANIFEST),
        name,
        "package",
        "package",
        manifest["target"]["runtime"],
        family_of(path, manifest),
        path.resolve(),
        manifest["precision"],
    )
    return Side("package", path, graphs, subject, manifest)


def lend(graph: Path, like: Path, folder: Path) -> Path:
    """A copy of the package ``like`` with ``graph`` in the place of its own: the one of the same name, or its only one.

    Raises:
        InputError: the package has several graphs and none of that name, or the graph takes other inputs.
    """
    manifest = read_manifest(like)
    names = list(manifest["graphs"])
    name = graph.stem if graph.stem in names else names[0]
    if len(names) > 1 and name != graph.stem:
        raise InputError(
            f"{graph}: {like} has the graphs {', '.join(names)}\n  Name the file after the one it replaces."
        )
    file = manifest["graphs"][name]["file"]
    check_inputs(like / file, graph)
    shutil.copytree(like, folder)
    for old in (folder / file, folder / f"{file}.data"):
        old.unlink(missing_ok=True)
    shutil.copyfile(graph, folder / file)
    data = graph.with_name(f"{graph.name}.data")
    if data.is_file():
        shutil.copyfile(data, folder / data.name)
    for answers in (folder / "probe").glob("*.package.npy"):
        answers.unlink()  # what the package answered with its own graph
    loose = {MANIFEST, "artifact.json", "scores.json", "README.md"}
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    manifest["files"] = {
        item.relative_to(folder).as_posix(): {"sha256": digest_path(item), "bytes": item.stat().st_size}
        for item in files
        if item.relative_to(folder).as_posix() not in loose
    }
    manifest["graphs"][name]["bytes"] = graph.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    write_json(folder / MANIFEST, manifest)
    return folder


def check_inputs(baseline: Path, candidate: Path) -> None:
    """Refuse graphs that take different inputs: a comparison of their times would mean nothing.

    Raises:
        InputError: with both.
    """
    one, two = graph_inputs(baseline), graph_inputs(candidate)
    if one != two:
        raise InputError(
            f"{candidate} takes {json.dumps(two)}, and {baseline} takes {json.dumps(one)}: these are different tasks"
        )


def check_comparable(baseline: Side, candidate: Side) -> None:
    """Refuse sides of different kinds and of different tasks.

    Raises:
        UsageError: one is a report and the other is not; a bare graph meets a package.
        InputError: they answer different requests.
    """
    if "report" in (baseline.kind, candidate.kind):
        if baseline.kind != candidate.kind:
            raise UsageError(
                f"a {candidate.kind} against a {baseline.kind}: reports are compared with reports, packages are measured\n"
                "  Name two packages (runs/<name>/latest/packages/<target>) or two runs."
            )
        return
    if baseline.kind != candidate.kind:
        raise UsageError(
            f"a {candidate.kind} against a {baseline.kind}\n"
            "  Lend the graph a task with --like PACKAGE, or name a graph on both sides."
        )
    if baseline.kind == "graph":
        check_inputs(baseline.path, candidate.path)
        return
    assert baseline.subject is not None and candidate.subject is not None
    tasks = []
    for subject in (baseline.subject, candidate.subject):
        requests = ", ".join(f"{item.name}({', '.join(item.inputs)})" for item in subject.family.requests)
        tasks.append(f"{subject.family.component_name()}: {requests}")
    if tasks[0] != tasks[1]:
        raise InputError(
            f"different tasks: the baseline is {tasks[0]}; the candidate is {tasks[1]}\n  Name a baseline of the same task."
        )
