"""Asking a model for raw values, whatever runs its graphs, and what its answers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress import component
from mmcompress.errors import InputError, UsageError
from mmcompress.families import PADDING, Family, Feeds, Processor, Request, Run, join_rows

BATCH = 64


@dataclass(frozen=True)
class Classification:
    """The text or class that fits an input best."""

    label: str
    index: int
    """Of the label among the texts or classes."""
    scores: tuple[float, ...]
    """The cosine similarity with each text, or the model's score of each class; the higher the likelier."""


@dataclass(frozen=True)
class Generated:
    """A text that a model wrote."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Tags:
    """A class per word of a text."""

    labels: tuple[str, ...]


Answer = Classification | Generated | Tags | NDArray[Any]
"""What a user gets for one input; embeddings and numbers are arrays [d]."""


def ask(
    family: Family,
    processor: Processor,
    run: Run,
    request: str,
    values: Mapping[str, Sequence[Any]],
    batch_size: int = BATCH,
) -> NDArray[Any]:
    """Answer a request for raw values, a batch at a time; one row per example.

    Works the same for a package and for a model in torch: ``run`` is what runs a graph.

    Raises:
        InputError: values that are missing, of unequal number, or cannot be read.
        UsageError: the family does not know the request.
    """
    columns = columns_of(family.requests, request, values)
    answers = []
    for start in range(0, len(next(iter(columns.values()))), batch_size):
        feeds = processor.encode({name: column[start : start + batch_size] for name, column in columns.items()})
        answers.append(family.answer(run, request, feeds))
    return join_rows(answers)


def columns_of(
    requests: Sequence[Request], request: str, values: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The values that a request takes, None for each example where an optional one is not given.

    Raises:
        InputError: values that are missing, none, or of unequal number.
        UsageError: there is no such request.
    """
    asked = find_request(requests, request)
    missing = [name for name in asked.inputs if name not in values and name not in asked.optional]
    if missing:
        raise InputError(f"{request} takes {', '.join(asked.inputs)}; {', '.join(missing)} is missing")
    counts = {name: len(values[name]) for name in asked.inputs if name in values}
    if len(set(counts.values())) > 1:
        raise InputError(f"{request} takes as many of each input; got {counts}")
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise InputError(f"{request}: no {asked.inputs[0]} was given")
    absent = [None] * count
    return {name: values.get(name, absent) for name in asked.inputs}


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


def as_answers(processor: Any, request: Request, rows: NDArray[Any]) -> list[Answer]:
    """Rows of answers as a user gets them, one per example."""
    if request.answers == "scores":
        classes = processor.classes
        best = rows.argmax(axis=1).tolist()
        return [
            Classification(classes[index], index, tuple(float(score) for score in row))
            for index, row in zip(best, rows, strict=True)
        ]
    if request.answers == "tokens":
        texts = processor.decode(rows)
        return [
            Generated(text, tuple(int(token) for token in row if token != PADDING))
            for text, row in zip(texts, rows, strict=True)
        ]
    if request.answers == "tags":
        classes = processor.classes
        return [Tags(tuple(classes[tag] for tag in row if tag != PADDING)) for row in rows.tolist()]
    return list(rows)


def as_texts(processor: Any, request: Request, rows: NDArray[Any]) -> list[str]:
    """Answers as texts: the class with the highest score, or what the tokens say.

    Raises:
        UsageError: the request answers with embeddings or numbers, which say nothing in words.
    """
    texts = []
    for answer in as_answers(processor, request, rows):
        if isinstance(answer, Classification):
            texts.append(answer.label)
        elif isinstance(answer, Generated):
            texts.append(answer.text)
        elif isinstance(answer, Tags):
            texts.append(" ".join(answer.labels))
        else:
            raise UsageError(f"{request.name} answers with {request.answers}, which are no texts")
    return texts


def agreement(kind: str, found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """How near answers are to expected ones, 1 where they are the same: [n].

    The cosine for embeddings and scores; for tokens and tags the share of places where both hold the same; for numbers
    1 less the difference relative to the largest number expected.
    """
    if kind in ("tokens", "tags"):
        width = max(found.shape[1], expected.shape[1])
        rows = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=PADDING) for part in (found, expected)
        ]
        used = (rows[0] != PADDING) | (rows[1] != PADDING)
        same = ((rows[0] == rows[1]) & used).sum(axis=1)
        return np.asarray(np.where(used.any(axis=1), same / np.maximum(used.sum(axis=1), 1), 1.0))
    if kind == "numbers":
        scale = max(float(np.abs(expected).max()), 1e-12)
        return np.asarray(1.0 - np.abs(found - expected).max(axis=1) / scale, dtype=np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray((found * expected).sum(axis=1) / np.maximum(norms, 1e-12), dtype=np.float64)


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
