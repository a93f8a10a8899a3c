"""Subjects and a bench with given answers, for metrics that need no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcompress.data import Example
from mmcompress.families import Family, Request
from mmcompress.metrics import Bench, Role, Subject


@dataclass
class GivenExamples:
    ids: Sequence[str]
    columns: frozenset[str] = frozenset({"image", "texts", "label"})
    notes: Mapping[str, int] = field(default_factory=dict)
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("the answers are given")

    def fingerprint(self, index: int) -> str:
        return self.ids[index]

    def classes(self) -> Sequence[str]:
        return self.names


@dataclass
class GivenAnswers:
    answers: Mapping[tuple[str, str], np.ndarray]
    columns: Mapping[str, Sequence[Any]]
    prompts: Callable[[str, Sequence[str]], np.ndarray] | None = None

    def __call__(self, subject: Subject, request: str) -> np.ndarray:
        return self.answers[subject.name, request]

    def values(self, name: str) -> Sequence[Any]:
        return self.columns[name]

    def ask(self, subject: Subject, request: str, values: Mapping[str, Sequence[Any]]) -> np.ndarray:
        assert request == "embed_text"
        assert self.prompts is not None
        return self.prompts(subject.name, values["text"])


class GivenFamily(Family):
    """Takes what is optional from ``optional``; its answers are given."""

    optional: tuple[str, ...] = ()

    @property
    def requests(self) -> tuple[Request, ...]:
        return (Request("classify", ("image", "table"), (), "scores", optional=self.optional),)


def make_subject(name: str, role: Role = "student", target: str = "torch", folder: str | Path = "nowhere") -> Subject:
    family = GivenFamily.model_construct(path=Path(folder))
    return Subject(f"key-{name}", name, role, name, target, family, Path(folder))


def make_bench(answers: GivenAnswers, count: int, classes: Sequence[str] = ()) -> Bench:
    return Bench(GivenExamples([f"e{index}" for index in range(count)], names=classes), 1, 0, answers)


@pytest.fixture
def subject() -> Callable[..., Subject]:
    return make_subject


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return make_bench


@pytest.fixture
def given() -> type[GivenAnswers]:
    return GivenAnswers
