"""Measure subjects on the same test examples: quality first, then exact quantities and times with nothing else loaded.

A measurement observes a machine, so it is never cached, and a lock that the whole machine shares keeps two of them from
disturbing each other.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mmcompress._ask import as_texts, find_request
from mmcompress._environment import environment_facts
from mmcompress.component import digest_json, digest_path
from mmcompress.data import Examples
from mmcompress.errors import InputError, MissingExtra, NotRunnableHere, StageError
from mmcompress.families import Family, Feeds, Processor, Run, join_rows
from mmcompress.metrics import Bench, Measured, Metric, Row, Subject
from mmcompress.metrics._absent import absent_subjects

if TYPE_CHECKING:
    from PIL.Image import Image

Listen = Callable[[str, int, int], None]
Samples = dict[str, Sequence[Mapping[str, Any]]]

BATCH = 32
CHUNK = 256
"""Examples that are preprocessed before the subjects take turns: runtimes whose idle threads still spin meet seldom."""


def _silent(message: str, done: int, total: int) -> None:
    pass


def measure(
    subjects: Sequence[Subject],
    metrics: Sequence[Metric],
    test: Examples | None,
    *,
    threads: int,
    seed: int,
    progress: Listen = _silent,
) -> tuple[list[Row], Samples, dict[str, Any]]:
    """Measure every subject by every metric; gives rows, raw samples by name, and the facts of this machine.

    Raises:
        InputError: test data are missing, or do not have what a metric reads.
        StageError: a subject gave NaN, or its process died.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) != len(names):
        raise ValueError(f"subjects need names of their own: {names}")
    quality = [metric for metric in metrics if metric.needs()]
    if quality and test is None:
        raise InputError(
            f"{quality[0].component_name()} is measured on test data, and there are none\n  Give data.test."
        )
    if test is not None and quality and len(test) == 0:
        raise InputError("the test split has no examples")
    found: dict[int, list[Row]] = {}
    samples: Samples = {}
    started = time.time()
    with alone(progress):
        environment = environment_facts(threads)
        with Answers(subjects, test, _requests(quality), threads, progress) as answers:
            bench = Bench(test, threads, seed, answers, progress)
            absent = answers.leave_out() if quality else {}
            for metric in sorted(metrics, key=lambda metric: not metric.needs()):
                progress(metric.component_name(), 0, 0)
                if metric.needs():
                    rows = _collect(metric.measure(answers.subjects, bench), samples)
                    found[id(metric)] = [*rows, *absent_subjects(rows, subjects, absent)]
                else:
                    answers.close()
                    found[id(metric)] = _collect(metric.measure(subjects, bench), samples)
        progress(f"{len(metrics)} metrics of {len(subjects)} subjects", 1, 1)
    rows = [row for metric in metrics for row in found[id(metric)]]
    environment["seconds"] = round(time.time() - started, 1)
    environment["load_after"] = environment_facts(threads)["load"]
    _check_unique(rows)
    return rows, samples, environment


def _requests(metrics: Sequence[Metric]) -> list[str]:
    return sorted({request for metric in metrics for request in metric.needs()})


def _collect(measured: Measured, samples: Samples) -> list[Row]:
    """Add samples under names that are free (one metric may stand twice in a recipe); gives the rows with those names."""
    names: dict[str, str] = {}
    for name, records in measured.samples.items():
        free, number = name, 1
        while free in samples:
            number += 1
            free = f"{name} ({number})"
        names[name] = free
        samples[free] = records
    return [replace(row, samples=names[row.samples]) if row.samples else row for row in measured.rows]


