"""Packages: what a device gets. Opened, asked and checked without torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from mmcompress import component
from mmcompress._probe import cosines, read_answers, read_expected, read_probe
from mmcompress.component import JSON, digest_path
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family, Feeds, Processor, Request, Run
from mmcompress.runtimes import Runtime, Session
from mmcompress.store import read_json

FORMAT = 1
MANIFEST = "manifest.json"
BATCH = 64
_SOURCES = {"path", "hub", "revision", "config"}
_KEYS = {"family", "family_fields", "target", "precision", "requests", "graphs", "files"}
_UNSEALED = {MANIFEST, "artifact.json", "scores.json", "README.md"}
"""What may stand in a package's folder without a digest: the manifest itself, the store's, and what is told about it."""


@dataclass(frozen=True)
class Classification:
    """The text that fits a picture best."""

    label: str
    index: int
    """Of the label among the texts."""
    scores: tuple[float, ...]
    """The cosine similarity of the picture with each text."""


@dataclass(frozen=True)
class ProbeCheck:
    """How a package's answers to its probe examples compare."""

    lowest_cosine: float | None
    """Over the examples, with what the package answered when it was compiled; None where it could not run there."""
    teacher_cosine: float | None
    """The mean with the teacher's answers; None where these have another width."""


# --- asking --------------------------------------------------------------------------------------------------------


def ask(
    family: Family,
    processor: Processor,
    run: Run,
    request: str,
    values: Mapping[str, Sequence[Any]],
    batch_size: int = BATCH,
) -> NDArray[np.float32]:
    """Answer a request for raw values, a batch at a time; one row per example.

    Works the same for a package and for a model in torch: ``run`` is what runs a graph.

    Raises:
        InputError: values that are missing, of unequal number, or cannot be read.
        UsageError: the family does not know the request.
    """
    inputs = find_request(family.requests, request).inputs
    missing = [name for name in inputs if name not in values]
    if missing:
        raise InputError(f"{request} takes {', '.join(inputs)}; {', '.join(missing)} is missing")
    counts = {name: len(values[name]) for name in inputs}
    if len(set(counts.values())) > 1:
        raise InputError(f"{request} takes as many of each input; got {counts}")
    count = counts[inputs[0]]
    if count == 0:
        raise InputError(f"{request}: no {inputs[0]} was given")
    answers = []
    for start in range(0, count, batch_size):
        feeds = processor.encode({name: values[name][start : start + batch_size] for name in inputs})
        answers.append(family.answer(run, request, feeds))
    return np.concatenate(answers)


def find_request(requests: Sequence[Request], name: str) -> Request:
    """The request of a name.

    Raises:
        UsageError: there is none, with those there are.
    """
    for request in requests:
        if request.name == name:
            return request
    known = [request.name for request in requests]
    raise UsageError(f"unknown request {name!r}{component.nearest(name, known)}; known: {', '.join(known)}")


class TimedRun:
    """A run that adds up the time spent in graphs, so that the engine is told apart from preprocessing and loops."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.seconds = 0.0
        self.calls = 0

    def __call__(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name."""
        started = perf_counter()
        outputs = self._run(graph, feeds)
        self.seconds += perf_counter() - started
        self.calls += 1
        return outputs


# --- packages ------------------------------------------------------------------------------------------------------


