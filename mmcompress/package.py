"""Packages: what a device gets. Opened, asked and checked without torch and transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from mmcompress import component
from mmcompress._ask import BATCH, Classification, agreement, as_answers, ask, columns_of, find_request
from mmcompress._batching import Batcher
from mmcompress._probe import read_answers, read_expected, read_probe
from mmcompress.component import JSON, digest_path
from mmcompress.errors import InputError, NotRunnableHere, UsageError
from mmcompress.families import Family, Feeds, Processor, Request
from mmcompress.runtimes import Runtime, Session
from mmcompress.store import read_json

FORMAT = 2
MANIFEST = "manifest.json"
_SOURCES = {"path", "hub", "revision", "config", "head", "labels"}
_KEYS = {"family", "family_fields", "target", "precision", "requests", "graphs", "files"}
_UNSEALED = {MANIFEST, "artifact.json", "scores.json", "README.md"}
"""What may stand in a package's folder without a digest: the manifest itself, the store's, and what is told about it."""


@dataclass(frozen=True)
class ProbeCheck:
    """How a package's answers to its probe examples compare; 1 is the same, see :func:`mmcompress._ask.agreement`."""

    lowest: float | None
    """Over the examples, with what the package answered when it was compiled; None where it could not run there."""
    teacher: float | None
    """The mean with the teacher's answers; None where these have another width."""


# --- packages ------------------------------------------------------------------------------------------------------