def _check_unique(rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        key = digest_json([row.artifact, row.name, row.target, row.metric, row.reference, dict(row.conditions)])
        if key in seen:
            raise RuntimeError(f"two rows for {row.name} {row.metric} {dict(row.conditions)}")
        seen.add(key)


@contextmanager
def alone(progress: Listen = _silent, path: Path | None = None) -> Iterator[None]:
    """Hold the machine's measurement lock; waits, and says so, while another process measures."""
    lock = FileLock(path or Path(tempfile.gettempdir()) / "mmcompress-measure.lock", mode=0o666)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        progress("waiting for another measurement on this machine", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- answers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A subject that is loaded and can be asked."""

    family: Family
    processor: Processor
    run: Run
    close: Callable[[], None]


def open_subject(subject: Subject, threads: int, *, verify: bool = True) -> Opened:
    """Load a subject: a model folder in torch, or a package in its runtime (its files hashed, unless that was done)."""
    if subject.target == "torch":
        from mmcompress.runtimes.torch import open_model

        session = open_model(subject.family, subject.folder, threads)
        return Opened(subject.family, subject.family.processor(subject.folder), session.run, session.close)
    from mmcompress.package import load_package

    package = load_package(subject.folder, threads=threads, verify=verify)
    return Opened(package.family, package.processor, package.run, package.close)


class Answers:
    """Answers of subjects over the whole test split, computed once, and answers to other inputs.

    Examples are read once for all subjects and requests, and preprocessed once for all subjects whose preprocessing is
    the same.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        test: Examples | None,
        requests: Sequence[str],
        threads: int,
        progress: Listen = _silent,
    ) -> None:
        self.subjects = tuple(subjects)
        self.test = test
        self.requests = tuple(requests)
        self.threads = threads
        self.progress = progress
        self._opened: dict[str, Opened] = {}
        self._answers: dict[tuple[str, str], NDArray[Any]] = {}
        self._columns: dict[str, list[Any]] = {}
        self._alike: dict[tuple[str, str], str] = {}
        self._first: dict[str, Feeds] = {}

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the models; answers stay."""
        while self._opened:
            self._opened.popitem()[1].close()

    def __call__(self, subject: Subject, request: str) -> NDArray[Any]:
        """The subject's answers to a request, one row per test example; their kind is the request's."""
        if (subject.name, request) not in self._answers:
            asked = [name for name in self.requests if (subject.name, name) not in self._answers]
            self._fill(asked if request in asked else [*asked, request])
        return self._answers[subject.name, request]

    def leave_out(self) -> dict[str, str]:
        """Go on without the subjects that are made for another machine; gives the reasons by name.

        Raises:
            InputError: none is left, or one of them is broken.
        """
        absent: dict[str, str] = {}
        for subject in self.subjects:
            try:
                self._open(subject)
            except (NotRunnableHere, MissingExtra) as error:
                absent[subject.name] = str(error)
        if len(absent) == len(self.subjects):
            raise InputError("nothing that was named runs here\n" + "\n".join(absent.values()))
        self.subjects = tuple(subject for subject in self.subjects if subject.name not in absent)
        return absent

    def values(self, name: str) -> Sequence[Any]:
        """What the test examples hold, in order: ``label``, ``texts``, ... or ``picture`` (a digest of its pixels).

        Raises:
            InputError: the test data have no such column.
        """
        if self.test is None or {"picture": "image"}.get(name, name) not in self.test.columns:
            has = ", ".join(sorted(self.test.columns)) if self.test is not None else "nothing"
            raise InputError(f"the test data have no {name!r}; they have {has}")
        if name not in self._columns:
            self._fill(self.requests)
        return self._columns[name]

    def texts(self, subject: Subject, request: str) -> list[str]:
        """The subject's answers as texts: the class with the highest score, or what the tokens say."""
        asked = find_request(subject.family.requests, request)
        return as_texts(self._open(subject).processor, asked, self(subject, request))

    def classes(self, subject: Subject) -> Sequence[str]:
        """The names of the classes that the subject scores, in its own order.

        Raises:
            InputError: it has none.
        """
        classes = getattr(self._open(subject).processor, "classes", None)
        if not classes:
            raise InputError(f"{subject.name}: the model has no classes of its own")
        return tuple(classes)

    def ask(self, subject: Subject, request: str, values: Mapping[str, Sequence[Any]]) -> NDArray[Any]:
        """The subject's answers to a request for raw values of one's own (``{"text": [...]}``)."""
        opened = self._open(subject)
        count = len(next(iter(values.values())))
        parts = []
        for start in range(0, count, BATCH):
            feeds = opened.processor.encode({name: column[start : start + BATCH] for name, column in values.items()})
            parts.append(opened.family.answer(opened.run, request, feeds))
        return _finite(join_rows(parts), subject, request)

    def _open(self, subject: Subject) -> Opened:
        if subject.name not in self._opened:
            self._opened[subject.name] = open_subject(subject, self.threads)
        return self._opened[subject.name]

    def _fill(self, requests: Sequence[str]) -> None:
        if self.test is None:
            raise InputError("answers need test data, and there are none")
        parts: dict[tuple[str, str], list[NDArray[Any]]] = {}
        columns: dict[str, list[Any]] = {}
        total = len(self.test)
        for start in range(0, total, CHUNK):
            self.progress("answering the test examples", start, total)
            stop = min(total, start + CHUNK)
            raw = _raw([self.test[index].values for index in range(start, stop)], columns)
            encoded: dict[tuple[str, str], list[Feeds]] = {}
            for subject in self.subjects:
                for request in requests:
                    parts.setdefault((subject.name, request), []).extend(
                        self._answer_chunk(subject, request, raw, encoded)
                    )
        for (name, request), rows in parts.items():
            subject = next(subject for subject in self.subjects if subject.name == name)
            self._answers[name, request] = _finite(join_rows(rows), subject, request)
        self._columns = columns

    def _answer_chunk(
        self,
        subject: Subject,
        request: str,
        raw: Mapping[str, Sequence[Any]],
        encoded: dict[tuple[str, str], list[Feeds]],
    ) -> Iterator[NDArray[Any]]:
        """Answers to a chunk, batch by batch; ``encoded`` keeps its compact arrays for the next subject."""
        opened = self._open(subject)
        inputs = find_request(subject.family.requests, request).inputs
        missing = [name for name in inputs if name not in raw]
        if missing:
            raise InputError(f"{request} of {subject.name} needs {', '.join(missing)}, which the test data lack")
        if (subject.name, request) not in self._alike:
            first = {name: raw[name][:BATCH] for name in inputs}
            self._alike[subject.name, request] = self._preprocessing(subject, request, opened.processor.compact(first))
        key = (self._alike[subject.name, request], request)
        if key not in encoded:
            count = len(raw[inputs[0]])
            encoded[key] = [
                opened.processor.compact({name: raw[name][start : start + BATCH] for name in inputs})
                for start in range(0, count, BATCH)
            ]
        for compact in encoded[key]:
            yield opened.family.answer(opened.run, request, opened.processor.expand(compact))

    def _preprocessing(self, subject: Subject, request: str, compact: Feeds) -> str:
        """A name that subjects share whose preprocessing is the same one.

        The same files, and the same arrays for the first batch: the model's configuration takes part in preprocessing
        (texts are cut at its length), and differs between a teacher and its student for other reasons.
        """
        family = subject.family
        files = {
            name: digest_path(subject.folder / name)
            for name in sorted(family.package_files(subject.folder))
            if name != "config.json"
        }
        digest = digest_json([family.component_name(), request, files])
        first = self._first.setdefault(digest, compact)
        same = first.keys() == compact.keys() and all(np.array_equal(first[name], compact[name]) for name in first)
        return digest if same else subject.name


def _raw(examples: Sequence[Mapping[str, Any]], columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Values of a chunk as requests name them; what metrics read later goes to ``columns``.

    The first text of an example is the text that is embedded; its alternatives count when answers are judged. Pictures,
    sounds and arrays are not kept, a digest of the picture is.
    """
    raw = {name: [values[name] for values in examples] for name in examples[0]}
    for name, column in raw.items():
        if _is_light(column[0]):
            columns.setdefault(name, []).extend(column)
    if "texts" in raw and "text" not in raw:
        raw["text"] = [texts[0] for texts in raw["texts"]]
    if "image" in raw:
        columns.setdefault("picture", []).extend(_picture_digest(image) for image in raw["image"])
    return raw


def _is_light(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_light(item) for item in value)
    return value is None or isinstance(value, (str, int, float, np.integer, np.floating))


def _picture_digest(image: Image) -> bytes:
    head = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()


def _finite(answers: NDArray[Any], subject: Subject, request: str) -> NDArray[Any]:
    wrong = int((~np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)).sum())
    if wrong:
        raise StageError(f"{subject.name} gave NaN or infinity for {wrong} of {len(answers)} answers to {request}")
    return answers