class Package:
    """An opened package. A context manager; safe to use from several threads; writes nothing, calls nobody."""

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], family: Family, runtime: Runtime, session: Session
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.family = family
        self.runtime = runtime
        self.processor: Processor = family.processor(path)
        self.requests: tuple[Request, ...] = tuple(
            Request(r["name"], tuple(r["inputs"]), tuple(r["graphs"])) for r in manifest["requests"]
        )
        self._session: Session | None = session

    def __enter__(self) -> Package:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines. Calls that are running finish; later ones raise."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name, without preprocessing.

        Raises:
            UsageError: the package is closed.
        """
        session = self._session
        if session is None:
            raise UsageError(f"{self.path}: the package is closed")
        return session.run(graph, feeds)

    @property
    def size_bytes(self) -> int:
        """Bytes of all graphs with their weights: what the runtime loads."""
        return sum(int(graph["bytes"]) for graph in self.manifest["graphs"].values())

    def answer(self, request: str, values: Mapping[str, Sequence[Any]], batch_size: int = BATCH) -> NDArray[np.float32]:
        """Answer a request by name for columns of raw values (``{"image": [...]}``): one row per example."""
        find_request(self.requests, request)
        return ask(self.family, self.processor, self.run, request, values, batch_size)

    def embed_images(self, images: Any) -> NDArray[np.float32]:
        """L2-normalised embeddings of pictures: [n, d] of a list, [d] of one.

        A picture is a path, bytes, a Pillow image or uint8 [h, w, 3] RGB.
        """
        return self._one_or_many("embed_image", "image", images)

    def embed_texts(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised embeddings of texts: [n, d] of a list, [d] of one."""
        return self._one_or_many("embed_text", "text", texts)

    def _one_or_many(self, request: str, name: str, values: Any) -> NDArray[np.float32]:
        if is_many(values):
            return self.answer(request, {name: list(values)})
        return cast("NDArray[np.float32]", self.answer(request, {name: [values]})[0])

    @overload
    def classify(self, images: list[Any] | tuple[Any, ...], texts: Sequence[str]) -> list[Classification]: ...
    @overload
    def classify(self, images: Any, texts: Sequence[str]) -> Classification: ...
    def classify(self, images: Any, texts: Sequence[str]) -> Classification | list[Classification]:
        """The text that fits each picture best; one of one picture, a list of a list."""
        if isinstance(texts, str) or len(texts) == 0:
            raise InputError("classify takes a list of texts to choose from, one or more")
        many = is_many(images)
        scores = self.embed_images(list(images) if many else [images]) @ self.embed_texts(list(texts)).T
        found = [
            Classification(texts[int(row.argmax())], int(row.argmax()), tuple(float(score) for score in row))
            for row in scores
        ]
        return found if many else found[0]

    def predict(self, values: Mapping[str, Any]) -> NDArray[np.float32]:
        """Answer the request that takes the values given, by their names: ``{"image": picture}``, or lists of them.

        Raises:
            UsageError: no request takes these values, or several do.
        """
        fitting = [request.name for request in self.requests if set(request.inputs) == set(values)]
        if len(fitting) != 1:
            known = "; ".join(f"{request.name}: {', '.join(request.inputs)}" for request in self.requests)
            raise UsageError(f"{len(fitting)} requests take {', '.join(values) or 'nothing'}; this package has {known}")
        many = {is_many(value) for value in values.values()}
        if len(many) > 1:
            raise InputError("give one of each value or a list of each")
        answers = self.answer(fitting[0], {name: list(v) if True in many else [v] for name, v in values.items()})
        return answers if True in many else cast("NDArray[np.float32]", answers[0])

    def probe(self) -> tuple[dict[str, list[Any]], dict[str, NDArray[np.float32]]]:
        """The probe examples in columns (``id``, ``image``, ``text``), and the teacher's answers by request."""
        folder = self.path / "probe"
        return read_probe(folder), {request.name: read_answers(folder, request.name) for request in self.requests}

    def check_probe(self) -> dict[str, ProbeCheck]:
        """Answer every request for the probe examples and compare; by request."""
        columns, teacher = self.probe()
        checks = {}
        for request in self.requests:
            found = self.answer(request.name, {name: columns[name] for name in request.inputs})
            expected = read_expected(self.path / "probe", request.name)
            lowest = float(cosines(found, expected).min()) if expected is not None else None
            theirs = teacher[request.name]
            same_width = theirs.shape == found.shape
            checks[request.name] = ProbeCheck(lowest, float(cosines(found, theirs).mean()) if same_width else None)
        return checks