class Package:
    """An opened package. A context manager; safe to use from several threads; writes nothing, calls nobody."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        family: Family,
        runtime: Runtime,
        session: Session,
        workers: int = 0,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.family = family
        self.runtime = runtime
        self.processor: Processor = family.processor(path)
        self.requests: tuple[Request, ...] = tuple(_request(entry) for entry in manifest["requests"])
        self._session: Session | None = session
        self._batcher = Batcher(self.processor, partial(family.answer, self.run), workers) if workers else None

    def __enter__(self) -> Package:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines. Calls that are running finish; later ones raise."""
        if self._batcher is not None:
            self._batcher.close()
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

    def ask(self, request: str, values: Mapping[str, Sequence[Any]], batch_size: int = BATCH) -> NDArray[Any]:
        """Answer a request by name for columns of raw values (``{"image": [...]}``): one row per example.

        Of texts longer than the model takes the end is left out, as in training and measuring; :meth:`predict` and the
        methods by name refuse them.
        """
        self._check(request)
        if self._batcher is not None:
            return self._batcher.ask(request, columns_of(self.requests, request, values), batch_size)
        return ask(self.family, self.processor, self.run, request, values, batch_size)

    def _start(self, request: str, values: Mapping[str, Sequence[Any]]) -> Callable[[], NDArray[Any]]:
        """Hand a request to the workers, and give a function that waits for its rows; without workers it is answered."""
        if self._batcher is None:
            rows = self.ask(request, values)
            return lambda: rows
        self._check(request)
        return self._batcher.submit(request, columns_of(self.requests, request, values), BATCH)

    def _check(self, request: str) -> None:
        """That the package is open and has the request."""
        if self._session is None:
            raise UsageError(f"{self.path}: the package is closed")
        self._find(request)

    def _find(self, name: str) -> Request:
        """A request by name; of one that was left out, the reason."""
        if name in self.family.left_out:
            raise UsageError(f"{self.path}: no {name}: {self.family.left_out[name]}")
        return find_request(self.requests, name)

    def embed_images(self, images: Any) -> NDArray[np.float32]:
        """L2-normalised embeddings of pictures, or of films where the model takes films: [n, d] of a list, [d] of one.

        A picture is a path, bytes, a Pillow image or uint8 [h, w, 3] RGB; a film is a tuple of pictures.
        """
        (seen,) = find_request(self.requests, "embed_image").inputs
        return cast("NDArray[np.float32]", self._one_or_many("embed_image", {seen: images}))

    def embed_texts(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised embeddings of texts: [n, d] of a list, [d] of one."""
        return cast("NDArray[np.float32]", self._one_or_many("embed_text", {"text": texts}))

    def embed_sounds(self, sounds: Any) -> NDArray[np.float32]:
        """L2-normalised embeddings of sounds: [n, d] of a list, [d] of one.

        A sound is a path, bytes, a pair (samples, rate) or a :class:`mmcompress._sound.Sound`.
        """
        return cast("NDArray[np.float32]", self._one_or_many("embed_audio", {"audio": sounds}))

    @overload
    def classify(self, inputs: list[Any], texts: Sequence[str] | None = None) -> list[Classification]: ...
    @overload
    def classify(self, inputs: Any, texts: Sequence[str] | None = None) -> Classification: ...
    def classify(self, inputs: Any, texts: Sequence[str] | None = None) -> Classification | list[Classification]:
        """The text that fits each picture or sound best, or the model's own class; one of one input, a list of a list.

        Args:
            inputs: pictures, films or sounds, whichever the model takes.
            texts: what to choose from, for models that embed texts; none for models with classes of their own.

        Raises:
            InputError: no texts.
            UsageError: the model has no classes of its own, or embeds no texts.
        """
        many = is_many(inputs)
        if texts is None:
            request = find_request(self.requests, "classify")
            return cast("Classification", self._one_or_many("classify", {request.inputs[0]: inputs}))
        if isinstance(texts, str) or len(texts) == 0:
            raise InputError("classify takes a list of texts to choose from, one or more")
        name = "embed_audio" if "embed_audio" in {request.name for request in self.requests} else "embed_image"
        (column,) = find_request(self.requests, name).inputs
        self._find("embed_text")
        self._refuse_long({"text": list(texts)})
        embedded = self._start(name, {column: list(inputs) if many else [inputs]})
        described = self._start("embed_text", {"text": list(texts)})
        scores = embedded() @ described().T
        found = [
            Classification(texts[int(row.argmax())], int(row.argmax()), tuple(float(score) for score in row))
            for row in scores
        ]
        return found if many else found[0]

    def caption(self, images: Any) -> Any:
        """A :class:`Generated` text that describes each picture; a list of a list."""
        return self._one_or_many("caption", {"image": images})

    def answer(self, images: Any, questions: Any) -> Any:
        """The answer to a question about a picture: a :class:`Classification` or a :class:`Generated`; lists of lists."""
        return self._one_or_many("answer", {"image": images, "question": questions})

    def transcribe(self, sounds: Any) -> Any:
        """The :class:`Generated` text that is spoken in each sound; a list of a list."""
        return self._one_or_many("transcribe", {"audio": sounds})

    def predict(self, values: Mapping[str, Any], request: str | None = None) -> Any:
        """Answer for values by name (``{"image": picture, "question": text}``), or for lists of them.

        The request is the one that takes exactly these values, where none is named. Embeddings and numbers come as
        arrays, classes as :class:`Classification`, texts as :class:`Generated`, a class per word as :class:`Tags`.

        Raises:
            UsageError: no request takes these values, or several do.
        """
        if request is None:
            fitting = [item.name for item in self.requests if _takes(item, values)]
            if len(fitting) != 1:
                known = "; ".join(f"{item.name}: {', '.join(item.inputs)}" for item in self.requests)
                given = ", ".join(values) or "nothing"
                raise UsageError(f"{len(fitting)} requests take {given}; this package has {known}")
            request = fitting[0]
        return self._one_or_many(request, values)

    def _one_or_many(self, name: str, values: Mapping[str, Any]) -> Any:
        """Answers in a list for lists, one for one; arrays for embeddings and numbers."""
        request = self._find(name)
        self._refuse_long(values)
        many = {is_many(value) for value in values.values()}
        if len(many) > 1:
            raise InputError("give one of each value or a list of each")
        rows = self.ask(name, {key: list(value) if True in many else [value] for key, value in values.items()})
        answers = rows if request.answers in ("embeds", "numbers") else as_answers(self.processor, request, rows)
        return answers if True in many else answers[0]

    def _refuse_long(self, values: Mapping[str, Any]) -> None:
        """Texts whose end would be left out in silence; :meth:`ask`, which measures, leaves it out as training did."""
        encoders: Mapping[str, Any] = getattr(self.processor, "text_encoders", {})
        for name in encoders.keys() & values.keys():
            encoders[name].refuse_long(values[name] if is_many(values[name]) else [values[name]])

    def probe(self) -> tuple[dict[str, list[Any]], dict[str, NDArray[Any]]]:
        """The probe examples in columns (``id``, ``image``, ``text``), and the teacher's answers by request."""
        folder = self.path / "probe"
        return read_probe(folder), {request.name: read_answers(folder, request.name) for request in self.requests}

    def check_probe(self) -> dict[str, ProbeCheck]:
        """Answer every request for the probe examples and compare; by request."""
        columns, teacher = self.probe()
        checks = {}
        for request in self.requests:
            found = self.ask(request.name, {name: columns[name] for name in request.inputs})
            expected = read_expected(self.path / "probe", request.name)
            lowest = float(agreement(request.answers, found, expected).min()) if expected is not None else None
            theirs = teacher[request.name]
            comparable = theirs.shape == found.shape or request.answers in ("tokens", "tags")
            mean = float(agreement(request.answers, found, theirs).mean()) if comparable else None
            checks[request.name] = ProbeCheck(lowest, mean)
        return checks


def is_many(value: Any) -> bool:
    """Whether a value is several inputs: a list. A tuple is one (samples and their rate, a film's pictures)."""
    return isinstance(value, list)


def _request(entry: Mapping[str, Any]) -> Request:
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return Request(**cast("Any", lists))


def _takes(request: Request, values: Mapping[str, Any]) -> bool:
    return set(request.inputs) - set(request.optional) <= set(values) <= set(request.inputs)


def load_package(path: Path | str, *, threads: int | None = None, workers: int = 0, verify: bool = True) -> Package:
    """Open a package.

    Args:
        path: Its folder.
        threads: Of the runtime for one call; as many as it thinks right where none is given.
        workers: Calls of the engine at a time, for several callers: what they ask at the same time is answered in
            common batches, preprocessed in their own threads. ``threads`` times ``workers`` is best the number of
            cores. 0: each call runs by itself, in its caller's thread.
        verify: Hash every file and compare with the manifest.

    Raises:
        InputError: it is no package, is of another format, was changed after it was written, is for another machine, or
            its runtime does not open it.
        UsageError: a number of workers below 0.
        MissingExtra: its runtime is not installed.
    """
    if workers < 0:
        raise UsageError(f"workers: expected a number from 0, got {workers}")
    folder = Path(path)
    manifest = read_manifest(folder)
    if verify:
        check_digests(folder, manifest)
    target = manifest["target"]
    runtime = cast("Runtime", component.parse("runtimes", {target["runtime"]: target["fields"]}))
    check_machine(folder, manifest, runtime)
    family = family_of(folder, manifest)
    session = runtime.open(folder, list(manifest["graphs"]), threads)
    return Package(folder, manifest, family, runtime, session, workers)


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
        NotRunnableHere: with what to write in the recipe. Where nothing of the runtime runs, its ``open`` says why.
    """
    built_for, here = manifest["target"]["machine"], runtime.here()
    if manifest["precision"] != "fp32" and here is not None and built_for != here:
        name = runtime.component_name()
        raise NotRunnableHere(
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
