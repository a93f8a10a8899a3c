"""Bytes on disk: of the graphs with their weights, and of the whole package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Metric, Row, Subject
from mmcompress.metrics._exact import exact_row, float_package_of
from mmcompress.package import MANIFEST, read_manifest


class Size(Metric):
    """``size_bytes``: what the runtime loads, or a model folder's weights. ``package_bytes``: the folder that is shipped.

    ``size_ratio`` is the size of the teacher's FP32 package in the same runtime over that of the package.
    """

    def gives(self) -> frozenset[str]:
        """Sizes and their ratio."""
        return frozenset({"size_bytes", "package_bytes", "size_ratio"})

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Add up the files."""
        sizes = {item.name: size_bytes(item) for item in subjects}
        rows: list[Row] = []
        for subject in subjects:
            rows.append(exact_row(subject, "size_bytes", sizes[subject.name], "byte"))
            if subject.target == "torch":
                continue
            rows.append(exact_row(subject, "package_bytes", package_bytes(subject.folder), "byte"))
            base = float_package_of(subject, subjects)
            if base is subject:
                continue
            rows.append(
                exact_row(
                    subject,
                    "size_ratio",
                    sizes[base.name] / sizes[subject.name] if base else None,
                    "ratio",
                    higher_is_better=True,
                    reference="fp32",
                    reason="" if base else f"the teacher's FP32 package for {subject.target} is not here",
                )
            )
        return Measured(rows, {})


def size_bytes(subject: Subject) -> int:
    """Bytes of a package's graphs with their external data, or of a model folder's safetensors.

    Raises:
        InputError: there are none.
    """
    if subject.target == "torch":
        files = sorted(subject.folder.glob("*.safetensors"))
    else:
        files = [path for graph in read_manifest(subject.folder)["graphs"].values() for path in _files(subject, graph)]
    if not files:
        raise InputError(f"{subject.folder}: no weights to measure")
    return sum(path.stat().st_size for path in files)


def _files(subject: Subject, graph: dict[str, str]) -> list[Path]:
    """A graph's file and what lies beside it under its name: external data of ONNX, weights of OpenVINO."""
    main = subject.folder / graph["file"]
    companions = {main.with_name(f"{main.name}.data"), main.with_name(f"{main.name}_data"), main.with_suffix(".bin")}
    return [main, *sorted(path for path in companions if path.is_file())]


def package_bytes(folder: Path) -> int:
    """Bytes of the files that a package's manifest seals, and of the manifest."""
    sealed = sum(int(entry["bytes"]) for entry in read_manifest(folder)["files"].values())
    return sealed + (folder / MANIFEST).stat().st_size
