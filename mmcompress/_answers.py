"""Answers of models and packages to the test examples: computed once, kept, shared by the metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress._ask import as_texts, find_request
from mmcompress._sound import read_sound
from mmcompress.component import digest_json, digest_path
from mmcompress.data import Examples
from mmcompress.errors import InputError, MissingExtra, NotRunnableHere, StageError
from mmcompress.families import Family, Feeds, Processor, Run, join_rows
from mmcompress.metrics import Subject
from mmcompress.metrics._damage import Damage, damage_columns

if TYPE_CHECKING:
    from PIL.Image import Image

Listen = Callable[[str, int, int], None]

BATCH = 32
CHUNK = 256
"""Examples that are preprocessed before the subjects take turns: runtimes whose idle threads still spin meet seldom."""


def silent(message: str, done: int, total: int) -> None:
    """Listens to nothing."""


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
        progress: Listen = silent,
        damages: Sequence[tuple[Collection[str], Collection[Damage]]] = (),
    ) -> None:
        self.subjects = tuple(subjects)
        self.test = test
        self.requests = tuple(requests)
        self.threads = threads
        self.progress = progress
        self._opened: dict[str, Opened] = {}
        self._damages = [(requests, damage) for requests, of_metric in damages for damage in of_metric]
        """What metrics will ask under damage: a pair for each metric and damage, until it is done with it."""
        self._answers: dict[tuple[str, str, Damage | None], NDArray[Any]] = {}
        self._columns: dict[str, list[Any]] = {}
        self._alike: dict[tuple[str, str], str] = {}
        self._first: dict[str, Feeds] = {}
        self._beginning: dict[str, list[Any]] = {}

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

    def __call__(self, subject: Subject, request: str, damage: Damage | None = None) -> NDArray[Any]:
        """The subject's answers to a request, one row per test example; their kind is the request's.

        Under damage they are those to damaged inputs, and the same as ever where it touches none of them.
        """
        if damage is not None and not self.touches(damage, subject, request):
            damage = None
        if (subject.name, request, damage) not in self._answers:
            known: Iterable[str] = self.requests
            if damage is not None:
                asked = {name for requests, of_metric in self._damages if of_metric == damage for name in requests}
                known = sorted(name for name in asked if self.touches(damage, subject, name))
            asked_now = [name for name in known if (subject.name, name, damage) not in self._answers]
            self._fill(asked_now if request in asked_now else [*asked_now, request], damage)
        return self._answers[subject.name, request, damage]

    def touches(self, damage: Damage, subject: Subject, request: str) -> bool:
        """Whether damage changes anything that the request takes, by the first test examples.

        Raises:
            InputError: it takes away an input that the request cannot go without.
        """
        asked = find_request(subject.family.requests, request)
        if damage.missing in asked.inputs and damage.missing not in asked.optional:
            without = ", ".join(asked.optional) or "none of its inputs"
            raise InputError(f"{request} of {subject.name} needs {damage.missing}; it can go without {without}")
        if not self._beginning and self.test is not None:
            first = [self.test[index].values for index in range(min(BATCH, len(self.test)))]
            self._beginning = _raw(first, {})
        columns = {name: self._beginning[name] for name in asked.inputs if name in self._beginning}
        return any(damage.touches(name, value) for name, column in columns.items() for value in column)

    def release(self, damage: Damage) -> None:
        """A metric is done with a damage; answers under it are freed after the last such metric."""
        done = next((pair for pair in self._damages if pair[1] == damage), None)
        if done is not None:
            self._damages.remove(done)
        if all(other != damage for _, other in self._damages):
            self._answers = {key: answers for key, answers in self._answers.items() if key[2] != damage}

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
        """What the test examples hold, in order: ``label``, ``texts``, ...; digests as ``picture``, ``film``, ``sound``.

        Raises:
            InputError: the test data have no such column.
        """
        if (
            self.test is None
            or {"picture": "image", "film": "frames", "sound": "audio"}.get(name, name) not in self.test.columns
        ):
            has = ", ".join(sorted(self.test.columns)) if self.test is not None else "nothing"
            raise InputError(f"the test data have no {name!r}; they have {has}")
        if name not in self._columns:
            self._fill(self.requests)
        return self._columns[name]

    def texts(self, subject: Subject, request: str, damage: Damage | None = None) -> list[str]:
        """The subject's answers as texts: the class with the highest score, or what the tokens say."""
        asked = find_request(subject.family.requests, request)
        return as_texts(self._open(subject).processor, asked, self(subject, request, damage))

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

    def _fill(self, requests: Sequence[str], damage: Damage | None = None) -> None:
        if self.test is None:
            raise InputError("answers need test data, and there are none")
        parts: dict[tuple[str, str], list[NDArray[Any]]] = {}
        columns: dict[str, list[Any]] = {}
        total = len(self.test)
        told = "answering the test examples" + (f" under {damage}" if damage else "")
        for start in range(0, total, CHUNK):
            self.progress(told, start, total)
            stop = min(total, start + CHUNK)
            raw = _raw([self.test[index].values for index in range(start, stop)], columns)
            if damage is not None:
                raw = damage_columns(damage, self.test.ids[start:stop], raw)
            encoded: dict[tuple[str, str], list[Feeds]] = {}
            for subject in self.subjects:
                for request in requests:
                    parts.setdefault((subject.name, request), []).extend(
                        self._answer_chunk(subject, request, raw, encoded)
                    )
        for (name, request), rows in parts.items():
            subject = next(subject for subject in self.subjects if subject.name == name)
            self._answers[name, request, damage] = _finite(join_rows(rows), subject, request)
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
        asked = find_request(subject.family.requests, request)
        inputs, count = asked.inputs, len(next(iter(raw.values())))
        missing = [name for name in inputs if name not in raw and name not in asked.optional]
        if missing:
            raise InputError(f"{request} of {subject.name} needs {', '.join(missing)}, which the test data lack")
        raw = {name: raw.get(name, [None] * count) for name in inputs}
        if (subject.name, request) not in self._alike:
            first = {name: column[:BATCH] for name, column in raw.items()}
            self._alike[subject.name, request] = self._preprocessing(subject, request, opened.processor.compact(first))
        key = (self._alike[subject.name, request], request)
        if key not in encoded:
            encoded[key] = [
                opened.processor.compact({name: column[start : start + BATCH] for name, column in raw.items()})
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
    films, sounds and arrays are not kept, digests are.
    """
    raw = {name: [values[name] for values in examples] for name in examples[0]}
    for name, column in raw.items():
        if _is_light(column[0]):
            columns.setdefault(name, []).extend(column)
    if "texts" in raw and "text" not in raw:
        raw["text"] = [texts[0] for texts in raw["texts"]]
    if "image" in raw:
        columns.setdefault("picture", []).extend(_picture_digest(image) for image in raw["image"])
    if "frames" in raw:
        columns.setdefault("film", []).extend(b"".join(map(_picture_digest, film)) for film in raw["frames"])
    if "audio" in raw:
        columns.setdefault("sound", []).extend(_sound_digest(sound) for sound in raw["audio"])
    return raw


def _is_light(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_light(item) for item in value)
    return value is None or isinstance(value, (str, int, float, np.integer, np.floating))


def _picture_digest(image: Image) -> bytes:
    head = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()


def _sound_digest(sound: Any) -> bytes:
    heard = read_sound(sound)
    return hashlib.blake2b(f"{heard.rate}".encode() + heard.samples.tobytes(), digest_size=16).digest()


def _finite(answers: NDArray[Any], subject: Subject, request: str) -> NDArray[Any]:
    wrong = int((~np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)).sum())
    if wrong:
        raise StageError(f"{subject.name} gave NaN or infinity for {wrong} of {len(answers)} answers to {request}")
    return answers