def is_many(value: Any) -> bool:
    """Whether a value is several inputs (a list or tuple) rather than one."""
    return isinstance(value, (list, tuple))


def load_package(path: Path | str, *, threads: int | None = None, verify: bool = True) -> Package:
    """Open a package.

    Args:
        path: Its folder.
        threads: Of the runtime for one call; as many as it thinks right where none is given.
        verify: Hash every file and compare with the manifest.

    Raises:
        InputError: it is no package, is of another format, was changed after it was written, is for another machine, or
            its runtime does not open it.
        MissingExtra: its runtime is not installed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if verify:
        check_digests(folder, manifest)
    target = manifest["target"]
    runtime = cast("Runtime", component.parse("runtimes", {target["runtime"]: target["fields"]}))
    check_machine(folder, manifest, runtime)
    family = family_of(folder, manifest)
    session = runtime.open(folder, list(manifest["graphs"]), threads)
    return Package(folder, manifest, family, runtime, session)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a package.

    Raises:
        InputError: the folder is no package, or is of a format that this version does not read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "a package's folder has one" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{folder}: not a package: {MANIFEST} is missing ({what})\n  Name runs/<name>/latest/packages/<target>."
        )
    manifest = read_json(path)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: a package of format {found}, and this mmcompress reads format {FORMAT}\n"
            "  Build the package again, or install the mmcompress that wrote it."
        )
    missing = sorted(_KEYS - set(manifest))
    if missing:
        raise InputError(f"{path}: broken: {', '.join(missing)} missing\n  Copy the package again, or build it again.")
    return cast("dict[str, Any]", manifest)


def family_of(folder: Path, manifest: Mapping[str, Any]) -> Family:
    """The family of a package, from its manifest."""
    family_class = component.find("families", manifest["family"])
    return cast("Family", family_class.model_validate({**manifest["family_fields"], "path": folder}))


def check_digests(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file with the digest in the manifest.

    Raises:
        InputError: a file was changed, is missing, or came in after the manifest was written.
    """
    files = manifest["files"]
    root = folder.resolve()
    for name, entry in files.items():
        if not (root / name).resolve().is_relative_to(root):
            raise InputError(f"{folder}: the manifest names {name!r}, which lies outside the package")
        found = digest_path(folder / name)
        if found != entry["sha256"]:
            change = "is missing" if found == "absent" else "has other content"
            raise InputError(
                f"{folder}: the package changed after its manifest was written: {name} {change}\n"
                "  Copy the package again from where it was built, or build it again."
            )
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    added = sorted(present - set(files) - _UNSEALED)
    if added:
        raise InputError(
            f"{folder}: the package changed after its manifest was written: {added[0]} is not part of it\n"
            "  Keep other files out of its folder."
        )


def check_machine(folder: Path, manifest: Mapping[str, Any], runtime: Runtime) -> None:
    """Refuse INT8 graphs made for another machine class: their products may saturate here, and answers would be wrong.

    Raises:
        InputError: with what to write in the recipe.
    """
    built_for = manifest["target"]["machine"]
    here = runtime.model_copy(update={"machine": None}).machine_class()
    if manifest["precision"] != "fp32" and built_for != here:
        name = runtime.component_name()
        raise InputError(
            f"{folder}: an {manifest['precision']} package for {built_for}; this machine is {here}\n"
            f"  Build one for it with `targets: [{{{name}: {{for: {here}}}}}]` in the recipe."
        )


# --- for the manifest ----------------------------------------------------------------------------------------------


def family_fields(family: Family) -> dict[str, JSON]:
    """A family's fields but for where its checkpoint came from."""
    return family.model_dump(mode="json", exclude=_SOURCES)


def runtime_fields(runtime: Runtime) -> dict[str, JSON]:
    """A runtime's fields as a recipe writes them, but for how to quantize."""
    return runtime.model_dump(mode="json", by_alias=True, exclude={"quantize"})
